"""The passages of a new segment: vectors from wherever they are, embedded where they are nowhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingestion.scan import Progress
from knowledge_base.documents import Chunk
from knowledge_base.embedders import Embedder
from knowledge_base.home import KnowledgeBase
from knowledge_base.snapshot import Snapshot
from knowledge_base.values import Fingerprint
from knowledge_base.vectors import Journal, find_vectors

_BATCH = 512


@dataclass(frozen=True)
class Passages:
    """Chunks of a segment in the making; of their distinct texts, by text hash, what is known.

    `vectors` are those that exist already, `missing` the texts without one. Texts that a segment which
    stays has are in neither.
    """

    chunks: Sequence[Chunk]
    vectors: Mapping[str, Any]
    missing: Mapping[str, str]
    reused: int


def find_passages(
    knowledge_base: KnowledgeBase,
    parent: Snapshot,
    chunks: Sequence[Chunk],
    embedder: Fingerprint,
    journal: Journal,
    *,
    keep: bool,
) -> Passages:
    """Look for the vectors of all chunks: in the parent, in other releases, in runs that were killed.

    With `keep` the parent's segments stay, and what they have is not stored again.
    """
    texts = {chunk.text_hash: chunk.text for chunk in chunks}
    manifest = parent.release.manifest
    same_space = manifest.embedder == dict(embedder)
    here = texts.keys() & parent.passage_hashes() if same_space else set()
    vectors: dict[str, Any] = {} if keep or not here else dict(parent.vectors_by_hash(here))
    missing = {text_hash: text for text_hash, text in texts.items() if text_hash not in here}
    if missing:
        vectors |= find_vectors(
            knowledge_base, missing.keys(), embedder, {ref.id for ref in manifest.segments}
        )
        vectors |= journal.load(missing.keys() - vectors.keys())
    missing = {text_hash: text for text_hash, text in missing.items() if text_hash not in vectors}
    return Passages(chunks, vectors, missing, len(texts) - len(missing))


def embed(
    texts: Mapping[str, str], embedder: Embedder, journal: Journal, progress: Progress
) -> dict[str, Any]:
    """Vectors of texts by hash, in batches that a killed run need not compute again. Raises EmbedderError."""
    order = list(texts)
    vectors: dict[str, Any] = {}
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        done = embedder.embed_documents(
            [texts[key] for key in batch], lambda count: progress("embed", count, len(order))
        )
        vectors.update(zip(batch, done, strict=True))
        if len(order) > _BATCH:
            journal.save(batch, done)
    return vectors
