"""What an ingest found in documents: kept with the release, and reason enough to keep a document out."""

from collections.abc import Collection, Iterable, Iterator

from ingestion.inspection import inspect
from knowledge_base.documents import Document
from knowledge_base.errors import QuarantinedError
from knowledge_base.findings import Inspection, read_inspections
from knowledge_base.release import FINDINGS_PREFIX, QUARANTINE_PREFIX, order_paths
from knowledge_base.values import canonical_json
from knowledge_base.version_store import Repository, Transaction


class Quarantine:
    """Inspects the documents of one ingest, and holds what was found in each."""

    def __init__(self, *, keep_out: bool) -> None:
        self._keep_out = keep_out
        self._admitted: dict[str, Inspection] = {}
        self._refused: dict[str, Inspection] = {}

    @property
    def found(self) -> tuple[Inspection, ...]:
        """The inspections that found something, admitted or not, by path."""
        both = {**self._admitted, **self._refused}
        return tuple(both[path] for path in order_paths(both) if both[path].findings)

    def admit(self, document: Document, content: bytes) -> None:
        """Inspect a document that comes from a source. Raises QuarantinedError."""
        inspection = inspect(document, content)
        if self._keep_out and inspection.alarms:
            self._refused[document.path] = inspection
            raise QuarantinedError(f"quarantined: {inspection.alarms[0].excerpt}")
        self._admitted[document.path] = inspection

    def inspect_again(self, document: Document, content: bytes) -> None:
        """Inspect a document of the release: it stays whatever is found."""
        self._admitted[document.path] = inspect(document, content)

    def differs(self, repository: Repository, head: str, seen: Collection[str], pruned: str | None) -> bool:
        """Whether other documents are kept out than the release at `head` says."""
        return bool(dict(self._refusals(repository, head, seen, pruned)))

    def stage(
        self,
        transaction: Transaction,
        repository: Repository,
        *,
        seen: Collection[str],
        pruned: str | None,
        gone: Iterable[str],
    ) -> None:
        """Keep what was found with the release that the transaction makes.

        `seen` are the paths of all sources, `gone` the documents that leave; below `pruned`, when it is
        not None, a source that is no longer there is forgotten.
        """
        head = transaction.base_commit_id
        wanted = dict(self._refusals(repository, head, seen, pruned))
        known = read_inspections(repository, head, FINDINGS_PREFIX)
        for path in gone:
            wanted[FINDINGS_PREFIX + Inspection(path=path, sha256="", findings=()).name] = None
        for inspection in self._admitted.values():
            wanted[FINDINGS_PREFIX + inspection.name] = inspection if inspection.findings else None
        for path, record in wanted.items():
            if record is not None:
                transaction.upload(path, canonical_json(record))
            elif path in known or path.startswith(QUARANTINE_PREFIX):
                transaction.delete(path)

    def _refusals(
        self, repository: Repository, head: str, seen: Collection[str], pruned: str | None
    ) -> Iterator[tuple[str, Inspection | None]]:
        """Records of the quarantine that are to be written, or with None deleted."""
        known = read_inspections(repository, head, QUARANTINE_PREFIX)
        for name, inspection in known.items():
            missing = inspection.path not in seen
            forgotten = missing and pruned is not None and inspection.path.startswith(pruned)
            if forgotten or (not missing and inspection.path not in self._refused):
                yield name, None
        for inspection in self._refused.values():
            name = QUARANTINE_PREFIX + inspection.name
            if known.get(name) != inspection:
                yield name, inspection
