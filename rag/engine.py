"""All that one release needs to answer, opened once and never changed: the unit of hot swap."""

from knowledge_base.embedders import Embedder
from knowledge_base.errors import DamagedError, UsageError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import Release
from knowledge_base.snapshot import Snapshot
from rag.answer import Answer, Context, ReleaseRef
from rag.retriever import Retriever

MAX_QUESTION_CHARACTERS = 8000


class Engine:
    """Answers and searches over one release."""

    def __init__(self, ref: str, release: Release, snapshot: Snapshot, embedder: Embedder) -> None:
        self.release_ref = ReleaseRef(ref=ref, commit=release.commit)
        self.release = release
        self.snapshot = snapshot
        settings = release.settings
        self.embedder = embedder
        self.retriever = Retriever(snapshot, embedder, settings.retrieval)

    @classmethod
    def open(cls, knowledge_base: KnowledgeBase, ref: str = MAIN) -> "Engine":
        """Open the release `ref` names.

        Raises:
            NotFoundError: There is no such ref.
            DamagedError: Its truth cannot be read, or this machine's embedder is not the release's.
            EmbedderError: The embedding model cannot be loaded.
        """
        release = knowledge_base.release(ref)
        embedder = knowledge_base.embedder(release.settings.embedder)
        stored = release.manifest.embedder
        if release.manifest.segments and stored != dict(embedder.fingerprint):
            differing = sorted(k for k in stored if stored[k] != embedder.fingerprint.get(k))
            raise DamagedError(
                f"The vectors of {ref!r} come from another embedder: other {', '.join(differing)}.",
                hint="Install the same model, or run `rag ingest` to embed again with this one.",
            )
        # Not of `ref`: a branch may have moved since its release was read.
        return cls(ref, release, knowledge_base.snapshot(release.commit), embedder)

    def named(self, ref: str) -> "Engine":
        """The same engine for a request that asked for its release by another name."""
        return Engine(ref, self.release, self.snapshot, self.embedder)

    def search(self, question: str, top_k: int | None = None) -> list[Context]:
        """Ranked passages. Raises UsageError for an empty or oversized question."""
        return self.retriever.search(check_question(question), top_k)

    def ask(self, question: str, top_k: int | None = None) -> Answer:
        """An answer with citations, or an abstention. Raises UsageError for an unfit question."""
        from rag.chain import build_chain

        settings = self.release.settings
        chain = build_chain(
            self.retriever,
            self.embedder,
            settings.answer,
            release=self.release_ref,
            prompt=self.release.prompt_hash,
            language=settings.retrieval.language,
        )
        return chain.invoke({"question": check_question(question), "top_k": top_k})

    def close(self) -> None:
        """Release files and memory."""
        self.snapshot.close()


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
