"""Sources in, a release out: read, split, embed what is new, write one segment, commit, gate, publish.

Nothing that readers can see moves before the last step. A failed or killed ingest leaves the branch
where it was; what it had written is unreachable and its work branch is swept by the next one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ingestion.chunking import Chunker
from ingestion.readers import extract
from ingestion.scan import IngestOptions, IngestResult, Progress, Scan, scan_sources
from ingestion.sources import Sources
from knowledge_base.difference import document_changes
from knowledge_base.documents import Chunk, Document, sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.errors import (
    CheckFailedError,
    HeadMovedError,
    NoChangesError,
    NotFoundError,
    SettingsError,
    SourceError,
)
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.index import IndexDraft, write_index
from knowledge_base.lexical import Analyzer
from knowledge_base.lifecycle import Gate, Landing, land, release_metadata, work_branch
from knowledge_base.prompts import check_prompts
from knowledge_base.release import (
    DOCUMENTS_PREFIX,
    GOLDEN_PREFIX,
    PROMPTS_PREFIX,
    SETTINGS_PATH,
    DocumentChanges,
    Manifest,
    Release,
    SegmentRef,
    changed_parts,
    order_paths,
)
from knowledge_base.renames import find_renames
from knowledge_base.segments import write_segment
from knowledge_base.snapshot import Snapshot, count_chunk_changes
from knowledge_base.vectors import Journal, find_vectors
from knowledge_base.version_store import Repository, Transaction

__all__ = ["IngestOptions", "IngestResult", "ingest"]

_ATTEMPTS = 3
_BATCH = 512


@dataclass
class _Work:
    """What the new segment will hold, and what is left of the old ones."""

    chunks: list[Chunk]
    vectors: dict[str, Any]
    texts: dict[str, str]
    reused: int
    kept: tuple[SegmentRef, ...]


def ingest(
    knowledge_base: KnowledgeBase,
    sources: Sources,
    options: IngestOptions,
    *,
    gate: Gate | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> IngestResult:
    """Bring `options.branch` up to date with `sources`; without a `gate` it publishes unjudged.

    Raises:
        CheckFailedError: `strict`, and a file could not be read; nothing was published.
        LockedError: Another command is writing.
        HeadMovedError: The branch kept moving, three times; nothing was published.
        SourceError: Pruning by sources that hold nothing.
        SettingsError: plumbline.toml asks for what cannot be.
        StorageError: The disk refused; nothing was published.
    """
    started = time.monotonic()
    with knowledge_base.writing():
        for attempt in range(_ATTEMPTS):
            try:
                return _Ingest(knowledge_base, options, progress, started).run(sources, gate)
            except HeadMovedError:
                # Somebody pushed with git. Starting over from the new head is what a person would do.
                if attempt == _ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


class _Ingest:
    """One run; a class only because the steps share these six things."""

    def __init__(
        self, knowledge_base: KnowledgeBase, options: IngestOptions, progress: Progress, started: float
    ) -> None:
        self.knowledge_base = knowledge_base
        self.repository: Repository = knowledge_base.repository
        self.options = options
        self.progress = progress
        self.started = started
        self.bytes_written = 0

    def run(self, sources: Sources, gate: Gate | None) -> IngestResult:
        """Prepare the candidate on a work branch, judge it, publish it."""
        self.settings = self.knowledge_base.settings()
        if self.options.prune and not sources.files and not self.options.allow_empty:
            raise SourceError(
                "The sources hold nothing to read; --prune would delete every document.",
                hint="Is a folder not mounted? Say --allow-empty if it is meant.",
            )
        Analyzer(self.settings.retrieval.language)  # an unknown language is refused before any work
        self.files = self.knowledge_base.working_files()
        check_prompts(self._prompts(), self.settings)
        head = self._head()
        self.parent, self.known = self._parent(head)
        self.embedder: Embedder = self.knowledge_base.embedder(self.settings.embedder)
        self.journal = Journal(self.knowledge_base, self.embedder.fingerprint)
        # Two tokens of the limit are the special ones that the embedder adds.
        limit = self.embedder.max_tokens - 2
        if self.settings.chunker.size > limit:
            raise SettingsError(
                f"chunker.size is {self.settings.chunker.size}, but {self.settings.embedder.model} reads "
                f"{limit} tokens.",
                hint=f"Set it to {limit} or less in plumbline.toml.",
            )
        self.chunker = Chunker(self.settings.chunker, self.embedder.tokenize, limit=limit)
        if self.options.dry_run:
            return self._build(sources, head, None)
        with work_branch(self.repository, head) as work:
            transaction = self.repository.transact(work, message="Ingest", allow_empty=True)
            with transaction:
                result = self._build(sources, head, transaction)
            if not result.changed:
                return result
            return self._publish(result, work, head, transaction, gate)

    def _head(self) -> str:
        try:
            return self.repository.get_branch(self.options.branch).commit_id
        except NotFoundError:
            if self.options.dry_run:
                return self.repository.resolve(MAIN)
            return self.repository.create_branch(self.options.branch, MAIN).commit_id

    def _parent(self, head: str) -> tuple[Snapshot, dict[str, str]]:
        """The release to start from, and the hash of each of its documents."""
        if not self.options.reindex:
            snapshot = self.knowledge_base.snapshot(head)
            return snapshot, snapshot.hashes()
        release = Release(commit=head, settings=self.settings, manifest=Manifest(), prompts=self._prompts())
        stored = self.repository.list_objects(head, prefix=DOCUMENTS_PREFIX)
        known = {
            item.path.removeprefix(DOCUMENTS_PREFIX): sha256_hex(self.repository.get_object(head, item.path))
            for item in stored
        }
        return Snapshot(release, []), known

    def _build(self, sources: Sources, head: str, transaction: Transaction | None) -> IngestResult:
        scan = scan_sources(
            self.known, sources, self.options, self.progress, accept=self._accept(transaction)
        )
        if scan.failed and self.options.strict:
            path, reason = scan.failed[0]
            raise CheckFailedError(
                f"{len(scan.failed)} file(s) could not be read, first {path}: {reason}",
                hint="Nothing was published. Mend or exclude them, or run without --strict.",
            )
        changes = self._changes(scan, transaction)
        old = self.parent.release
        embedder_changed = bool(old.manifest.segments) and old.manifest.embedder != dict(
            self.embedder.fingerprint
        )
        chunker_changed = bool(old.manifest.segments) and old.manifest.chunker != dict(
            self.chunker.fingerprint
        )
        parts = changed_parts(
            old,
            self.settings,
            self._prompts(),
            corpus=bool(changes),
            chunker=chunker_changed,
            embedder=embedder_changed,
        )
        if self.options.reindex:
            parts.append("index")
        empty = not (scan.documents or self.known)
        if empty or not self._differs(old, parts):
            return self._result(head, scan, changes, self.parent, self.parent, 0, 0, ())
        documents = scan.documents
        fresh = chunker_changed or embedder_changed or self.options.reindex
        if fresh:
            documents = documents + self._stored(scan, changes)
        work = self._split(
            documents,
            fresh=fresh,
            same_space=not embedder_changed,
            changes=changes,
        )
        embedded = len(work.texts)
        if transaction is None:
            return self._result(
                head, scan, changes, self.parent, None, embedded, work.reused, tuple(parts), work
            )
        snapshot = self._write(transaction, documents, changes, work)
        transaction.message = self.options.message or _message(changes, parts)
        result = self._result(
            head, scan, changes, self.parent, snapshot, embedded, work.reused, tuple(parts or ["golden"])
        )
        transaction.metadata.update(release_metadata(changes, result.chunks, list(result.changed), snapshot))
        transaction.metadata.update(embedded=str(embedded), reused=str(work.reused))
        return result

    def _accept(self, transaction: Transaction | None) -> Callable[[str, bytes], Document]:
        def accept(path: str, content: bytes) -> Document:
            extracted = extract(path, content)
            if transaction is not None:
                self._upload(transaction, DOCUMENTS_PREFIX + path, content)
            return Document(
                path, sha256_hex(content), len(content), extracted.title, extracted.text, extracted.sections
            )

        return accept

    def _upload(self, transaction: Transaction, path: str, content: bytes) -> None:
        transaction.upload(path, content)
        self.bytes_written += len(content)

    def _changes(self, scan: Scan, transaction: Transaction | None) -> DocumentChanges:
        known = self.known
        texts = {document.path: document.text.encode() for document in scan.documents}
        renamed: list[tuple[str, str]] = []
        if scan.deleted and scan.added:
            renamed = find_renames(
                {path: known[path] for path in scan.deleted},
                scan.added,
                lambda path: self.repository.get_object(self.parent.release.commit, DOCUMENTS_PREFIX + path),
                # A dry run keeps no bytes; the extracted text is close enough for a plan.
                lambda path: transaction.get_object(DOCUMENTS_PREFIX + path) if transaction else texts[path],
            )
        return document_changes(list(scan.added), scan.changed, scan.deleted, renamed)

    def _prompts(self) -> dict[str, str]:
        return {
            path.removeprefix(PROMPTS_PREFIX): content.decode()
            for path, content in self.files.items()
            if path.startswith(PROMPTS_PREFIX)
        }

    def _differs(self, old: Release, parts: Sequence[str]) -> bool:
        """Whether a commit would change anything: a part of the release, or only golden questions."""
        if parts:
            return True
        committed = {path: self.repository.get_object(old.commit, path) for path in self._committed_files()}
        return committed != self.files

    def _committed_files(self) -> list[str]:
        """Paths of the working files as the parent has them."""
        commit = self.parent.release.commit
        prefixes = (SETTINGS_PATH, PROMPTS_PREFIX, GOLDEN_PREFIX)
        return [
            item.path for prefix in prefixes for item in self.repository.list_objects(commit, prefix=prefix)
        ]

    def _stored(self, scan: Scan, changes: DocumentChanges) -> list[Document]:
        """Every document that stays as it is, read again from the commit: its sources need not be at hand."""
        gone = {*changes.deleted, *(old for old, _ in changes.renamed), *(d.path for d in scan.documents)}
        paths = [path for path in order_paths(self.known) if path not in gone]
        documents = []
        for path in paths:
            content = self.repository.get_object(self.parent.release.commit, DOCUMENTS_PREFIX + path)
            extracted = extract(path, content)
            documents.append(
                Document(
                    path,
                    sha256_hex(content),
                    len(content),
                    extracted.title,
                    extracted.text,
                    extracted.sections,
                )
            )
            self.progress("read stored documents", 1, len(paths))
        return documents

    def _split(
        self, documents: Sequence[Document], *, fresh: bool, same_space: bool, changes: DocumentChanges
    ) -> _Work:
        chunks: list[Chunk] = []
        for document in documents:
            chunks.extend(self.chunker.split(document))
            self.progress("split", 1, len(documents))
        texts = {chunk.text_hash: chunk.text for chunk in chunks}
        here = self.parent.passage_hashes() if same_space else set()
        reused = {text_hash for text_hash in texts if text_hash in here}
        if fresh:
            vectors = self.parent.vectors_by_hash(reused) if same_space else {}
            kept: tuple[SegmentRef, ...] = ()
        else:
            vectors = {}
            kept = _bury(self.parent, changes)
        new = {text_hash: text for text_hash, text in texts.items() if text_hash not in reused}
        if new:
            known = {ref.id for ref in self.parent.release.manifest.segments}
            vectors |= find_vectors(self.knowledge_base, new.keys(), self.embedder.fingerprint, known)
            vectors |= self.journal.load(new.keys())
        new = {text_hash: text for text_hash, text in new.items() if text_hash not in vectors}
        return _Work(chunks, dict(vectors), new, len(texts) - len(new), kept)

    def _embed(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Vectors by text hash, in batches that a killed run need not compute again."""
        order = list(texts)
        vectors: dict[str, Any] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            done = self.embedder.embed_documents(
                [texts[key] for key in batch], lambda n: self.progress("embed", n, len(order))
            )
            vectors.update(zip(batch, done, strict=True))
            if len(order) > _BATCH:
                self.journal.save(batch, done)
        return vectors

    def _write(
        self, transaction: Transaction, documents: Sequence[Document], changes: DocumentChanges, work: _Work
    ) -> Snapshot:
        manifest = Manifest(embedder=dict(self.embedder.fingerprint), chunker=dict(self.chunker.fingerprint))
        release = Release(commit="", settings=self.settings, manifest=manifest, prompts=self._prompts())
        opened = {segment.id: segment for segment in self.parent.segments}
        draft = IndexDraft(self.knowledge_base, release, [(ref, opened[ref.id]) for ref in work.kept])
        if documents:
            vectors = work.vectors | self._embed(work.texts)
            draft.add(write_segment(documents, work.chunks, vectors))
        for path in (*changes.deleted, *(old for old, _ in changes.renamed)):
            transaction.delete(DOCUMENTS_PREFIX + path)
        snapshot, written = write_index(draft, transaction, progress=self.progress)
        self.bytes_written += written
        self._write_working_files(transaction)
        return snapshot

    def _write_working_files(self, transaction: Transaction) -> None:
        for path in self._committed_files():
            if path not in self.files:
                transaction.delete(path)
        for path, content in self.files.items():
            transaction.upload(path, content)

    def _publish(
        self, result: IngestResult, work: str, head: str, transaction: Transaction, gate: Gate | None
    ) -> IngestResult:
        if gate is not None:
            self.progress("evaluate", 0, None)
        try:
            landing = land(
                self.repository,
                work,
                self.options.branch,
                head=head,
                message=transaction.message,
                metadata=transaction.metadata,
                gate=gate,
                squash=True,
            )
        except NoChangesError:
            if not self.options.reindex:
                raise
            # The new index has the bytes of the old one: what was damaged is whole again, in place.
            verdict = self.repository.get_commit(head).metadata.get("verdict", "")
            landing = Landing(head, self.options.branch, True, verdict)
        self.journal.clear()
        return replace(
            result,
            commit=landing.commit,
            branch=landing.branch,
            published=landing.published,
            verdict=landing.verdict,
            gate=landing.gate,
            seconds=round(time.monotonic() - self.started, 3),
        )

    def _result(
        self,
        head: str,
        scan: Scan,
        changes: DocumentChanges,
        before: Snapshot,
        after: Snapshot | None,
        embedded: int,
        reused: int,
        parts: tuple[str, ...],
        work: _Work | None = None,
    ) -> IngestResult:
        if after is not None:
            chunks = count_chunk_changes(before, after)
        else:
            split = {chunk.id for chunk in work.chunks} if work else set()
            chunks = {"added": len(split - before.chunk_ids()) if split else 0}
        return IngestResult(
            commit=head,
            branch=self.options.branch,
            published=False,
            documents=changes,
            unchanged=scan.unchanged,
            failed=tuple(scan.failed),
            chunks=chunks,
            embedded=embedded,
            reused=reused,
            bytes_written=self.bytes_written,
            seconds=round(time.monotonic() - self.started, 3),
            verdict="",
            changed=parts,
            dry_run=self.options.dry_run,
        )


def _bury(parent: Snapshot, changes: DocumentChanges) -> tuple[SegmentRef, ...]:
    """The parent's segments with tombstones for every document that changed or went."""
    dead = {*changes.changed, *changes.deleted, *(old for old, _ in changes.renamed)}
    refs = []
    for ref, segment in zip(parent.release.manifest.segments, parent.segments, strict=True):
        buried = {path for path in segment.documents["path"] if path in dead} | set(ref.tombstones)
        refs.append(ref.without(buried))
    return tuple(refs)


def _message(changes: DocumentChanges, parts: Iterable[str]) -> str:
    counts = [
        f"{len(paths)} {verb}"
        for verb, paths in (
            ("added", changes.added),
            ("changed", changes.changed),
            ("deleted", changes.deleted),
            ("renamed", changes.renamed),
        )
        if paths
    ]
    if counts:
        return f"Ingest: {', '.join(counts)} document(s)"
    return f"Change {', '.join(parts) or 'golden questions'}"
