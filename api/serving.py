"""What is being served: the engine of main, swapped whole when main moves, and a few other refs."""

import logging
import threading
import time
import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager

from knowledge_base.home import MAIN, KnowledgeBase, release_branches
from knowledge_base.lifecycle import require_verdict
from knowledge_base.segments import Segment
from rag.engine import Engine

_LOG = logging.getLogger(__name__)
_CHECK_SECONDS = 0.5
_RETRY_SECONDS = 30.0
_KEPT = 4


class Live:
    """Hands out engines. A request keeps the engine it was given, so no answer mixes two releases.

    `problem` says why main's newest release is not the one being served, and is empty when it is.
    """

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self.problem = ""
        self._knowledge_base = knowledge_base
        # Opening and closing take turns: Chroma counts the users of a folder without a lock around both.
        # Re-entrant, because dropping an engine inside may close another one on the spot.
        self._lock = threading.RLock()
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._following = threading.Lock()
        head = knowledge_base.repository.resolve(MAIN)
        require_verdict(knowledge_base.repository, head)
        self._main = self._open(head, MAIN)
        self._checked = time.monotonic()
        self._refused = ("", 0.0)

    def refs(self) -> list[str]:
        """Branches and tags that can be asked, without those of commands under way."""
        repository = self._knowledge_base.repository
        return [branch.id for branch in release_branches(repository)] + [
            tag.id for tag in repository.list_tags()
        ]

    def engine(self, ref: str = MAIN) -> Engine:
        """The engine of a ref. Raises NotFoundError, DamagedError, EmbedderError."""
        if ref == MAIN:
            return self._current()
        return self._open(self._knowledge_base.repository.resolve(ref), ref)

    def _current(self) -> Engine:
        due = time.monotonic() - self._checked > _CHECK_SECONDS
        # The request that finds main elsewhere waits for the new engine; the others get the old one.
        if due and self._following.acquire(blocking=False):
            try:
                self._follow()
            finally:
                self._following.release()
        return self._main

    def _follow(self) -> None:
        commit = ""
        try:
            commit = self._knowledge_base.repository.resolve(MAIN)
            refused, when = self._refused
            if commit == self._main.release_ref.commit:
                self.problem = ""
            elif commit != refused or time.monotonic() - when > _RETRY_SECONDS:
                require_verdict(self._knowledge_base.repository, commit)
                self._main = self._open(commit, MAIN)
                self.problem = ""
        except Exception as error:  # noqa: BLE001 - whatever it is must not take down what already serves
            self._refused = (commit, time.monotonic())
            self.problem = f"release {commit[:12]} of main cannot be opened: {error}"
            _LOG.warning("%s", self.problem)
        self._checked = time.monotonic()

    def _open(self, commit: str, ref: str) -> Engine:
        with self._lock:
            engine = self._engines.get(commit)
            if engine is None:
                engine = Engine.open(self._knowledge_base, commit)
                engine.search("warm up")  # opens every cache before the first real question needs it
                for segment in engine.snapshot.segments:
                    _ = segment.texts  # read now: gc may expire this release while it still serves
                # Chroma keeps a folder's files open until told otherwise, and a request may still hold
                # an engine that is no longer kept: so its segments are closed when the last one lets go.
                segments = engine.snapshot.segments
                weakref.finalize(engine.snapshot, _close, self._lock, segments).atexit = False
                self._engines[commit] = engine
            self._engines.move_to_end(commit)
            while len(self._engines) > _KEPT:
                self._engines.popitem(last=False)
        return engine.named(ref)


def _close(lock: AbstractContextManager[bool], segments: list[Segment]) -> None:
    with lock:
        for segment in segments:
            segment.close()
