"""Whether this server should be sent requests: what a load balancer asks."""

import socket
import time
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

from api.hosting import Host, Hosted
from knowledge_base.configuration import EXTRACTIVE
from knowledge_base.errors import PlumblineError
from knowledge_base.release import Release

_YOUNG_SECONDS = 1.0
_CONNECT_SECONDS = 1.0

Status = Literal["ready", "degraded", "unready", "draining"]


class Checks(BaseModel):
    """What was found of one knowledge base; /healthz and the server's log say why."""

    main: Literal["served", "stale"]
    manifest: Literal["ok", "unreadable"]
    query: Literal["ok", "failed"]
    model: Literal["ok", "down"]

    @property
    def status(self) -> Status:
        """A release that answers is served, whatever else is wrong."""
        if self.query == "failed":
            return "unready"
        whole = (self.main, self.manifest, self.model) == ("served", "ok", "ok")
        return "ready" if whole else "degraded"


class Readiness(BaseModel):
    """`degraded` still answers: an older release than main's, or without its language model.

    `status` is that of the whole server, `knowledge_bases` are those that the caller may use.
    """

    status: Status
    knowledge_bases: dict[str, Checks]

    @property
    def http_status(self) -> int:
        """503 takes the server out of the rotation."""
        return 200 if self.status in ("ready", "degraded") else 503


class Probe:
    """Answers for all knowledge bases of a server; asked often, it looks once a second."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last: tuple[dict[str, Checks], float] = ({}, float("-inf"))

    def look(self) -> Readiness:
        """Blocking: seconds, where a language model's server does not answer."""
        checks, when = self._last
        if time.monotonic() - when > _YOUNG_SECONDS:
            checks = {one.name: _check(one) for one in self._host}
            self._last = (checks, time.monotonic())
        found = {check.status for check in checks.values()}
        order: tuple[Status, ...] = ("unready", "degraded", "ready")
        worst = next(status for status in order if status in found)
        return Readiness(status="draining" if self._host.draining else worst, knowledge_bases=checks)


def _check(one: Hosted) -> Checks:
    engine = one.live.engine()
    answers = True
    try:
        found = engine.search("Is anybody there?", 1)
        answers = bool(found) or not engine.release.manifest.chunks
    except Exception:  # noqa: BLE001 - whatever it is, a question would meet it too
        answers = False
    return Checks(
        main="stale" if one.live.problem else "served",
        manifest="ok" if _reads_the_same(one, engine.release) else "unreadable",
        query="ok" if answers else "failed",
        model="ok" if _model_answers(engine.release) else "down",
    )


def _reads_the_same(one: Hosted, release: Release) -> bool:
    """Whether what is served can still be read from the version store; gc may have taken it."""
    try:
        return one.live.ask(lambda: one.knowledge_base.release(release.commit)).manifest == release.manifest
    except PlumblineError:
        return False


def _model_answers(release: Release) -> bool:
    """Whether one of the release's models can be reached; of a vendor's own address nothing is known."""
    models = release.settings.answer.models
    return any(
        model.model == EXTRACTIVE or not model.base_url or _listens(model.base_url) for model in models
    )


def _listens(url: str) -> bool:
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
