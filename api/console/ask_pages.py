"""Asking: a question, its answer with the quoted passages, two releases side by side, what readers say."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from api.access import Reader, Session, Visitor, written_down
from api.answering import Begun, EventStream, as_events, record
from api.console.pages import PageRoute, page, see
from eval.golden_files import GoldenFiles
from eval.golden_generate import from_feedback
from knowledge_base.errors import NotFoundError, PlumblineError
from knowledge_base.home import MAIN
from rag.answer import Answer, Citation
from rag.answer_log import Feedback

_BEFORE, _AFTER = 200, 420
_RECENT = 8

RefField = Annotated[str, Form(max_length=200)]
TextField = Annotated[str, Form(max_length=8000)]


@dataclass(frozen=True)
class Source:
    """A quoted passage in its document: the text before and after the quote, and whether there is more."""

    citation: Citation
    anchor: str
    before: str = ""
    after: str = ""
    more_before: bool = False
    more_after: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Shown:
    """An answer with its sources; `anchors` lead from its markers to them."""

    answer: Answer
    sources: tuple[Source, ...]

    @property
    def anchors(self) -> dict[int, str]:
        """The place of each marker's source on the page."""
        return {source.citation.marker: source.anchor for source in self.sources}


def ask_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_asking(router)
    _add_answers(router)
    return router


def _add_asking(router: APIRouter) -> None:
    @router.get("/")
    def ask(
        request: Request,
        at: Reader,
        q: Annotated[str, Query(max_length=8000)] = "",
        ref: Annotated[str, Query(max_length=200)] = MAIN,
        against: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        recent: list[Answer] = []
        if at.caller.may("writer"):  # what others asked is not every reader's business
            with suppress(PlumblineError):  # asking works without the log
                recent = list(filter(at.sees, at.answer_log.recent(_RECENT)))
        values = {"question": q, "ref": ref, "against": against, "refs": _refs(at), "recent": recent}
        return page(request, at, "ask.html", values)

    @router.post("/ask")
    def answer(
        request: Request, at: Reader, question: TextField = "", ref: RefField = MAIN, against: RefField = ""
    ) -> Response:
        engine = at.engine(ref)
        if "text/event-stream" in request.headers.get("accept", "") and not against:
            begun = Begun(at, engine, question, engine.stream(question))
            return EventStream(begun, as_events(begun))
        made = [engine.ask(question)] + ([at.engine(against).ask(question)] if against else [])
        for one in made:
            record(at, one)
        try:
            for one in made:
                at.answer(one.id)
        except PlumblineError:  # it was not logged: there is no address to go to
            return _show(request, at, made)
        if against:
            return see(request, at, "/compare", left=made[0].id, right=made[1].id)
        return see(request, at, f"/answers/{made[0].id}")


def _add_answers(router: APIRouter) -> None:
    @router.get("/answers/{id}")
    def read(id: str, request: Request, at: Reader, said: str = "") -> Response:
        return _show(request, at, [at.answer(id)], said)

    @router.get("/compare")
    def compare(request: Request, at: Reader, left: str, right: str) -> Response:
        return _show(request, at, [at.answer(left), at.answer(right)])

    @router.post("/answers/{id}/feedback")
    def rate(
        id: str,
        request: Request,
        at: Reader,
        visit: Visitor,
        rating: Annotated[Literal["up", "down"], Form()],
        comment: Annotated[str, Form(max_length=4000)] = "",
        correction: TextField = "",
        citation: Annotated[str, Form(pattern="^[0-9]{0,3}$")] = "",
        golden: Annotated[str, Form(max_length=3)] = "",
    ) -> Response:
        feedback = Feedback(
            rating=rating,
            comment=comment.strip(),
            correction=correction.strip(),
            citation=int(citation) if citation else None,
        )
        at.answer_log.rate(at.answer(id).id, feedback)
        said: str = rating
        if golden and at.caller.may("writer"):
            rows = from_feedback([(at.answer(id), feedback)], 1)
            at.about.update(answer=id, ids=[row.id for row in rows])
            with written_down(visit, at, "add_golden"):
                said = "golden" if GoldenFiles(at.knowledge_base).add(rows, "generated") else "known"
        return see(request, at, f"/answers/{id}", said=said, fragment="said")


def _show(request: Request, at: Session, answers: list[Answer], said: str = "") -> Response:
    shown = [_shown(at, answer, f"source-{side}") for side, answer in zip("ab", answers, strict=False)]
    values: dict[str, Any] = {"shown": shown, "said": said, "refs": _refs(at)}
    values["question"], values["ref"] = answers[0].question, answers[0].release.ref
    values["against"] = answers[1].release.ref if len(answers) > 1 else ""
    # A script that streamed the answer asks for the finished part alone.
    template = "_answer.html" if request.headers.get("x-part") == "answer" else "answer.html"
    return page(request, at, template, values)


def _shown(at: Session, answer: Answer, anchor: str) -> Shown:
    return Shown(answer, tuple(_source(at, one, f"{anchor}-{one.marker}") for one in answer.citations))


def _source(at: Session, citation: Citation, anchor: str) -> Source:
    try:
        text = at.engine(citation.commit).snapshot.document_text(citation.path)
    except NotFoundError:
        return Source(citation, anchor, problem="That release is no longer kept; this is what was quoted.")
    except PlumblineError as error:
        return Source(citation, anchor, problem=error.message)
    start, end = _line_start(text, citation.start), citation.end + _AFTER
    return Source(
        citation,
        anchor,
        before=text[start : citation.start],
        after=text[citation.end : end],
        more_before=start > 0,
        more_after=end < len(text),
    )


def _line_start(text: str, quoted: int) -> int:
    """Where the text before a quote begins: at a line, so that the quote stands near the top of its pane."""
    earliest = max(0, quoted - _BEFORE)
    lines = text[earliest:quoted].split("\n")[-4:]
    return quoted - len("\n".join(lines)) if earliest else 0


def _refs(at: Session) -> list[str]:
    return at.hosted.live.refs()
