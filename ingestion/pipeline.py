"""Sources in, a release out: read, split, embed what is new, write one segment, commit, gate, publish.

Nothing that readers can see moves before the last step. A failed or killed ingest leaves the branch
where it was; what it had written is unreachable and its work branch is swept by the next one.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ingestion.chunking import Chunker
from ingestion.passages import Passages, embed, find_passages
from ingestion.quarantine import Quarantine
from ingestion.readers import read_document
from ingestion.scan import IngestOptions, IngestResult, Progress, Scan, scan_sources
from ingestion.sources import Sources
from knowledge_base.configuration import Settings, settings_in
from knowledge_base.difference import document_changes
from knowledge_base.documents import Chunk, Document, sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.errors import (
    CheckFailedError,
    DocumentError,
    HeadMovedError,
    NoChangesError,
    NotFoundError,
    SettingsError,
    SourceError,
)
from knowledge_base.home import MAIN, KnowledgeBase, check_branch
from knowledge_base.index import IndexDraft, bury, write_index
from knowledge_base.lexical import Analyzer
from knowledge_base.lifecycle import Gate, Landing, land, release_metadata, work_branch
from knowledge_base.prompts import check_prompts
from knowledge_base.release import (
    DOCUMENTS_PREFIX,
    GOLDEN_PREFIX,
    DocumentChanges,
    Manifest,
    Release,
    SegmentRef,
    changed_parts,
    committed_files,
    order_paths,
    prompts_in,
)
from knowledge_base.renames import find_renames
from knowledge_base.segment_tables import write_segment
from knowledge_base.segments import Segment
from knowledge_base.snapshot import Snapshot, count_chunk_changes
from knowledge_base.vectors import Journal
from knowledge_base.version_store import Transaction

__all__ = ["IngestOptions", "IngestResult", "ingest"]

_ATTEMPTS = 3
_REINDEXED = "index"
_ANEW = {"chunker", "embedder", _REINDEXED}
"""Changes after which nothing of the old index is kept."""


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
        InvalidNameError: `options.branch` is no name for a branch.
        DocumentError: A stored document, needed to make the index anew, can no longer be read.
        StorageError: The disk refused; nothing was published.
    """
    if options.prune and not sources.files and not options.allow_empty:
        raise SourceError(
            "The sources hold nothing to read; --prune would delete every document.",
            hint="Is a folder not mounted? Say --allow-empty if it is meant.",
        )
    started = time.monotonic()
    with knowledge_base.writing():
        for attempt in range(_ATTEMPTS):
            try:
                result = _Ingest(knowledge_base, options, progress).run(sources, gate)
                return replace(result, seconds=round(time.monotonic() - started, 3))
            except HeadMovedError:
                # Somebody pushed with git. Starting over from the new head is what a person would do.
                if attempt == _ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


class _Ingest:
    """One attempt: from where it starts, with what tools, towards which release.

    `known` are the hashes of the documents that the branch holds, `target` is the release that the files
    on disk ask for, still without segments.
    """

    def __init__(self, knowledge_base: KnowledgeBase, options: IngestOptions, progress: Progress) -> None:
        self.knowledge_base = knowledge_base
        self.repository = knowledge_base.repository
        self.options = options
        self.progress = progress
        self.bytes_written = 0
        self.files = knowledge_base.working_files()
        settings = settings_in(self.files)
        prompts = prompts_in(self.files)
        Analyzer(settings.retrieval.language)  # an unknown language is refused before any work
        check_prompts(prompts, settings)
        self.embedder: Embedder = knowledge_base.embedder(settings.embedder)
        self.chunker = _chunker(settings, self.embedder)
        self.quarantine = Quarantine(keep_out=settings.ingest.quarantine)
        self.journal = Journal(knowledge_base, self.embedder.fingerprint)
        manifest = Manifest(embedder=dict(self.embedder.fingerprint), chunker=dict(self.chunker.fingerprint))
        self.target = Release(commit="", settings=settings, manifest=manifest, prompts=prompts)
        self.head = self._head()
        self.parent, self.known = self._parent()

    def run(self, sources: Sources, gate: Gate | None) -> IngestResult:
        """Prepare the candidate on a work branch, judge it, publish it."""
        if self.options.dry_run:
            return self._build(sources, None)
        with work_branch(self.repository, self.head) as work:
            transaction = self.repository.transact(work, message="Ingest", allow_empty=True)
            with transaction:
                result = self._build(sources, transaction)
            return self._publish(result, work, transaction, gate) if result.changed else result

    def _head(self) -> str:
        try:
            return self.repository.get_branch(check_branch(self.options.branch)).commit_id
        except NotFoundError:
            if self.options.dry_run:
                return self.repository.resolve(MAIN)
            return self.repository.create_branch(self.options.branch, MAIN).commit_id

    def _parent(self) -> tuple[Snapshot, dict[str, str]]:
        """The release to start from, and the hash of each of its documents."""
        if not self.options.reindex:
            snapshot = self.knowledge_base.snapshot(self.head)
            return snapshot, snapshot.hashes()
        bare = self.target.model_copy(update={"commit": self.head, "manifest": Manifest()})
        paths = [item.path for item in self.repository.list_objects(self.head, prefix=DOCUMENTS_PREFIX)]
        known = {
            path.removeprefix(DOCUMENTS_PREFIX): sha256_hex(self.repository.get_object(self.head, path))
            for path in paths
        }
        return Snapshot(bare, []), known

    # -- the candidate -------------------------------------------------------------------------

    def _build(self, sources: Sources, transaction: Transaction | None) -> IngestResult:
        """What to publish, staged in the transaction; without one, the plan of it."""
        scan = self._scan(sources, transaction)
        changes = self._changes(scan, transaction)
        changed = self._changed(scan, changes)
        if not changed:
            return self._result(scan, changes, chunks=count_chunk_changes(self.parent, self.parent))
        documents, anew = scan.documents, not _ANEW.isdisjoint(changed)
        if anew:
            documents = documents + self._stored(scan, changes)
        passages = find_passages(
            self.knowledge_base,
            self.parent,
            self._split(documents),
            self.embedder.fingerprint,
            self.journal,
            keep=not anew,
        )
        counts = {"embedded": len(passages.missing), "reused": passages.reused}
        if transaction is None:
            split = {chunk.id for chunk in passages.chunks}
            added = len(split - self.parent.chunk_ids()) if split else 0
            return self._result(scan, changes, chunks={"added": added}, changed=changed, **counts)
        kept = [] if anew else bury(self.parent, {*changes.changed, *changes.gone})
        snapshot = self._write(transaction, documents, passages, kept, changes)
        chunks = count_chunk_changes(self.parent, snapshot)
        transaction.message = self.options.message or _message(changes, changed)
        transaction.metadata.update(release_metadata(changes, chunks, list(changed), snapshot))
        transaction.metadata.update({name: str(count) for name, count in counts.items()})
        return self._result(scan, changes, chunks=chunks, changed=changed, **counts)

    def _scan(self, sources: Sources, transaction: Transaction | None) -> Scan:
        def accept(path: str, content: bytes) -> Document:
            document = read_document(path, content)
            self.quarantine.admit(document, content)
            if transaction is not None:
                transaction.upload(DOCUMENTS_PREFIX + path, content)
                self.bytes_written += len(content)
            return document

        self.seen = {source.path for source in sources.files} | {path for path, _ in sources.skipped}
        self.pruned = sources.prefix if self.options.prune else None
        scan = scan_sources(self.known, sources, self.options, self.progress, accept=accept)
        if scan.failed and self.options.strict:
            path, reason = scan.failed[0]
            raise CheckFailedError(
                f"{len(scan.failed)} file(s) could not be read, first {path}: {reason}",
                hint="Nothing was published. Mend or exclude them, or run without --strict.",
            )
        return scan

    def _changes(self, scan: Scan, transaction: Transaction | None) -> DocumentChanges:
        texts = {document.path: document.text.encode() for document in scan.documents}
        renamed: list[tuple[str, str]] = []
        if scan.deleted and scan.added:
            renamed = find_renames(
                {path: self.known[path] for path in scan.deleted},
                scan.added,
                lambda path: self.repository.get_object(self.head, DOCUMENTS_PREFIX + path),
                # A dry run keeps no bytes; the extracted text is close enough for a plan.
                lambda path: transaction.get_object(DOCUMENTS_PREFIX + path) if transaction else texts[path],
            )
        return document_changes(list(scan.added), scan.changed, scan.deleted, renamed)

    def _changed(self, scan: Scan, changes: DocumentChanges) -> tuple[str, ...]:
        """Which parts of the release a commit would change, none when it is not worth one."""
        if not (scan.documents or self.known):
            return ()
        parts = changed_parts(self.parent.release, self.target, corpus=bool(changes))
        if self.options.reindex:
            parts.append(_REINDEXED)
        if not parts and self.quarantine.differs(self.repository, self.head, self.seen, self.pruned):
            parts.append("findings")
        return tuple(parts or self._changed_beside(committed_files(self.repository, self.head)))

    def _changed_beside(self, released: Mapping[str, bytes]) -> list[str]:
        """What differs in files that decide no answer: golden questions, comments, the judge's prompt."""
        paths = {*released, *self.files}
        differing = [path for path in paths if released.get(path) != self.files.get(path)]
        golden = any(path.startswith(GOLDEN_PREFIX) for path in differing)
        return ["golden" if golden else "files"] if differing else []

    def _stored(self, scan: Scan, changes: DocumentChanges) -> list[Document]:
        """Every document that stays as it is, read again from the commit: its sources need not be at hand."""
        gone = {*changes.gone, *(document.path for document in scan.documents)}
        paths = [path for path in order_paths(self.known) if path not in gone]
        documents = []
        for path in paths:
            content = self.repository.get_object(self.head, DOCUMENTS_PREFIX + path)
            try:
                documents.append(read_document(path, content))
                self.quarantine.inspect_again(documents[-1], content)
            except DocumentError as error:
                raise DocumentError(
                    f"The stored document {path!r} can no longer be read: {error.message}.",
                    hint="Nothing was published. Ingest the sources without it and with --prune.",
                ) from error
            self.progress("read stored documents", 1, len(paths))
        return documents

    def _split(self, documents: Sequence[Document]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for document in documents:
            chunks.extend(self.chunker.split(document))
            self.progress("split", 1, len(documents))
        return chunks

    def _write(
        self,
        transaction: Transaction,
        documents: Sequence[Document],
        passages: Passages,
        kept: Sequence[tuple[SegmentRef, Segment]],
        changes: DocumentChanges,
    ) -> Snapshot:
        """Stage the index, the working files, and the removal of what is gone; the release it makes."""
        draft = IndexDraft(self.knowledge_base, self.target, list(kept))
        if documents:
            vectors = embed(passages.missing, self.embedder, self.journal, self.progress)
            draft.add(write_segment(documents, passages.chunks, {**passages.vectors, **vectors}))
        transaction.delete_objects(DOCUMENTS_PREFIX + path for path in changes.gone)
        self.quarantine.stage(
            transaction, self.repository, seen=self.seen, pruned=self.pruned, gone=changes.gone
        )
        snapshot, written = write_index(draft, transaction, progress=self.progress)
        self.bytes_written += written
        released = committed_files(self.repository, self.head)
        transaction.delete_objects(released.keys() - self.files.keys())
        for path, content in self.files.items():
            if released.get(path) != content:
                transaction.upload(path, content)
        return snapshot

    # -- the last step -------------------------------------------------------------------------

    def _publish(
        self, result: IngestResult, work: str, transaction: Transaction, gate: Gate | None
    ) -> IngestResult:
        if gate is not None:
            self.progress("evaluate", 0, None)
        try:
            landing = land(
                self.repository,
                work,
                self.options.branch,
                head=self.head,
                message=transaction.message,
                metadata=transaction.metadata,
                gate=gate,
                squash=True,
            )
        except NoChangesError:
            if not self.options.reindex:
                raise
            # The new index has the bytes of the old one: what was damaged is whole again, in place.
            verdict = self.repository.get_commit(self.head).metadata.get("verdict", "")
            landing = Landing(self.head, self.options.branch, True, verdict)
        self.journal.clear()
        return replace(
            result,
            commit=landing.commit,
            branch=landing.branch,
            published=landing.published,
            verdict=landing.verdict,
            gate=landing.gate,
        )

    def _result(self, scan: Scan, changes: DocumentChanges, **found: Any) -> IngestResult:
        return IngestResult(
            commit=self.head,
            branch=self.options.branch,
            published=False,
            documents=changes,
            unchanged=scan.unchanged,
            failed=tuple(scan.failed),
            bytes_written=self.bytes_written,
            dry_run=self.options.dry_run,
            inspections=self.quarantine.found,
            quarantined=tuple(scan.quarantined),
            **found,
        )


def _chunker(settings: Settings, embedder: Embedder) -> Chunker:
    # Two tokens of the limit are the special ones that the embedder adds.
    limit = embedder.max_tokens - 2
    if settings.chunker.size > limit:
        raise SettingsError(
            f"chunker.size is {settings.chunker.size}, but {settings.embedder.model} reads {limit} tokens.",
            hint=f"Set it to {limit} or less in plumbline.toml.",
        )
    return Chunker(settings.chunker, embedder.tokenize, limit=limit)


def _message(changes: DocumentChanges, changed: Iterable[str]) -> str:
    counts = [f"{count} {verb}" for verb, count in changes.counts().items() if count]
    if counts:
        return f"Ingest: {', '.join(counts)} document(s)"
    said = {"golden": "golden questions", "files": "what decides no answer", "findings": "what is kept out"}
    return f"Change {', '.join(said.get(part, part) for part in changed)}"
