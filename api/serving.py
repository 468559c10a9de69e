"""What is being served: the engine of main, swapped whole when main moves, and a few other refs."""

import threading
import time
from collections import OrderedDict

from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from rag.engine import Engine

_CHECK_SECONDS = 0.5
_KEPT = 4


class Live:
    """Hands out engines. A request keeps the engine it was given, so no answer mixes two releases."""

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._knowledge_base = knowledge_base
        self._lock = threading.Lock()
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._main = self._open(knowledge_base.repository.resolve(MAIN), MAIN)
        self._checked = time.monotonic()

    def engine(self, ref: str = MAIN) -> Engine:
        """The engine of a ref. Raises NotFoundError, DamagedError, EmbedderError."""
        if ref == MAIN:
            return self._current()
        return self._open(self._knowledge_base.repository.resolve(ref), ref)

    def _current(self) -> Engine:
        if time.monotonic() - self._checked > _CHECK_SECONDS:
            self._checked = time.monotonic()
            try:
                commit = self._knowledge_base.repository.resolve(MAIN)
                if commit != self._main.release_ref.commit:
                    self._main = self._open(commit, MAIN)
            except PlumblineError:
                # What cannot be opened must not take down what already serves; /healthz shows the commit.
                pass
        return self._main

    def _open(self, commit: str, ref: str) -> Engine:
        with self._lock:
            engine = self._engines.get(commit)
            if engine is None:
                engine = Engine.open(self._knowledge_base, commit)
                engine.search("warm up")  # opens every cache before the first real question needs it
                self._engines[commit] = engine
            self._engines.move_to_end(commit)
            # Dropped, not closed: a request may still hold it. Its files go when the last one ends.
            while len(self._engines) > _KEPT:
                self._engines.popitem(last=False)
        return engine.named(ref)
