"""The retrieval chain as a LangChain runnable: question -> passages -> grounded answer."""

import time
import uuid
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from pydantic import ConfigDict

from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.release import AnswerSettings
from rag.answer import Answer, Citation, Context, ReleaseRef
from rag.extractive import Sentence, choose, find_support
from rag.quotable import shown
from rag.retriever import Retriever

ABSTENTION = "The knowledge base holds no supported answer to this question."


class PlumblineRetriever(BaseRetriever):
    """One release as a LangChain retriever; every document carries its context as metadata."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    retriever: Retriever
    top_k: int | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [to_document(context) for context in self.retriever.search(query, self.top_k)]


def to_document(context: Context) -> Document:
    """A context as LangChain's document."""
    return Document(
        id=context.chunk_id, page_content=context.text, metadata=context.model_dump(exclude={"text"})
    )


def to_context(document: Document) -> Context:
    """The context a LangChain document was made from."""
    return Context(text=document.page_content, **document.metadata)


def build_chain(
    retriever: Retriever,
    embedder: Embedder,
    settings: AnswerSettings,
    *,
    release: ReleaseRef,
    prompt: str,
    language: str,
) -> Runnable[dict[str, Any], Answer]:
    """A runnable from `{"question", "top_k"}` to an Answer; every step can be replaced by another."""

    def retrieve(inputs: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        documents = PlumblineRetriever(retriever=retriever, top_k=inputs.get("top_k")).invoke(
            inputs["question"]
        )
        return {"documents": documents, "retrieve_ms": _milliseconds(started)}

    def answer(inputs: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        contexts = [to_context(document) for document in inputs["retrieved"]["documents"]]
        found = find_support(inputs["question"], contexts, embedder, language)
        quoted = choose(found, minimum=settings.min_support, maximum=settings.max_sentences)
        retrieve_ms = inputs["retrieved"]["retrieve_ms"]
        answer_ms = _milliseconds(started)
        return Answer(
            id=uuid.uuid4().hex,
            question=inputs["question"],
            answer=" ".join(f"{shown(s.text)} [{i}]" for i, s in enumerate(quoted, 1)) or ABSTENTION,
            abstained=not quoted,
            release=release,
            citations=tuple(_citation(i, sentence, release.commit) for i, sentence in enumerate(quoted, 1)),
            contexts=tuple(contexts),
            model=settings.model,
            prompt=prompt,
            timings_ms={
                "retrieve": retrieve_ms,
                "answer": answer_ms,
                "total": round(retrieve_ms + answer_ms, 2),
            },
        )

    return RunnablePassthrough.assign(retrieved=RunnableLambda(retrieve)) | RunnableLambda(answer)


def _citation(marker: int, sentence: Sentence, commit: str) -> Citation:
    return Citation(
        marker=marker,
        path=sentence.context.path,
        commit=commit,
        chunk_id=sentence.context.chunk_id,
        start=sentence.start,
        end=sentence.end,
        quote=sentence.text,
        sha256=sha256_hex(sentence.text.encode()),
        score=sentence.context.score,
        support=sentence.support,
    )


def _milliseconds(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
