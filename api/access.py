"""Who asks, and what they may do: every route takes the knowledge base from here, never around it.

A route asks for `Reader`, `Writer` or `Admin` and gets a `Session`: one knowledge base of the server as one
caller sees it. `Session.engine` is the only way to a release, so what a caller may not read is left out
there, once, for every route.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Query, Request

from api.hosting import Host, Hosted
from api.idempotency import Replies
from api.jobs import Jobs, Runner
from knowledge_base.errors import ForbiddenError, NotFoundError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from rag.answer import Answer
from rag.answer_log import NO_ANSWER, AnswerLog
from rag.engine import Engine

Role = Literal["reader", "writer", "admin"]
ROLES: tuple[Role, ...] = ("reader", "writer", "admin")


@dataclass(frozen=True)
class Caller:
    """Who asks: `groups` decide which documents they see, no `knowledge_bases` means all of the server.

    Each role may do what those before it may: a reader asks, a writer changes documents and releases, an
    admin manages keys and sees every document.
    """

    key_id: str
    name: str
    role: Role
    groups: frozenset[str] = frozenset()
    knowledge_bases: frozenset[str] = frozenset()

    def may(self, role: Role) -> bool:
        """Whether they may do what needs that role."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_use(self, knowledge_base: str) -> bool:
        """Whether they may use the knowledge base of that name."""
        return not self.knowledge_bases or knowledge_base in self.knowledge_bases

    @property
    def sees_all(self) -> bool:
        """Whether no document is hidden from them."""
        return self.role == "admin"


LOCAL = Caller(key_id="", name="local", role="admin")
"""Whoever asks from this machine while no key was ever created."""


@dataclass(frozen=True)
class Session:
    """One knowledge base as one caller sees it."""

    hosted: Hosted
    caller: Caller

    @property
    def name(self) -> str:
        """The name of the knowledge base on this server."""
        return self.hosted.name

    @property
    def knowledge_base(self) -> KnowledgeBase:
        """The knowledge base itself, with every document in it."""
        return self.hosted.knowledge_base

    @property
    def answer_log(self) -> AnswerLog:
        """Its answers, whoever asked."""
        return self.hosted.answer_log

    @property
    def jobs(self) -> Jobs:
        """Work that was started over HTTP."""
        return self.hosted.jobs

    @property
    def runner(self) -> Runner:
        """What carries out the jobs."""
        return self.hosted.runner

    @property
    def replies(self) -> Replies:
        """What was replied to requests with an Idempotency-Key."""
        return self.hosted.replies

    def engine(self, ref: str = MAIN) -> Engine:
        """The release that `ref` names, without the documents that are closed to the caller.

        Raises:
            NotFoundError: There is no such ref.
            DamagedError: The release cannot be read.
            EmbedderError: Its embedder cannot be loaded.
        """
        engine = self.hosted.live.engine(ref)
        if self.caller.sees_all:
            return engine
        return engine.seen_by(self.caller.groups, self.hosted.live.engine().snapshot.access)

    def answer(self, id: str) -> Answer:
        """An answer of the log, unless it rests on a document that is closed to the caller.

        Raises NotFoundError, StorageError.
        """
        answer = self.answer_log.answer(id)
        if not self.caller.sees_all and not self._sees(answer):
            raise NotFoundError("answer", id, hint=NO_ANSWER)
        return answer

    def _sees(self, answer: Answer) -> bool:
        try:
            paths = self.engine(answer.release.commit).snapshot
        except PlumblineError:  # the release is gone: nobody can say any more who might read it
            return False
        told = {context.path for context in answer.contexts}
        told.update(path for context in answer.contexts for path in context.also_in)
        told.update(citation.path for citation in answer.citations)
        told.update(conflict.path for conflict in answer.conflicts)
        return all(path in paths for path in told)


@dataclass(frozen=True)
class Visit:
    """A caller on a server: those of its knowledge bases that they may use."""

    host: Host
    caller: Caller

    def __iter__(self) -> Iterator[Session]:
        for hosted in self.host:
            if self.caller.may_use(hosted.name):
                yield Session(hosted, self.caller)

    def session(self, name: str | None = None) -> Session:
        """The knowledge base of that name, or their first. Raises NotFoundError, ForbiddenError."""
        theirs = {session.name: session for session in self}
        if not theirs:
            raise ForbiddenError(
                "This key is for none of the knowledge bases here.", hint="Ask an admin for a key that is."
            )
        if not name:
            return next(iter(theirs.values()))
        if name not in theirs:
            raise NotFoundError("knowledge base", name, hint=f"There is {', '.join(theirs)}.")
        return theirs[name]


def _visitor(role: Role) -> Callable[[Request], Visit]:
    def visit(request: Request) -> Visit:
        return Visit(request.app.state.host, LOCAL)

    return visit


Kb = Annotated[str | None, Query(max_length=200, description="Which knowledge base.")]
Visitor = Annotated[Visit, Depends(_visitor("reader"))]
"""Whoever may read, on every knowledge base that is theirs."""


def _session(role: Role) -> Callable[..., Session]:
    def open_session(visit: Annotated[Visit, Depends(_visitor(role))], kb: Kb = None) -> Session:
        return visit.session(kb)

    return open_session


Reader = Annotated[Session, Depends(_session("reader"))]
"""The knowledge base that a request is about, for whoever may ask it questions."""
Writer = Annotated[Session, Depends(_session("writer"))]
"""Likewise for whoever may change documents and releases."""
Admin = Annotated[Session, Depends(_session("admin"))]
"""Likewise for whoever may manage keys and pass by the gate."""
