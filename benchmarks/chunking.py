"""Which splitter finds the exact passages: recall, precision and IoU of the Chroma chunking evaluation.

Real questions with exact excerpts over three corpora, five chunks retrieved by dense search alone, as in
Chroma's technical report (Smith and Troynikov, 2024); characters instead of tokens are counted. The last
columns show what a new version of a real product's documentation costs with the same splitter (chunk
texts of Dapr's docs v1.10, and how many v1.11 and v1.12 add), and the difference in recall to the default
over the same questions, with its standard error.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, show
from ingestion.chunking import Chunker
from ingestion.readers import extract
from knowledge_base.configuration import ChunkerSettings, EmbedderSettings
from knowledge_base.documents import Chunk, Document
from knowledge_base.embedders import Embedder, load_embedder
from knowledge_base.errors import DocumentError

GRID = (
    ("sentence", 100, 0),
    ("sentence", 200, 0),
    ("sentence", 250, 0),
    ("sentence", 250, 50),
    ("token", 200, 0),
    ("token", 250, 0),
    ("token", 250, 125),
    ("markdown", 100, 0),
    ("markdown", 200, 0),
    ("markdown", 250, 0),
)
RETRIEVED = 5
REFERENCE = "markdown 250/0"
NAMES = (
    *("splitter", "chunks", "recall", "precision", "iou", "texts_v1.10", "new_v1.11", "new_v1.12"),
    *("recall_difference", "standard_error"),
)
# All five corpora, sizes in cl100k tokens (recall, precision, IoU in %); sampling error about 2 points.
PUBLISHED = {
    "Recursive 250/125": (78.7, 4.9, 4.9),
    "TokenText 250/125": (82.4, 3.6, 3.5),
    "Recursive 250/0": (78.5, 5.4, 5.4),
    "TokenText 250/0": (77.1, 3.3, 3.3),
    "Recursive 200/0": (75.7, 6.5, 6.5),
    "TokenText 200/0": (76.6, 4.1, 4.1),
    "Cluster 200/0": (75.2, 7.2, 7.2),
}


def main() -> None:
    """Run the grid."""
    arguments = parser(__doc__ or "").parse_args()
    embedder = load_embedder(EmbedderSettings(precision="fp32"), models_folder())
    data = data_folder()
    questions = read_jsonl(data / "chunking_eval" / "questions.jsonl")
    corpora = [read(path) for path in sorted((data / "chunking_eval" / "corpora").glob("*.md"))]
    asked = np.stack([embedder.embed_query(question["question"]) for question in questions])
    known: dict[str, Any] = {}
    rows: list[list[Any]] = []
    recalls: dict[str, NDArray[np.float64]] = {}
    for splitter, size, overlap in GRID:
        settings = {"splitter": splitter, "size": size, "overlap": overlap}
        chunker = Chunker(ChunkerSettings.model_validate(settings), embedder.tokenize)
        chunks = [chunk for document in corpora for chunk in chunker.split(document)]
        vectors = embed(chunks, embedder, known)
        scores = [score(q, chunks, vectors, v) for q, v in zip(questions, asked, strict=True)]
        recall, precision, iou = (100 * np.array(column) for column in zip(*scores, strict=True))
        name = f"{splitter} {size}/{overlap}"
        recalls[name] = recall
        figures = [float(column.mean()) for column in (recall, precision, iou)]
        rows.append([name, len(chunks), *figures, *growth(chunker, data)])
    rows = [row + compare(recalls[row[0]], recalls[REFERENCE]) for row in rows]
    if arguments.json:
        found = [dict(zip(NAMES, row, strict=True)) for row in rows]
        print(json.dumps({"rows": found, "reference": REFERENCE, "published": PUBLISHED}))
    else:
        report(rows, len(questions))


def report(rows: list[list[Any]], questions: int) -> None:
    """Print what was measured, and the published figures below it."""
    show(
        f"{questions} questions, {RETRIEVED} chunks retrieved (%); chunk texts of a real documentation",
        (
            "",
            "chunks",
            "recall",
            "prec.",
            "IoU",
            "v1.10",
            "+v1.11",
            "+v1.12",
            "recall - default",
            "std. err.",
        ),
        [[f"{cell:.1f}" if isinstance(cell, float) else cell for cell in row] for row in rows],
    )
    show(
        "Published, five corpora (%)",
        ("splitter", "recall", "precision", "IoU"),
        [(n, *v) for n, v in PUBLISHED.items()],
    )


def compare(recall: NDArray[np.float64], reference: NDArray[np.float64]) -> list[float]:
    """Mean difference in recall to the default over the same questions, and its standard error."""
    difference = recall - reference
    return [float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))]


def read(path: Path) -> Document:
    """A corpus exactly as its questions count in it: not normalised."""
    text = path.read_bytes().decode()
    return Document(path.stem, "", 0, path.stem, text, extract(path.name, text.encode()).sections)


def embed(chunks: Sequence[Chunk], embedder: Embedder, known: dict[str, Any]) -> Any:
    """Vectors of the chunks; texts that an earlier setting had are not embedded again."""
    new = list({chunk.text_hash: chunk.text for chunk in chunks if chunk.text_hash not in known}.items())
    known.update(
        zip((key for key, _ in new), embedder.embed_documents([text for _, text in new]), strict=True)
    )
    return np.stack([known[chunk.text_hash] for chunk in chunks])


def score(
    question: dict[str, Any], chunks: Sequence[Chunk], vectors: Any, asked: Any
) -> tuple[float, float, float]:
    """(recall, precision, IoU) in characters of the excerpts; what is retrieved twice counts twice."""
    best = np.argsort(-(vectors @ asked), kind="stable")[:RETRIEVED]
    wanted = {i for part in question["references"] for i in range(part["start_index"], part["end_index"])}
    found: set[int] = set()
    retrieved = 0
    for row in best:
        chunk = chunks[row]
        retrieved += chunk.end - chunk.start
        if chunk.path == question["corpus_id"]:
            found |= wanted & set(range(chunk.start, chunk.end))
    union = retrieved + len(wanted) - len(found)
    return len(found) / len(wanted), len(found) / retrieved, len(found) / union


def growth(chunker: Chunker, data: Path) -> list[int]:
    """How many chunk texts each version of the documentation adds."""
    seen: set[str] = set()
    added = []
    for version in ("v1.10", "v1.11", "v1.12"):
        texts = set()
        for path in sorted((data / "docs_dapr_A" / version).rglob("*")):
            if path.is_file():
                texts |= {chunk.text_hash for chunk in split_file(chunker, path)}
        added.append(len(texts - seen))
        seen |= texts
    return added


def split_file(chunker: Chunker, path: Path) -> list[Chunk]:
    """Chunks of one file, none when it has no text."""
    try:
        found = extract(path.name, path.read_bytes())
    except DocumentError:
        return []
    return chunker.split(Document(path.name, "", 0, found.title, found.text, found.sections))


if __name__ == "__main__":
    main()
