"""What every benchmark shares: where the data are, how a table looks, where models are kept."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from api.settings import read_environment, silence

silence()


def data_folder() -> Path:
    """The folder of real data sets: $PLUMBLINE_DATA, or shared/data beside the project."""
    return Path(os.environ.get("PLUMBLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def models_folder() -> Path:
    """Where exported models are kept: the user's own cache."""
    return read_environment().cache / "models"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that goes with the benchmark."""
    return tempfile.TemporaryDirectory(prefix="plumbline-bench-")


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Chance that a positive scores above a negative; ties count half."""
    ranks = np.empty(len(score))
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(score) - hits)))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=120).print(table)
