"""What a question costs by the number of segments that a release is in.

The same documents, pseudorandom vectors and real questions as in `benchmarks.versions`, published in 1, 2,
4, 8, 16 and 32 equal parts with compaction switched off, so that each part stays a segment. The releases
are asked in turn. They hold the same chunks and must rank them the same, scores included.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.common import models_folder, parser, scratch, show
from benchmarks.versions import (
    Corpus,
    Prepared,
    editions,
    open_bench,
    query_milliseconds,
    read_questions,
)
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder
from knowledge_base.index import MERGE_FACTOR, tier

COUNTS = (1, 2, 4, 8, 16, 32)


def publish_in(count: int, root: Path, prepared: Prepared, parts: Sequence[Corpus]) -> None:
    """Publish all parts, so many ingests in a row, each of which stays a segment."""
    share = len(parts) // count
    with patch("knowledge_base.index.plan_compaction", lambda live, stored: []):
        for start in range(0, len(parts), share):
            folders = [str(part.folder) for part in parts[start : start + share]]
            ingest(open_bench(root, prepared), list_sources(folders), IngestOptions())
    assert len(open_bench(root, prepared).release().manifest.segments) == count


def measure(folder: Path, chunks: int) -> dict[str, Any]:
    """Median milliseconds a question, by number of segments."""
    questions = read_questions()
    real = load_embedder(EmbedderSettings(), models_folder())
    prepared = Prepared(real, questions)
    supply = editions()
    share = math.ceil(chunks / max(COUNTS))
    parts = [Corpus(folder / f"part{number:02d}", supply, share, real) for number in range(max(COUNTS))]
    roots = [folder / f"in-{count}" for count in COUNTS]
    for count, root in zip(COUNTS, roots, strict=True):
        publish_in(count, root, prepared, parts)
    milliseconds, equal = query_milliseconds(roots, prepared, questions)
    total = sum(part.chunks for part in parts)
    return {
        "chunks": total,
        "query_ms": {count: round(value, 2) for count, value in zip(COUNTS, milliseconds, strict=True)},
        "equal_top_ten": round(equal, 4),
        "most_by_policy": (MERGE_FACTOR - 1) * (tier(total) + 1),
    }


def print_result(result: dict[str, Any]) -> None:
    """A table, and the policy beside it."""
    times = result["query_ms"]
    show(
        f"Query time by number of segments, {result['chunks']} chunks",
        ("segments", "query p50, ms", "ratio to one"),
        [(count, value, value / times[1]) for count, value in times.items()],
    )
    print(
        f"Policy: {MERGE_FACTOR} segments of a tier become one; {result['chunks']} chunks are in "
        f"{result['most_by_policy']} at most.\n"
        f"Share of questions with the same top ten in all, scores included: {result['equal_top_ten']}."
    )


def main() -> None:
    """Measure at one size."""
    made = parser(__doc__ or "")
    made.add_argument("--chunks", type=int, default=20_000)
    arguments = made.parse_args()
    with scratch() as name:
        result = measure(Path(name), arguments.chunks)
    print(json.dumps(result)) if arguments.json else print_result(result)


if __name__ == "__main__":
    main()
