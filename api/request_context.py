"""What belongs to the request under way, at every point of its work: its id, who takes note of answers."""

from contextvars import ContextVar
from typing import Protocol

from rag.answer import Answer

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Its id; empty outside a request."""
WITNESS: ContextVar["Witness | None"] = ContextVar("witness", default=None)
"""Who takes note of its answers."""
VERIFIED_KEY = "plumbline.verified_key"
"""In a request's scope: the id of the key in its Authorization header, once it was found to be one."""


class Witness(Protocol):
    """Takes note of what becomes of questions."""

    def answered(self, kb: str, answer: Answer) -> None:
        """A knowledge base has given an answer."""

    def unfinished(self, kb: str, release: str, question: str) -> None:
        """Nobody waited for the end of one: its client left, or its time was over."""


def answered(kb: str, answer: Answer) -> None:
    """Say that a knowledge base has given an answer."""
    if witness := WITNESS.get():
        witness.answered(kb, answer)


def unfinished(kb: str, release: str, question: str) -> None:
    """Say that nobody waited for the end of an answer."""
    if witness := WITNESS.get():
        witness.unfinished(kb, release, question)
