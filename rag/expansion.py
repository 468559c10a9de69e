"""More of a document around a retrieved passage: its neighbours, or the section it stands in."""

from collections.abc import Sequence

from knowledge_base.configuration import RetrievalSettings
from knowledge_base.documents import Chunk
from knowledge_base.embedders import Embedder
from knowledge_base.snapshot import Selection, Snapshot
from rag.answer import Context


class Expander:
    """Widens contexts as the settings say; contexts that come to overlap become one."""

    def __init__(
        self,
        snapshot: Snapshot,
        embedder: Embedder,
        settings: RetrievalSettings,
        selection: Selection | None,
    ) -> None:
        self._snapshot = snapshot
        self._embedder = embedder
        self._settings = settings
        self._selection = selection

    def expand(self, contexts: Sequence[Context]) -> list[Context]:
        """The contexts in their order, each with what belongs around it."""
        if self._settings.expand == "none":
            return list(contexts)
        found: list[Context] = []
        for context in contexts:
            start, end = self._span(context)
            for place, other in enumerate(found):
                if other.path == context.path and start < other.end and other.start < end:
                    found[place] = self._widened(other, min(start, other.start), max(end, other.end))
                    break
            else:
                found.append(self._widened(context, start, end))
        return found

    def _span(self, context: Context) -> tuple[int, int]:
        chunks = self._snapshot.chunks_in({context.path}, self._selection)
        here = next(
            i for i, chunk in enumerate(chunks) if (chunk.start, chunk.end) == (context.start, context.end)
        )
        first = last = here
        budget = self._settings.expand_tokens - self._tokens(chunks[here])
        reach = 1 if self._settings.expand == "neighbours" else len(chunks)
        for distance in range(1, reach + 1):
            # After the passage first: what explains it follows it more often than it precedes it.
            for place in (here + distance, here - distance):
                touches = place in (last + 1, first - 1) and 0 <= place < len(chunks)
                if not touches or not self._belongs(chunks[here], chunks[place]):
                    continue
                cost = self._tokens(chunks[place])
                if cost > budget:
                    continue
                budget -= cost
                first, last = min(first, place), max(last, place)
        return chunks[first].start, chunks[last].end

    def _belongs(self, passage: Chunk, other: Chunk) -> bool:
        return self._settings.expand == "neighbours" or other.heading == passage.heading

    def _tokens(self, chunk: Chunk) -> int:
        return len(self._embedder.tokenize(chunk.text))

    def _widened(self, context: Context, start: int, end: int) -> Context:
        text = self._snapshot.document_text(context.path)[start:end]
        return context.model_copy(update={"start": start, "end": end, "text": text})
