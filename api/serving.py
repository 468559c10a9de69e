"""What is being served: the engine of main, swapped whole when main moves, and a few other refs."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, TypeVar

from knowledge_base.errors import UnavailableError
from knowledge_base.home import MAIN, KnowledgeBase, release_branches
from knowledge_base.lifecycle import require_verdict
from rag.engine import Engine, Shared

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
"""Between two looks at an embedded repository: some file reads."""
_LOOK_SECONDS_SHARED = 5.0
"""Between two looks at a server that others use too; it doubles while the server does not answer."""
_LONGEST_PAUSE = 60.0
_RETRY_SECONDS = 30.0
"""After which a release that could not be opened is tried again."""
_PATIENCE_SECONDS = 5.0
"""How long a request waits for a version store on another machine."""
_ASKING_AT_ONCE = 16
_KEPT = 4
_NAMES = 1000

T = TypeVar("T")


class Live:
    """Hands out engines. A request keeps the engine it was given, so no answer mixes two releases.

    Between `start` and `stop` a thread follows main: a new release is opened and warmed beside the one
    that serves, which one assignment then replaces. `problem` says why main's newest release is not the
    one being served, and is empty when it is.

    Raises:
        CheckFailedError: main got past the gate of a shared store.
        PlumblineError: main cannot be opened.
    """

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self.problem = ""
        self._knowledge_base = knowledge_base
        self._patience = _Patience()
        self._engines = _Engines(knowledge_base)
        self._following = threading.Lock()
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        head = knowledge_base.repository.resolve(MAIN)
        require_verdict(knowledge_base.repository, head)
        self._main = self._engines.open(head).named(MAIN)
        self._refused, self._again = ("", 0.0), False

    # -- what requests ask ---------------------------------------------------------------------

    def engine(self, ref: str = MAIN) -> Engine:
        """The engine of a ref; that of main without a look at the version store.

        Raises:
            NotFoundError: There is no such ref.
            DamagedError: The release cannot be read.
            EmbedderError: Its embedder cannot be loaded.
            UnavailableError: The version store does not answer in time.
        """
        if ref == MAIN:
            return self._main
        commit = self._remember(f"ref {ref}", lambda: self._knowledge_base.repository.resolve(ref))
        engine = self._engines.find(commit) or self.ask(lambda: self._engines.open(commit))
        return engine.named(ref)

    def refs(self) -> list[str]:
        """Branches and tags that can be asked, without those of commands under way."""
        return self._remember("refs", self._list_refs)

    def ask(self, question: Callable[[], T]) -> T:
        """What the version store answers, on another machine in some seconds or not at all.

        Raises UnavailableError.
        """
        return self._patience.ask(question) if self._knowledge_base.repository.shared else question()

    def _remember(self, what: str, question: Callable[[], T]) -> T:
        shared = self._knowledge_base.repository.shared
        return self._patience.remember(what, question) if shared else question()

    def _list_refs(self) -> list[str]:
        repository = self._knowledge_base.repository
        branches = [branch.id for branch in release_branches(repository)]
        return branches + [tag.id for tag in repository.list_tags()]

    # -- following main ------------------------------------------------------------------------

    def start(self) -> None:
        """Follow main from now on, in a thread of its own."""
        self._stopped.clear()
        name = f"following {self._knowledge_base.repository.id}"
        # A daemon: a version store that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; what serves goes on serving."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_SECONDS)

    def wake(self) -> None:
        """Look where main is now, and try again what could not be opened."""
        self._again = True
        self._woken.set()

    def _run(self) -> None:
        shared = self._knowledge_base.repository.shared
        often = pause = _LOOK_SECONDS_SHARED if shared else _LOOK_SECONDS
        while not self._stopped.is_set():
            found = self.follow()
            pause = min(2 * pause, _LONGEST_PAUSE) if shared and not found else often
            self._woken.wait(pause)
            self._woken.clear()

    def follow(self) -> bool:
        """Look once where main is and serve it; whether the version store said where."""
        with self._following:
            try:
                commit = self.ask(lambda: self._knowledge_base.repository.resolve(MAIN))
            except Exception as error:  # noqa: BLE001 - whatever it is must not end the following
                self._tell(f"where main is cannot be found out: {error}")
                return False
            refused, when = ("", 0.0) if self._again else self._refused
            self._again = False
            if commit == self._main.release_ref.commit:
                self._tell("")
            elif commit != refused or time.monotonic() - when > _RETRY_SECONDS:
                self._swap(commit)
            return True

    def _swap(self, commit: str) -> None:
        try:
            require_verdict(self._knowledge_base.repository, commit)
            self._main = self._engines.open(commit, at_once=True).named(MAIN)
            self._tell("")
        except Exception as error:  # noqa: BLE001 - nor take down what already serves
            self._refused = (commit, time.monotonic())
            self._tell(f"release {commit[:12]} of main cannot be opened: {error}")

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            _LOG.warning("%s", problem)
        self.problem = problem


class _Engines:
    """The engines of the releases asked last. Requests open one at a time; an open one is had at once."""

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._knowledge_base = knowledge_base
        self._shared = Shared()
        self._kept: OrderedDict[str, Engine] = OrderedDict()
        self._looking, self._opening = threading.Lock(), threading.Lock()

    def open(self, commit: str, *, at_once: bool = False) -> Engine:
        """The engine of a release; `at_once` for main, which waits for no other release to be opened.

        Raises NotFoundError, DamagedError, EmbedderError.
        """
        if (engine := self.find(commit)) is not None:
            return engine
        with nullcontext() if at_once else self._opening:
            if (engine := self.find(commit)) is not None:
                return engine
            engine = Engine.open(self._knowledge_base, commit, self._shared)
            engine.warm()
            with self._looking:
                self._kept[commit] = engine
                # The last reference may be a request's: then it is closed when that is answered.
                dropped = [self._kept.popitem(last=False) for _ in range(len(self._kept) - _KEPT)]
            del dropped
            return engine

    def find(self, commit: str) -> Engine | None:
        """The engine if it is open."""
        with self._looking:
            engine = self._kept.get(commit)
            if engine is not None:
                self._kept.move_to_end(commit)
            return engine


class _Patience:
    """Asks a version store that may be slow or down: requests wait so long for it and no longer."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[Any, float]] = {}
        self._room = threading.Semaphore(_ASKING_AT_ONCE)

    def remember(self, what: str, question: Callable[[], T]) -> T:
        """The answer, from memory if it is young; an old one counts while the store gives no other.

        Raises UnavailableError.
        """
        known = self._answers.get(what)
        if known is not None and time.monotonic() - known[1] < _LOOK_SECONDS_SHARED:
            answer: T = known[0]
            return answer
        try:
            answer = self.ask(question)
        except UnavailableError:
            if known is None:
                raise
            answer = known[0]
        if len(self._answers) >= _NAMES:
            self._answers.clear()
        self._answers[what] = (answer, time.monotonic())
        return answer

    def ask(self, question: Callable[[], T]) -> T:
        """The answer. What is asked goes on when nobody waits any more. Raises UnavailableError."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(question())
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)
            finally:
                self._room.release()

        silent = UnavailableError(
            "The version store does not answer.", hint="Ask again, or ask main: it is served all the same."
        )
        if not self._room.acquire(blocking=False):
            raise silent
        threading.Thread(target=run, name="asking the version store", daemon=True).start()
        try:
            return future.result(_PATIENCE_SECONDS)
        except TimeoutError as error:
            raise silent from error
