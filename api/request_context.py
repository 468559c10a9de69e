"""What belongs to the request under way, at every point of its work: its id, who takes note of answers."""

from collections.abc import Callable
from contextvars import ContextVar

from rag.answer import Answer

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Its id; empty outside a request."""
ON_ANSWER: ContextVar[Callable[[str, Answer], None] | None] = ContextVar("on_answer", default=None)
"""Called with a knowledge base's name and each answer that it gives."""

VERIFIED_KEY = "plumbline.verified_key"
"""In a request's scope: the id of the key in its Authorization header, once it was found to be one."""


def answered(kb: str, answer: Answer) -> None:
    """Say that a knowledge base has given an answer."""
    if take_note := ON_ANSWER.get():
        take_note(kb, answer)
