"""The knowledge bases of one server, and its keys."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

import anyio.to_thread

from api.idempotency import Replies
from api.jobs import Jobs, Runner
from api.keys import Keys
from api.serving import Live
from knowledge_base.errors import UsageError
from knowledge_base.history import Restrictions
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog


@dataclass(frozen=True)
class Hosted:
    """One knowledge base being served."""

    name: str
    knowledge_base: KnowledgeBase
    live: Live
    answer_log: AnswerLog

    @cached_property
    def jobs(self) -> Jobs:
        """Work that was started over HTTP."""
        return Jobs(self.knowledge_base)

    @cached_property
    def runner(self) -> Runner:
        """What carries out the jobs while the server runs."""
        return Runner(self.jobs, self.live.wake)

    @cached_property
    def restrictions(self) -> Restrictions:
        """Whether documents were ever closed."""
        return Restrictions(self.knowledge_base.repository)

    @cached_property
    def replies(self) -> Replies:
        """What was replied to requests with an Idempotency-Key."""
        return Replies(self.jobs.folder / "keys")


class Host:
    """The knowledge bases of one server, by name; the first is what a request without a name means."""

    def __init__(self, hosted: Iterable[Hosted]) -> None:
        self.draining = False
        """Whether the server is about to stop: it still answers, and wants no more requests."""
        self._hosted: dict[str, Hosted] = {}
        for one in hosted:
            if one.name in self._hosted:
                raise UsageError(
                    f"Two knowledge bases are called {one.name!r}.", hint="Name one: --kb NAME=DIR."
                )
            self._hosted[one.name] = one
        # In the database of the first: the one that serves all, or its own.
        self.keys = Keys(next(iter(self._hosted.values())).answer_log.url)

    def __iter__(self) -> Iterator[Hosted]:
        yield from self._hosted.values()

    @asynccontextmanager
    async def at_work(self, _: object) -> AsyncIterator[None]:
        """Follow each main and carry out jobs while the block runs."""
        for one in self:
            one.live.start()
            one.runner.start()
        try:
            yield
        finally:
            for one in self:
                await anyio.to_thread.run_sync(one.runner.stop)
                await anyio.to_thread.run_sync(one.live.stop)
