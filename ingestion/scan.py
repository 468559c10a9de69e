"""What an ingest is asked, what it finds in the sources, and what it says in the end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ingestion.sources import Sources
from knowledge_base.documents import Document, sha256_hex
from knowledge_base.errors import DocumentError, QuarantinedError
from knowledge_base.findings import Inspection
from knowledge_base.home import MAIN
from knowledge_base.release import DocumentChanges, order_paths

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, how many more are done, how many there are when known)."""

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    `prune` deletes documents that the sources no longer hold; by sources that hold nothing, which would
    delete every document, only with `allow_empty`. `delete` names documents to delete, whatever the
    sources hold. `reindex` makes the index anew from the stored
    documents and needs nothing of the old one: it may be damaged.
    """

    branch: str = MAIN
    prune: bool = False
    allow_empty: bool = False
    delete: tuple[str, ...] = ()
    reindex: bool = False
    dry_run: bool = False
    strict: bool = False
    max_bytes: int = 100 * MEGABYTE
    message: str | None = None


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did, or with `dry_run` would do."""

    commit: str
    branch: str
    published: bool
    documents: DocumentChanges
    unchanged: int
    failed: tuple[tuple[str, str], ...]
    chunks: dict[str, int]
    embedded: int = 0
    reused: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    verdict: str = ""
    changed: tuple[str, ...] = ()
    dry_run: bool = False
    gate: dict[str, Any] = field(default_factory=dict)
    inspections: tuple[Inspection, ...] = ()
    """Of the documents that were read, those in which something was found."""
    quarantined: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of `rag ingest --json`."""
        return {
            "commit": self.commit,
            "branch": self.branch,
            "published": self.published,
            "documents": {
                **self.documents.as_json(),
                "unchanged": self.unchanged,
                "failed": [{"path": path, "reason": reason} for path, reason in self.failed],
                "quarantined": list(self.quarantined),
            },
            "findings": [finding for found in self.inspections for finding in found.as_json()],
            "chunks": self.chunks,
            "embedded": self.embedded,
            "reused": self.reused,
            "bytes_written": self.bytes_written,
            "seconds": self.seconds,
            "verdict": self.verdict,
            "changed": list(self.changed),
            "dry_run": self.dry_run,
            "gate": self.gate,
        }


@dataclass
class Scan:
    """Sources held against a release: what is new, what differs, what is gone."""

    documents: list[Document] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)


def scan_sources(
    known: dict[str, str],
    sources: Sources,
    options: IngestOptions,
    progress: Progress,
    *,
    accept: Callable[[str, bytes], Document],
) -> Scan:
    """Read every source once; `accept` makes a document of what is new. Files that fail are in the result.

    So are those that `accept` puts in quarantine; the version of such a document that is known stays.
    """
    scan = Scan(failed=list(sources.skipped))
    present = {path for path, _ in sources.skipped}
    for source in sources.files:
        path = source.path
        present.add(path)
        try:
            content = source.read(options.max_bytes)
            digest = sha256_hex(content)
            if known.get(path) == digest:
                scan.unchanged += 1
            else:
                scan.documents.append(accept(path, content))
                scan.changed.append(path) if path in known else scan.added.update({path: digest})
        except QuarantinedError:
            scan.quarantined.append(path)
        except DocumentError as error:
            scan.failed.append((path, error.message))
        progress("read", 1, len(sources.files))
    gone = {path for path in options.delete if path in known}
    scan.failed += [(path, "there is no such document") for path in options.delete if path not in known]
    if options.prune:
        gone |= {path for path in known if path.startswith(sources.prefix) and path not in present}
    scan.deleted = list(order_paths(gone))
    return scan
