"""What a release is called on a page: its message and its date, for an id tells nobody anything."""

from dataclasses import dataclass

from api import visible
from api.access import Session
from knowledge_base.errors import NotFoundError
from knowledge_base.history import describe_commit


@dataclass(frozen=True)
class Named:
    """A release as people know it; `date` is empty where it is no longer kept."""

    commit: str
    date: str = ""
    message: str = ""

    @property
    def title(self) -> str:
        """The first line of its message; where documents are closed to the caller, nothing is said of it."""
        return self.message.strip().split("\n")[0] or "A release"


def named(at: Session, ref: str) -> Named:
    """The release that a ref names; one that is gone since has its id alone."""
    repository = at.knowledge_base.repository
    try:
        entry = describe_commit(repository.get_commit(repository.resolve(ref)))
    except NotFoundError:
        return Named(ref)
    return Named(**visible.log_entry(at, dict(entry)))
