"""Do the report's tests alarm on nothing, and do they see what is there?

Questions of SQuAD are drawn by paragraph, as the questions of one reader come in sessions. A/A: both sides
are drawn from the same paragraphs; the share of runs with p <= 0.05 must lie in the 99 % binomial band. In
the same runs stand two detectors that treat every question as independent: the same MMD without
blocks, and Evidently's embedding drift as it ships. Power: a share of the newer side is replaced.
Rates, times and paired scores are simulated, with blocks that differ as readers do.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, show
from eval.drift_statistics import (
    Sample,
    block_mean,
    block_mmd,
    domain_classifier,
    paired_loss,
)
from eval.family import BASELINE_NIGHTS, PAGE_LEVEL, trend
from eval.findings import Finding, Level
from eval.monitors_questions import AUC_FLOOR
from eval.question_changes import CHANGES
from eval.report import judge_family
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder

NOMINAL, RESAMPLES = 0.05, 99
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
BLOCKS, LARGE = 40, 200
"""Paragraphs a side: with up to five questions of each, 200 and 1,000 questions at most."""
Draw = np.random.Generator


@dataclass(frozen=True)
class Pool:
    """Vectors of questions: the paragraph of each, whether its article is foreign, and its changed forms."""

    vectors: NDArray[np.float32]
    paragraphs: NDArray[np.int64]
    foreign: NDArray[np.bool_]
    changed: Mapping[str, NDArray[np.float32]]
    passages: NDArray[np.float32]

    @classmethod
    def load(cls, cache: Path) -> "Pool":
        """Read from the cache, or embed everything once."""
        rows = read_jsonl(data_folder() / "squad" / "dev-v1.1.questions.jsonl")
        titles = sorted({row["title"] for row in rows})
        apart = set(titles[::5])
        names = [row["paragraph"] for row in rows]
        if not cache.exists():
            cls._embed(rows, cache)
        with np.load(cache) as stored:
            arrays = dict(stored)
        passages, vectors = arrays.pop("passages"), arrays.pop("vectors")
        return cls(
            vectors,
            np.unique(names, return_inverse=True)[1].astype(np.int64),
            np.array([row["title"] in apart for row in rows]),
            arrays,
            passages,
        )

    @staticmethod
    def _embed(rows: list[dict[str, Any]], cache: Path) -> None:
        texts = [row["question"] for row in rows]
        embedder = load_embedder(EmbedderSettings(), models_folder())
        other = load_embedder(EmbedderSettings(precision="fp32"), models_folder())
        arrays: dict[str, Any] = {
            "vectors": embedder.embed_documents(texts),
            "other precision": other.embed_documents(texts),
        }
        for name, change in CHANGES.items():
            drawn = random.Random(0)
            arrays[name] = embedder.embed_documents([change(text, drawn) for text in texts])
        shuffled = np.random.default_rng(0).permutation(embedder.dimension)
        arrays["dimensions shuffled"] = arrays["vectors"][:, shuffled]
        paragraphs = read_jsonl(data_folder() / "squad" / "dev-v1.1.paragraphs.jsonl")
        arrays["passages"] = embedder.embed_documents([row["text"] for row in paragraphs[:400]])
        np.savez(cache, **arrays)

    def draw(
        self, drawn: Draw, blocks: int, *, correlated: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of two disjoint samples: questions of whole paragraphs, or as many single questions."""
        home = np.unique(self.paragraphs[~self.foreign])
        if correlated:
            chosen = drawn.permutation(home)[: 2 * blocks]
            sides = [np.flatnonzero(np.isin(self.paragraphs, part)) for part in np.split(chosen, 2)]
            return sides[0], sides[1]
        rows = drawn.permutation(np.flatnonzero(~self.foreign))[: 10 * blocks]
        return rows[: 5 * blocks], rows[5 * blocks :]

    def sample(self, old: NDArray[np.int64], new: NDArray[np.int64], *, correlated: bool) -> Sample:
        """Both samples with the paragraph as block, or every question its own."""
        blocks = (self.paragraphs[old], self.paragraphs[new]) if correlated else (old, new)
        return Sample.of(self.vectors[old], blocks[0], self.vectors[new], blocks[1])


def thinned(sample: Sample, seed: int) -> Sample:
    return sample.take(sample.thinned(seed))


def question_tests(pool: Pool, sample: Sample, seed: int) -> dict[str, float]:
    """The p-values of the report's three tests of questions."""
    tested = thinned(sample, seed)
    distance = 1 - np.matmul(sample.items, pool.passages.T).max(1).astype(float)
    return {
        "queries.mmd": block_mmd(tested, seed, RESAMPLES).p,
        "queries.classifier": domain_classifier(tested, seed, RESAMPLES).p,
        "queries.outside": block_mean(Sample(distance, sample.blocks, sample.newer), seed, RESAMPLES).p,
    }


def aa_questions(pool: Pool, runs: int, *, correlated: bool) -> dict[str, list[bool]]:
    """Alarms on nothing at p <= 0.05 of every test, and of the same MMD without blocks."""
    found: dict[str, list[bool]] = {}
    for seed in range(runs):
        drawn = np.random.default_rng((seed, 1))
        sample = pool.sample(*pool.draw(drawn, BLOCKS, correlated=correlated), correlated=correlated)
        p_values = question_tests(pool, sample, seed)
        single = Sample(sample.items, np.arange(len(sample.items)), sample.newer)
        p_values["naive MMD, no blocks"] = block_mmd(single, seed, RESAMPLES).p
        for name, p in p_values.items():
            found.setdefault(name, []).append(p <= NOMINAL)
        tell("questions", seed, runs, found)
    return found


def aa_evidently(pool: Pool, runs: int, *, correlated: bool) -> dict[str, list[bool]]:
    """Alarms on nothing of Evidently's embedding drift methods with their defaults; none if not installed."""
    try:
        import warnings

        import pandas
        from evidently.legacy.metrics.data_drift import embedding_drift_methods as methods
    except ImportError:
        return {}
    detectors: dict[str, Callable[..., Any]] = {
        "Evidently model()": methods.model(),
        "Evidently model(bootstrap=True)": methods.model(bootstrap=True),
        "Evidently mmd()": methods.mmd(),
        "Evidently mmd(bootstrap=True)": methods.mmd(bootstrap=True),
        "Evidently ratio()": methods.ratio(),
        "Evidently distance()": methods.distance(),
    }
    found: dict[str, list[bool]] = {name: [] for name in detectors}
    for seed in range(runs):
        np.random.seed(seed)
        old, new = pool.draw(np.random.default_rng((seed, 1)), BLOCKS, correlated=correlated)
        frames = [pandas.DataFrame(pool.vectors[rows]).add_prefix("d") for rows in (new, old)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, detector in detectors.items():
                found[name].append(bool(detector(*frames)[1]))
        tell("evidently", seed, runs, found)
    return found


def figures(drawn: Draw, kind: str, blocks: int, shift: float) -> Sample:
    """Figures of served answers, five to a block, whose blocks differ; `shift` moves the newer side."""
    block = np.repeat(np.arange(2 * blocks), 5)
    newer = block >= blocks
    if kind == "faithfulness":
        unsupported = drawn.beta(1, 9, 2 * blocks)[block]
        values = drawn.binomial(3, np.where(newer & (drawn.random(len(block)) < shift), 1, unsupported)) / 3
    elif kind == "latency":
        own = drawn.normal(0, 0.3, 2 * blocks)[block]
        values = own + drawn.normal(0, 0.5, len(block)) + np.where(newer, np.log1p(shift), 0)
    else:
        rate = {"abstention": (1, 9), "feedback": (0.5, 24.5)}[kind]
        chance = drawn.beta(*rate, 2 * blocks)[block]
        values = (drawn.random(len(block)) < np.where(newer, chance + shift * (1 - chance), chance)).astype(
            float
        )
    return Sample(values.astype(float), block, newer)


FIGURES = ("faithfulness", "abstention", "feedback", "latency")


def golden(drawn: Draw, lost: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Paired differences of 200 golden questions on 60 documents: noise, and a share that is lost."""
    groups = drawn.integers(0, 60, 200)
    noise = drawn.choice([-1.0, 0, 0, 0, 1.0], 60)[groups] * (drawn.random(200) < 0.5) / 3
    return np.where(drawn.random(200) < lost, -1.0, noise), groups


def aa_figures(runs: int) -> dict[str, list[bool]]:
    """Alarms on nothing of the tests of answers, of golden questions and of trends, at p <= 0.05."""
    found: dict[str, list[bool]] = {}
    for seed in range(runs):
        drawn = np.random.default_rng((seed, 1))
        for kind in FIGURES:
            p = block_mean(figures(drawn, kind, BLOCKS, 0), seed, RESAMPLES).p
            found.setdefault(kind, []).append(p <= NOMINAL)
        found.setdefault("golden, paired", []).append(
            paired_loss(*golden(drawn, 0), seed, RESAMPLES).p <= NOMINAL
        )
        night = int(drawn.integers(1, 41))
        series = trend(drawn.normal(0.9, 0.02, BASELINE_NIGHTS + night).tolist(), 0, NOMINAL)
        found.setdefault("trend, two-sided", []).append(series is not None and series.outside)
    return found


def aa_nights(pool: Pool, runs: int) -> dict[str, list[bool]]:
    """Whole nights on which nothing changed: which of them page, and which warn."""
    found: dict[str, list[bool]] = {"pages": [], "warns or pages": [], "p-values alone page": []}
    for seed in range(runs):
        drawn = np.random.default_rng((seed, 2))
        sample = pool.sample(*pool.draw(drawn, BLOCKS, correlated=True), correlated=True)
        tested = thinned(sample, seed)
        mmd, apart = block_mmd(tested, seed), domain_classifier(tested, seed, 1999)
        p_values = {"queries.mmd": mmd.p, "queries.classifier": apart.p}
        for kind in FIGURES:
            p_values[kind] = block_mean(figures(drawn, kind, BLOCKS, 0), seed).p
        p_values["golden"] = paired_loss(*golden(drawn, 0), seed).p
        levels = {floor: _levels(p_values, apart.statistic, floor) for floor in (0.0, AUC_FLOOR)}
        found["pages"].append("page" in levels[AUC_FLOOR])
        found["warns or pages"].append(bool(levels[AUC_FLOOR]))
        found["p-values alone page"].append("page" in levels[0.0])
        tell("nights", seed, runs, found)
    return found


def _levels(p_values: Mapping[str, float], auc: float, floor: float) -> set[Level]:
    findings = [
        Finding(monitor="a", check=name, said="", p=p, effect=auc if name.startswith("queries") else 1.0,
                floor=floor if name.startswith("queries") else 0.0)
        for name, p in p_values.items()
    ]  # fmt: skip
    return {finding.level for finding in judge_family(findings)} - {"ok"}


def power(pool: Pool, runs: int) -> Iterator[tuple[str, float, float]]:
    """(kind, share, found at p <= 0.05 and with the floor of the AUC) of the tests of questions."""
    kinds = [("another topic", BLOCKS), *((kind, LARGE) for kind in ("another topic", *pool.changed))]
    for kind, blocks in kinds:
        for share in SHARES:
            hits = []
            for seed in range(runs):
                drawn = np.random.default_rng((seed, 1))
                old, new = pool.draw(drawn, blocks, correlated=True)
                sample = thinned(_inject(pool, drawn, old, new, kind, share), seed)
                auc = domain_classifier(sample, seed, 1).statistic
                hits.append(block_mmd(sample, seed, RESAMPLES).p <= NOMINAL and auc >= AUC_FLOOR)
            yield f"{kind}, {blocks} sessions", share, float(np.mean(hits))
            tell(f"power {kind} {share}", runs - 1, runs, {"found": hits})


def _inject(
    pool: Pool, drawn: Draw, old: NDArray[np.int64], new: NDArray[np.int64], kind: str, share: float
) -> Sample:
    """Replace whole blocks of the newer side until `share` of them are drifted."""
    sample = pool.sample(old, new, correlated=True)
    blocks = np.unique(sample.blocks[sample.newer])
    chosen = drawn.permutation(blocks)[: round(share * len(blocks))]
    if kind != "another topic":
        items = sample.items.copy()
        rows = np.flatnonzero(np.isin(sample.blocks, chosen))
        items[rows] = pool.changed[kind][np.concatenate([old, new])[rows]]
        return Sample(items, sample.blocks, sample.newer)
    kept = new[~np.isin(sample.blocks[sample.newer], chosen)]
    foreign = drawn.permutation(np.unique(pool.paragraphs[pool.foreign]))[: len(chosen)]
    return pool.sample(
        old, np.concatenate([kept, np.flatnonzero(np.isin(pool.paragraphs, foreign))]), correlated=True
    )


def power_of_figures(runs: int, blocks: int) -> Iterator[tuple[str, float, float]]:
    """(figure, shift, found at p <= 0.05): rates rise by the share, times grow by it, claims lose support."""
    for kind in (*FIGURES, "golden, paired"):
        for share in SHARES:
            hits = []
            for seed in range(runs):
                drawn = np.random.default_rng((seed, 1))
                test = (
                    paired_loss(*golden(drawn, share), seed, RESAMPLES)
                    if kind.startswith("golden")
                    else block_mean(figures(drawn, kind, blocks, share), seed, RESAMPLES)
                )
                hits.append(test.p <= NOMINAL)
            yield kind, share, float(np.mean(hits))


def band(runs: int, level: float) -> tuple[float, float]:
    """The 99 % binomial band of a rate."""
    from scipy.stats import binom

    low, high = binom.ppf([0.005, 0.995], runs, level)
    return float(low) / runs, float(high) / runs


_started = time.monotonic()


def tell(what: str, run: int, runs: int, alarms: Mapping[str, list[bool]] | None = None) -> None:
    """On standard error, how far a part is, and the rates so far."""
    if (run + 1) % 50 == 0 or run + 1 == runs:
        rates = ", ".join(f"{name} {np.mean(hits):.1%}" for name, hits in (alarms or {}).items())
        told = f"{time.monotonic() - _started:.0f} s: {what} {run + 1} of {runs}  {rates}"
        print(told, file=sys.stderr, flush=True)


PARTS = ("questions", "evidently", "answers", "nights", "power", "power of figures")


def main() -> None:
    """Print a table for each part as soon as it is done, or one JSON object."""
    made = parser(__doc__ or "")
    made.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="which parts to run")
    made.add_argument("--runs", type=int, default=1000, help="A/A runs, and A/A nights")
    made.add_argument("--evidently", type=int, default=100, help="A/A runs of Evidently, which is slow")
    made.add_argument("--power", type=int, default=30, help="runs for each share of drift")
    made.add_argument("--cache", type=Path, default=Path("drift-vectors.npz"), help="where vectors are kept")
    arguments = made.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for part in arguments.parts:
        found[part] = run(part, Pool.load(arguments.cache), arguments)
        if not arguments.json:
            names = list(found[part][0]) if found[part] else []
            show(part, names, [[_shown(row[name]) for name in names] for row in found[part]])
    if arguments.json:
        print(json.dumps(found))


def run(part: str, pool: Pool, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one part."""
    designs = {"sessions": True, "independent": False}
    if part == "questions":
        return [
            row
            for name, correlated in designs.items()
            for row in rates(name, aa_questions(pool, arguments.runs, correlated=correlated))
        ]
    if part == "evidently":
        return [
            row
            for name, correlated in designs.items()
            for row in rates(name, aa_evidently(pool, arguments.evidently, correlated=correlated))
        ]
    if part == "answers":
        return rates("sessions, simulated", aa_figures(arguments.runs))
    if part == "nights":
        return rates("whole nights", aa_nights(pool, arguments.runs), PAGE_LEVEL)
    if part == "power":
        return grid(power(pool, arguments.power))
    return grid(power_of_figures(arguments.power * 5, BLOCKS))


def rates(sample: str, alarms: Mapping[str, list[bool]], level: float = NOMINAL) -> list[dict[str, Any]]:
    """Share of runs that alarmed, and whether it is what a detector of that level would have."""
    rows = []
    for name, hits in alarms.items():
        low, high = band(len(hits), level)
        rate = float(np.mean(hits))
        rows.append(
            {
                "sample": sample,
                "detector": name,
                "alarms": rate,
                "runs": len(hits),
                "band from": low,
                "to": high,
                "inside": "yes" if low <= rate <= high else "below" if rate < low else "ABOVE",
            }
        )
    return rows


def grid(cells: Iterator[tuple[str, float, float]]) -> list[dict[str, Any]]:
    """One row for each kind, one column for each share."""
    rows: dict[str, dict[str, Any]] = {}
    for name, share, value in cells:
        rows.setdefault(name, {"drift": name})[f"{share:.0%}"] = value
    return list(rows.values())


def _shown(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
