"""Who asks, and what they may do: every route takes the knowledge base from here, never around it.

A route asks for `Reader`, `Writer` or `Admin` and gets a `Session`: one knowledge base of the server as one
caller sees it. `Session.engine` is the only way to a release, so what a caller may not read is left out
there, once, for every route. Every change that is asked for is written down before it is made.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.audit import STARTED
from api.hosting import Host, Hosted
from api.idempotency import Claim
from api.jobs import Jobs, Runner
from api.keys import Caller, Keys, Role
from api.request_context import VERIFIED_KEY
from knowledge_base.errors import (
    ForbiddenError,
    NotFoundError,
    PlumblineError,
    StorageError,
    UnauthenticatedError,
)
from knowledge_base.home import MAIN, KnowledgeBase
from rag.answer import Answer
from rag.answer_log import NO_ANSWER, AnswerLog
from rag.engine import Engine

_LOG = logging.getLogger(__name__)

LOCAL = Caller(key_id="", name="local", role="admin")
"""Whoever asks from this machine while no key was ever created."""
ANYONE = Caller(key_id="", name="anyone", role="reader")
"""Whoever asks without a key where none is needed: of documents they see those that are open to all."""
COOKIE = "plumbline_key"
"""Carries the key of a browser that logged in: HttpOnly, SameSite=Strict."""

_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Session:
    """One knowledge base as one caller sees it; `about` is what the audit log will say of the request."""

    hosted: Hosted
    caller: Caller
    about: dict[str, Any] = field(default_factory=dict)

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

    def claim(self, key: str | None) -> AbstractContextManager[Claim]:
        """Hold the caller's Idempotency-Key while its request is carried out. Raises KeyInUseError."""
        return self.hosted.replies.claim(key, self.caller.key_id)

    def require(self, role: Role) -> None:
        """Refuse whoever has not that role. Raises ForbiddenError."""
        _require(self.caller, role)

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

    def sees_all_of(self, ref: str = MAIN) -> bool:
        """Whether no document of a release is hidden from the caller. Raises as `engine`."""
        if self.caller.sees_all:
            return True
        seen, whole = self.engine(ref).snapshot, self.hosted.live.engine(ref).snapshot
        return len(seen.paths) == len(whole.paths)

    def answer(self, id: str) -> Answer:
        """An answer of the log, unless it rests on a document that is closed to the caller.

        Raises NotFoundError, StorageError.
        """
        answer = self.answer_log.answer(id)
        if not self.sees(answer):
            raise NotFoundError("answer", id, hint=NO_ANSWER)
        return answer

    def sees(self, answer: Answer) -> bool:
        """Whether all that an answer was made from is open to the caller."""
        if self.caller.sees_all:
            return True
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
            known = "With a key you are told which there are."
            hint = known if self.caller == ANYONE else f"There is {', '.join(theirs)}."
            raise NotFoundError("knowledge base", name, hint=hint)
        return theirs[name]

    @property
    def keys(self) -> Keys:
        """The keys of the server, for whoever may manage those of all its knowledge bases.

        Raises ForbiddenError.
        """
        _require(self.caller, "admin")
        self.require_whole_server()
        return self.host.keys

    def require_whole_server(self) -> None:
        """Refuse a key for some of the knowledge bases. Raises ForbiddenError."""
        if self.caller.knowledge_bases:
            raise ForbiddenError(
                "This needs a key for every knowledge base.",
                hint="This one is for " + ", ".join(sorted(self.caller.knowledge_bases)) + ".",
            )


# -- who it is ---------------------------------------------------------------------------------


def identify(request: Request, keys: Keys) -> Caller:
    """Who asks: by their key, or from this machine while there is none. Raises UnauthenticatedError."""
    if not keys.exist():
        if not _from_this_machine(request):
            raise UnauthenticatedError(
                "Without keys only this machine is answered.", hint="Create one there: `rag key create NAME`."
            )
        return LOCAL  # OpenAI's clients must send a key, whatever it says
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("Not a bearer token.", hint="Send Authorization: Bearer plk_...")
        caller = keys.caller(presented.strip())
        request.scope[VERIFIED_KEY] = caller.key_id
        return caller
    if cookie := request.cookies.get(COOKIE):
        if request.method not in _SAFE and not _from_own_page(request):
            raise UnauthenticatedError("A page of another site sent this.", hint="Log in again.")
        return keys.caller(cookie)
    raise UnauthenticatedError("A key is needed.", hint="Send Authorization: Bearer plk_...")


def _from_this_machine(request: Request) -> bool:
    """Loopback, by a loopback name, through no proxy that says so, nothing sent by a page of another site."""
    client = request.client.host if request.client else ""
    return (
        is_loopback(client)
        and is_loopback(request.url.hostname or "")
        and not any(name in request.headers for name in _PROXIED)
        and (request.method in _SAFE or _from_own_page(request))
    )


def _from_own_page(request: Request) -> bool:
    """Whether a program sent it, or a page of this server: browsers say whose page it was."""
    if not is_own_origin(request):
        return False
    return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def is_own_origin(request: Request) -> bool:
    """Whether the page that sent it is at the address that it was sent to, or no page is named."""
    origin = request.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:  # such as http://[
        return False


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _require(caller: Caller, role: Role) -> None:
    if not caller.may(role):
        raise ForbiddenError(
            f"This needs the role {role}; the key {caller.name!r} has {caller.role}.",
            hint="Ask an admin for a key that may do it.",
        )


# -- what routes ask for -----------------------------------------------------------------------

Kb = Annotated[str | None, Query(max_length=200, description="Which knowledge base.")]
# Only for /openapi.json, so that clients know to send a key; `identify` reads it.
_Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def _visit(request: Request, _: _Bearer) -> Visit:
    host: Host = request.app.state.host
    return Visit(host, identify(request, host.keys))


Visitor = Annotated[Visit, Depends(_visit)]
"""Whoever may read, on every knowledge base that is theirs."""


def _session(role: Role) -> Callable[..., Iterator[Session]]:
    def open_session(request: Request, visit: Visitor, kb: Kb = None) -> Iterator[Session]:
        _require(visit.caller, role)
        session = visit.session(kb)
        if role == "reader" or request.method in _SAFE:
            yield session
        else:
            session.about.update(request.path_params)
            action = getattr(request.scope.get("route"), "name", request.url.path)
            with written_down(visit, session, action):
                yield session

    return open_session


@contextmanager
def written_down(visit: Visit, session: Session, action: str) -> Iterator[None]:
    """Nothing is changed that the audit log has not: it is written first, and how it ended afterwards.

    Raises StorageError.
    """
    audit, caller = visit.host.keys.audit, visit.caller
    entry = audit.begin(caller.key_id, caller.name, action, session.name, session.about)
    outcome = STARTED
    try:
        yield
        outcome = "done"
    except Exception as error:
        outcome = f"refused: {type(error).__name__}"
        raise
    finally:
        try:
            audit.end(entry, outcome, session.about)
        except StorageError as error:  # done is done: the row says that it was started
            _LOG.warning("outcome of %s not written down: %s", action, error.message)


Reader = Annotated[Session, Depends(_session("reader"), scope="function")]
"""The knowledge base that a request is about, for whoever may ask it questions."""
Writer = Annotated[Session, Depends(_session("writer"), scope="function")]
"""Likewise for whoever may change documents and releases."""
Admin = Annotated[Session, Depends(_session("admin"), scope="function")]
"""Likewise for whoever may manage keys and pass by the gate."""


def who_asks(request: Request) -> Caller:
    """Who asks, on routes that need no key: ANYONE where there is none, or no good one."""
    host: Host = request.app.state.host
    try:
        return identify(request, host.keys)
    except PlumblineError:  # probes are answered also when the keys cannot be read
        return ANYONE


def _anyone(request: Request, kb: Kb = None) -> Session:
    return Visit(request.app.state.host, who_asks(request)).session(kb)


Anyone = Annotated[Session, Depends(_anyone)]
"""Likewise for whoever asks, with a key or without."""
