"""A release as LangChain's retriever and as a runnable, for applications that are built on LangChain."""

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import ConfigDict

from rag.answer import Answer, Context
from rag.engine import Engine
from rag.filters import parse_conditions


class PlumblineRetriever(BaseRetriever):
    """One release as a LangChain retriever; every document carries its context as metadata.

    `where` holds conditions as `rag ask --where` takes them.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: Engine
    top_k: int | None = None
    where: tuple[str, ...] = ()

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.engine.search(query, self.top_k, parse_conditions(self.where))
        return [to_document(context) for context in found]


def as_runnable(engine: Engine) -> Runnable[str, Answer]:
    """A runnable from a question to its Answer."""
    return RunnableLambda(lambda question: engine.ask(question), name="plumbline")


def to_document(context: Context) -> Document:
    """A context as LangChain's document."""
    return Document(
        id=context.chunk_id, page_content=context.text, metadata=context.model_dump(exclude={"text"})
    )


def to_context(document: Document) -> Context:
    """The context a LangChain document was made from."""
    return Context(text=document.page_content, **document.metadata)
