"""What an ingest found in documents that a reader should know of, kept with the release by document."""

from typing import Any, Literal

from pydantic import ValidationError

from knowledge_base.documents import sha256_hex
from knowledge_base.errors import DamagedError
from knowledge_base.values import Frozen
from knowledge_base.version_store import Repository

Kind = Literal["order", "unseen characters", "hidden text", "comment", "not inspected"]
Severity = Literal["alarm", "notice"]


class Finding(Frozen):
    """One thing that was found in a document.

    An `order` is a sentence that tells a language model what to do; the other kinds are text that somebody
    who opens the document does not see. An alarm keeps a document out where `ingest.quarantine` is set.
    `place` says where: characters of the extracted text, or a part of the source.
    """

    kind: Kind
    severity: Severity
    place: str
    excerpt: str


class Inspection(Frozen):
    """What was found in one document: in the bytes with this hash."""

    path: str
    sha256: str
    findings: tuple[Finding, ...]

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that keep a document out where that is asked for."""
        return tuple(finding for finding in self.findings if finding.severity == "alarm")

    @property
    def name(self) -> str:
        """The name it is kept under: no document path is too long or too odd for it."""
        return f"{sha256_hex(self.path.encode())[:32]}.json"

    def as_json(self) -> list[dict[str, Any]]:
        """Plain values, one for each finding."""
        return [{"path": self.path, **finding.model_dump()} for finding in self.findings]


def read_inspections(repository: Repository, commit: str, prefix: str) -> dict[str, Inspection]:
    """What a commit keeps below FINDINGS_PREFIX or QUARANTINE_PREFIX, by object path.

    Raises:
        DamagedError: A record cannot be read.
    """
    found = {}
    for item in repository.list_objects(commit, prefix=prefix):
        try:
            found[item.path] = Inspection.model_validate_json(repository.get_object(commit, item.path))
        except ValidationError as error:
            raise DamagedError(
                f"{item.path} of {commit[:12]} cannot be read.", hint="`rag ingest --reindex` makes it anew."
            ) from error
    return found
