"""Cross-encoder reranking: question and passage read together, by a sentence-transformers model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge_base.errors import EmbedderError


class Reranker(Protocol):
    """Scores passages for a question."""

    def scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """How well each text answers, higher is better, shape (len(texts),)."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers CrossEncoder by name or folder.

    Raises:
        EmbedderError: The model is not found or cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        from sentence_transformers import CrossEncoder

        try:
            self._model: Any = CrossEncoder(name, device="cpu")
        except Exception as error:
            raise EmbedderError(
                f"The reranker {name!r} cannot be loaded: {str(error).splitlines()[0]}",
                hint="Name a folder, or a model of the hub with HF_HUB_OFFLINE=0; "
                'reranker = "" does without.',
            ) from error

    def scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """How well each text answers, higher is better, shape (len(texts),)."""
        # One at a time: in a batch a text's score would depend on its neighbours' padding.
        pairs = [(question, text) for text in texts]
        return np.array(
            self._model.predict(pairs, batch_size=1, show_progress_bar=False), np.float64
        ).reshape(-1)
