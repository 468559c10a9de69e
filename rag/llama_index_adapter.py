"""A release as LlamaIndex's retriever, for query engines that are built on LlamaIndex."""

from collections.abc import Sequence

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rag.engine import Engine
from rag.filters import parse_conditions


class PlumblineRetriever(BaseRetriever):  # type: ignore[misc]
    """One release as a LlamaIndex retriever; a node's id is the chunk's, its metadata the context.

    Args:
        engine: The release to search; it stays the same however `main` moves.
        top_k: Passages to return; the release's own number when None.
        where: Conditions as `rag ask --where` takes them.
    """

    def __init__(self, engine: Engine, top_k: int | None = None, where: Sequence[str] = ()) -> None:
        self._engine = engine
        self._top_k = top_k
        self._where = parse_conditions(where)
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._engine.search(query_bundle.query_str, self._top_k, self._where)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=context.chunk_id,
                    text=context.text,
                    start_char_idx=context.start,
                    end_char_idx=context.end,
                    metadata=context.model_dump(mode="json", exclude={"text", "score"}),
                ),
                score=context.score,
            )
            for context in found
        ]
