"""OpenAI's chat completions over a knowledge base, for clients that speak nothing else.

A model is the knowledge base by name, or `name@ref`. The last user message is the question, those before it
are the conversation; system messages and sampling parameters have no effect, because the release decides how
it answers. Citations come as `annotations`, and the whole answer in the extra field `plumbline`.
"""

import json
import time
from collections.abc import Generator, Iterable
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, StrictBool

from api.access import Session, Visit, Visitor
from api.answering import RELEASE_HEADER, Begun, EventStream, record
from api.problems import openai_error, problem_of
from knowledge_base.errors import NotFoundError, PlumblineError, UsageError
from knowledge_base.home import MAIN
from rag.answer import Answer, Event, Turn


class Part(BaseModel):
    """A part of a message; only text counts."""

    type: str
    text: str = ""


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """Its text, parts joined."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class StreamOptions(BaseModel):
    """What a stream has besides the text."""

    include_usage: StrictBool = False


class Completion(BaseModel):
    """The body of a request; other fields of OpenAI's are accepted and have no effect."""

    model: str = Field(min_length=1, max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=200)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None


def openai_routes() -> APIRouter:
    """The routes; a model's name says which knowledge base."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def models(visit: Visitor) -> dict[str, Any]:
        made = {"object": "model", "created": 0, "owned_by": "plumbline"}
        return {"object": "list", "data": [{"id": name, **made} for at in visit for name in _models(at)]}

    @router.post("/chat/completions", response_model=None)
    def complete(body: Completion, request: Request, visit: Visitor) -> Response:
        at, ref = _meant(body.model, visit)
        engine = at.engine(ref)
        question, history = _conversation(body.messages)
        links = str(request.base_url)
        if not body.stream:
            answer = engine.ask(question, history=history)
            record(at, answer)
            headers = {RELEASE_HEADER: engine.release_ref.commit}
            return JSONResponse(_whole(body.model, answer, links), headers=headers)
        begun = Begun(at, engine, question, engine.stream(question, history=history))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(begun, _chunks(body.model, begun, links, usage))

    return router


def _models(at: Session) -> list[str]:
    return [at.name, *(f"{at.name}@{ref}" for ref in at.hosted.live.refs() if ref != MAIN)]


def _meant(model: str, visit: Visit) -> tuple[Session, str]:
    name, _, ref = model.partition("@")
    try:
        return visit.session(name), ref or MAIN
    except NotFoundError as error:
        raise NotFoundError("model", model, hint=f"{error.hint} A release of it is NAME@REF.") from error


def _conversation(messages: list[Message]) -> tuple[str, list[Turn]]:
    """The question, and the turns before it that have both a question and an answer."""
    said = [message for message in messages if message.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        raise UsageError("The last message is not the user's.", hint="End the conversation with a question.")
    turns = [
        Turn(question=asked.text, answer=answered.text)
        for asked, answered in zip(said, said[1:], strict=False)
        if (asked.role, answered.role) == ("user", "assistant")
    ]
    return said[-1].text, turns


def _whole(model: str, answer: Answer, links: str) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": answer.answer + _left_open(answer),
        "refusal": None,
        "annotations": _annotations(answer, links),
    }
    return {
        **_frame(model, answer.id, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": _usage(answer),
        "plumbline": answer.as_json(),
    }


def _chunks(model: str, events: Iterable[Event], links: str, usage: bool) -> Generator[str, None, None]:
    name = f"stream-{time.time_ns():x}"

    def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**_frame(model, name, "chat.completion.chunk"), "choices": [choice], **extra})

    yield chunk({"role": "assistant", "content": ""})
    try:
        for event in events:
            if event.event == "text":
                yield chunk({"content": event.text})
            elif event.event == "restart":
                # The protocol cannot take text back, so the reader is told.
                yield chunk(
                    {"content": f"\n\n({event.attempt.model} failed; what stands above does not count.)\n\n"}
                )
            elif event.event == "done":
                if left := _left_open(event.answer):
                    yield chunk({"content": left})
                annotations = _annotations(event.answer, links)
                yield chunk({"annotations": annotations}, "stop", plumbline=event.answer.as_json())
                if usage:
                    frame = _frame(model, name, "chat.completion.chunk")
                    yield _data({**frame, "choices": [], "usage": _usage(event.answer)})
    except PlumblineError as error:
        yield _data({"error": openai_error(problem_of(error))})
    yield "data: [DONE]\n\n"


def _left_open(answer: Answer) -> str:
    """What a reader of nothing but the text must know of it: the questions that were not answered."""
    return "".join(f"\n\n(No supported answer to: {part})" for part in answer.unanswered)


def _frame(model: str, name: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{name}", "object": kind, "created": int(time.time()), "model": model}


def _annotations(answer: Answer, links: str) -> list[dict[str, Any]]:
    """Where each marker stands in the text, and an absolute address of what it cites."""
    found = []
    for citation in answer.citations:
        marker = f"[{citation.marker}]"
        start = answer.answer.find(marker)
        address = (
            f"{links}v1/documents/{quote(citation.path)}?ref={citation.commit}"
            f"&start={citation.start}&end={citation.end}"
        )
        place = {"start_index": start, "end_index": start + len(marker)}
        about = {"url": address, "title": citation.path, **place}
        found.append({"type": "url_citation", "url_citation": about})
    return found


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.usage.input_tokens, answer.usage.output_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
