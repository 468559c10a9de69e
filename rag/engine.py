"""All that one release needs to answer, opened once and never changed: the unit of hot swap."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from knowledge_base.access import Access
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedder_memory import RememberingEmbedder
from knowledge_base.embedders import STATIC_PREFIX, Embedder
from knowledge_base.errors import DamagedError, PlumblineError, UsageError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import Release
from knowledge_base.segments import SharedSegments
from knowledge_base.snapshot import Selection, Snapshot
from knowledge_base.version_store import Repository
from rag.answer import Answer, Context, Done, Event, ReleaseRef, Turn
from rag.retriever import Retriever

if TYPE_CHECKING:
    from rag.answer_reader import AnswerReader
    from rag.chain import Chain
    from rag.filters import Condition
    from rag.reranker import Reranker

MAX_QUESTION_CHARACTERS = 8000
_VIEWS = 32
"""Sets of groups whose view of a release is kept."""


@dataclass(frozen=True)
class Shared:
    """What the engines of one process have in common; each part goes with the last engine that holds it."""

    segments: SharedSegments = field(default_factory=weakref.WeakValueDictionary)
    embedders: "weakref.WeakValueDictionary[EmbedderSettings, Embedder]" = field(
        default_factory=weakref.WeakValueDictionary
    )


class Engine:
    """Answers and searches over one release. Safe to share between threads."""

    def __init__(
        self,
        ref: str,
        release: Release,
        snapshot: Snapshot,
        embedder: Embedder,
        repository: Repository,
        reranker: "Reranker | None" = None,
        reader: "AnswerReader | None" = None,
        views: "_Views | None" = None,
    ) -> None:
        self.release_ref = ReleaseRef(ref=ref, commit=release.commit)
        self.release = release
        self.snapshot = snapshot
        self.embedder = embedder
        self._repository = repository
        self._reranker = reranker
        self._reader = reader
        self._views = views or _Views()
        self.retriever = Retriever(snapshot, embedder, release.settings.retrieval, reranker)

    @classmethod
    def open(cls, knowledge_base: KnowledgeBase, ref: str = MAIN, shared: Shared | None = None) -> "Engine":
        """Open the release `ref` names.

        An engine of `shared` parts costs what is new in it, and is never closed by hand.

        Raises:
            NotFoundError: There is no such ref.
            DamagedError: Its truth cannot be read, or this machine's embedder is not the release's.
            EmbedderError: The embedding model, the reranker or the reader cannot be loaded.
            MissingExtraError: The reader's weights are not installed.
        """
        release = knowledge_base.release(ref)
        wanted = release.settings.embedder
        embedder = shared.embedders.get(wanted) if shared else None
        if embedder is None:
            embedder = knowledge_base.embedder(wanted)
            if shared:
                # In fp32 the last digits of a vector depend on what else was in its batch.
                alone = wanted.precision == "int8" and not wanted.model.startswith(STATIC_PREFIX)
                embedder = RememberingEmbedder(embedder) if alone else embedder
                shared.embedders[wanted] = embedder
        stored = release.manifest.embedder
        if release.manifest.segments and stored != dict(embedder.fingerprint):
            differing = sorted(k for k in stored if stored[k] != embedder.fingerprint.get(k))
            raise DamagedError(
                f"The vectors of {ref!r} come from another embedder: other {', '.join(differing)}.",
                hint="Install the same model, or run `rag ingest` to embed again with this one.",
            )
        # Not of `ref`: a branch may have moved since its release was read.
        snapshot = knowledge_base.snapshot(release.commit, shared.segments if shared else None)
        reranker = None
        if name := release.settings.retrieval.reranker:
            from rag.reranker import CrossEncoderReranker

            reranker = CrossEncoderReranker(name)
        reader = None
        if release.settings.answer.reads:
            from rag.answer_reader import open_reader

            reader = open_reader(knowledge_base.models)
        return cls(ref, release, snapshot, embedder, knowledge_base.repository, reranker, reader)

    def named(self, ref: str) -> "Engine":
        """The same engine for a request that asked for its release by another name."""
        return self._over(ref, self.release, self.snapshot, self._views)

    def _over(
        self, ref: str, release: Release, snapshot: Snapshot, views: "_Views | None" = None
    ) -> "Engine":
        """An engine of the same models."""
        models = (self.embedder, self._repository, self._reranker, self._reader)
        return Engine(ref, release, snapshot, *models, views)

    def seen_by(self, groups: frozenset[str], current: Access | None = None) -> "Engine":
        """The release as a caller of those groups sees it: documents closed to them are not in it.

        `current` is what main says today of who may read what: it counts for older releases too, so that a
        document that is closed now is closed in every release.
        """
        rules = (self.snapshot.access, current or self.snapshot.access)
        if all(rule.open for rule in rules):
            return self
        key = (groups & rules[0].groups.union(rules[1].groups), rules[1])
        view = self._views.get(key, lambda: self._view(key[0], rules))
        if view is None:
            return self
        return view if view.release_ref == self.release_ref else view.named(self.release_ref.ref)

    def _view(self, groups: frozenset[str], rules: Sequence[Access]) -> "Engine | None":
        """None when nothing is hidden from them."""
        hidden = {p for p in self.snapshot.paths if not all(rule.allows(p, groups) for rule in rules)}
        if not hidden:
            return None
        seen = self.snapshot.without(hidden)
        return self._over(self.release_ref.ref, seen.release, seen)

    def warm(self) -> None:
        """Do what the first question would wait for: open the caches, build the chain.

        The texts are read as well: gc may expire the release while it still serves.
        """
        self.search("warm up")
        for segment in self.snapshot.segments:
            _ = segment.texts
        _ = self._chain

    def search(
        self, question: str, top_k: int | None = None, where: "Sequence[Condition]" = ()
    ) -> list[Context]:
        """Ranked passages. Raises UsageError for an empty or oversized question."""
        return self.retriever.search(check_question(question), top_k, selection=self._select(where))

    def ask(
        self,
        question: str,
        top_k: int | None = None,
        *,
        history: Sequence[Turn] = (),
        where: "Sequence[Condition]" = (),
    ) -> Answer:
        """An answer with citations, or an abstention.

        Raises:
            UsageError: An unfit question or condition.
            ModelError: Every model of the release failed.
        """
        for event in self.stream(question, top_k, history=history, where=where):
            if isinstance(event, Done):
                return event.answer
        raise PlumblineError("The chain ended without an answer.")

    def stream(
        self,
        question: str,
        top_k: int | None = None,
        *,
        history: Sequence[Turn] = (),
        where: "Sequence[Condition]" = (),
    ) -> Generator[Event, None, None]:
        """The steps of an answer as they come: what was retrieved, checked text, the whole answer.

        Raises:
            UsageError: An unfit question or condition.
            ModelError: Every model of the release failed.
        """
        from rag.chain import Question

        asked = Question(check_question(question), tuple(history), top_k, self._select(where))
        return self._chain.stream(asked)

    @cached_property
    def _chain(self) -> "Chain":
        from rag.chain import Chain

        settings = self.release.settings
        prompts = {}
        if settings.answer.asks_model:
            from knowledge_base.prompts import parse_prompts

            prompts = parse_prompts(self.release.prompts)
        return Chain(
            self.retriever,
            self.embedder,
            settings.answer,
            settings.retrieval,
            prompts,
            self.release_ref,
            self.release.prompt_hash,
            self._reader,
        )

    def _select(self, where: "Sequence[Condition]") -> Selection | None:
        if not where:
            return None
        from rag.filters import select

        return select(self.snapshot, where, self._repository)

    def close(self) -> None:
        """Release files and memory."""
        self.snapshot.close()


class _Views:
    """What callers of some groups see of one release, for those that asked last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[frozenset[str], Access], Engine | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[frozenset[str], Access], make: Callable[[], Engine | None]) -> Engine | None:
        """The view of that key, made if need be; made by one thread while the others wait for it."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            while len(self._kept) > _VIEWS:
                self._kept.popitem(last=False)
            return self._kept[key]


def check_question(question: str) -> str:
    """The question, stripped, fit for every step. Raises UsageError."""
    cleaned = question.replace("\0", " ").encode("utf-8", "replace").decode().strip()
    if not cleaned:
        raise UsageError("The question is empty.", hint='For example: rag ask "How do I install it?"')
    if len(cleaned) > MAX_QUESTION_CHARACTERS:
        raise UsageError(
            f"The question has {len(cleaned)} characters; the limit is {MAX_QUESTION_CHARACTERS}.",
            hint="Ask a shorter question.",
        )
    return cleaned
