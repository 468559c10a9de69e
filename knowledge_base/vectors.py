"""Vectors that exist already: of earlier releases, and of an embedding run that was killed."""

import io
import zipfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowledge_base.durable import remove_file, write_bytes
from knowledge_base.errors import DamagedError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase, release_branches
from knowledge_base.release import load_release
from knowledge_base.segments import Segment, open_segments
from knowledge_base.values import Fingerprint, fingerprint_id

_RELEASES = 50
_JOURNALS = "embedding"
_ABANDONED_SECONDS = 7 * 86_400


def find_vectors(
    knowledge_base: KnowledgeBase, wanted: Collection[str], embedder: Fingerprint, known: Collection[str]
) -> dict[str, NDArray[np.float16]]:
    """Vectors of those text hashes in the newest releases of main and the heads of all branches.

    Only what `embedder` made counts. Segments whose ids are in `known` are passed over.
    """
    repository = knowledge_base.repository
    commits = [commit.id for commit in repository.log(MAIN, first_parent=True, amount=_RELEASES)]
    commits += [branch.commit_id for branch in release_branches(repository)]
    segments: dict[str, Segment] = {}
    for commit in dict.fromkeys(commits):
        try:
            release = load_release(repository, commit)
        except PlumblineError:
            continue  # expired, or damaged: then fsck says so, and embedding again is right
        if release.manifest.embedder == dict(embedder):
            opened = open_segments(
                release.manifest,
                lambda path, commit=commit: repository.open_object(commit, path),  # type: ignore[misc]
                knowledge_base.cache,
                language=release.settings.retrieval.language,
            )
            segments.update((s.id, s) for s in opened if s.id not in known and s.id not in segments)
    found: dict[str, NDArray[np.float16]] = {}
    missing = set(wanted)
    for segment in segments.values():
        if not missing:
            break
        with suppress(DamagedError):  # fsck says so; embedding again is right
            here = segment.vectors_of(missing)
            found.update(here)
            missing -= here.keys()
    return found


class Journal:
    """Finished batches of an embedding run, kept until a release has them.

    A batch that this run neither wrote nor used belongs to another one, which was killed and may go on:
    it stays, until nobody went on for a week and gc takes it.
    """

    def __init__(self, knowledge_base: KnowledgeBase, embedder: Fingerprint) -> None:
        self._folder = knowledge_base.folder / _JOURNALS / fingerprint_id(embedder)
        self._used: set[Path] = set()

    def load(self, wanted: Collection[str]) -> dict[str, NDArray[np.float16]]:
        """Vectors of those text hashes; a file that cannot be read counts as never written."""
        found: dict[str, NDArray[np.float16]] = {}
        for path in sorted(self._folder.glob("*.npz")):
            if batch := _read(path, wanted):
                self._used.add(path)
                found.update(batch)
        return found

    def save(self, hashes: list[str], vectors: NDArray[np.float32]) -> None:
        """Keep one batch. Raises StorageError."""
        buffer = io.BytesIO()
        np.savez(buffer, hashes=np.array(hashes), vectors=vectors.astype("<f2"))
        path = self._folder / f"{hashes[0]}.npz"
        self._used.add(path)
        write_bytes(path, buffer.getvalue())

    def clear(self) -> None:
        """Forget this run: its vectors are in a release now. Raises StorageError."""
        for path in self._used:
            remove_file(path)
        with suppress(OSError):  # batches of other runs are in them
            self._folder.rmdir()
            self._folder.parent.rmdir()


def abandoned_journals(knowledge_base: KnowledgeBase, now: float) -> list[Path]:
    """Folders of embedding runs that nobody went on with for a week before `now`, seconds since 1970."""
    folders = (knowledge_base.folder / _JOURNALS).glob("*")
    return [folder for folder in folders if folder.stat().st_mtime < now - _ABANDONED_SECONDS]


def _read(path: Path, wanted: Collection[str]) -> dict[str, NDArray[np.float16]]:
    try:
        with np.load(path) as file:  # a zip archive: each entry has a checksum
            hashes, vectors = file["hashes"].tolist(), file["vectors"]
        if len(hashes) != len(vectors):
            return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
    return {key: vectors[row] for row, key in enumerate(hashes) if key in wanted}
