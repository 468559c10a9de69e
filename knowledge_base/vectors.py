"""Vectors that exist already: of earlier releases, and of an embedding run that was killed."""

import io
import zipfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowledge_base.durable import remove_folder, write_bytes
from knowledge_base.errors import DamagedError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import Fingerprint, fingerprint_id, load_release
from knowledge_base.segments import Segment, open_segments

_RELEASES = 50


def find_vectors(
    knowledge_base: KnowledgeBase, wanted: Collection[str], embedder: Fingerprint, known: Collection[str]
) -> dict[str, NDArray[np.float16]]:
    """Vectors of those text hashes in the newest releases of main and the heads of all branches.

    Only what `embedder` made counts. Segments whose ids are in `known` are passed over.
    """
    repository = knowledge_base.repository
    commits = [commit.id for commit in repository.log(MAIN, first_parent=True, amount=_RELEASES)]
    commits += [branch.commit_id for branch in repository.list_branches()]
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
    """Finished batches of an embedding run, kept until its release is committed."""

    def __init__(self, knowledge_base: KnowledgeBase, embedder: Fingerprint) -> None:
        self._all = knowledge_base.folder / "embedding"
        self._folder = self._all / fingerprint_id(embedder)

    def load(self, wanted: Collection[str]) -> dict[str, NDArray[np.float16]]:
        """Vectors of those text hashes; a file that cannot be read counts as never written."""
        found: dict[str, NDArray[np.float16]] = {}
        for path in sorted(self._folder.glob("*.npz")):
            found.update(_read(path, wanted))
        return found

    def save(self, hashes: list[str], vectors: NDArray[np.float32]) -> None:
        """Keep one batch. Raises StorageError."""
        buffer = io.BytesIO()
        np.savez(buffer, hashes=np.array(hashes), vectors=vectors.astype("<f2"))
        write_bytes(self._folder / f"{hashes[0]}.npz", buffer.getvalue())

    def clear(self) -> None:
        """Forget every run: its vectors are in a release now."""
        if self._all.exists():
            remove_folder(self._all)


def _read(path: Path, wanted: Collection[str]) -> dict[str, NDArray[np.float16]]:
    try:
        with np.load(path) as file:  # a zip archive: each entry has a checksum
            hashes, vectors = file["hashes"].tolist(), file["vectors"]
        if len(hashes) != len(vectors):
            return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
    return {key: vectors[row] for row, key in enumerate(hashes) if key in wanted}
