"""An embedder that remembers: a server meets the same passages in question after question."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from knowledge_base.embedders import Embedder, Progress
from knowledge_base.values import Fingerprint

REMEMBERED = 20_000
"""Vectors kept: about 40 MB at 384 dimensions."""

_Key = tuple[bool, bytes]


class RememberingEmbedder:
    """Vectors of the texts met last, each computed once. Safe to share between threads.

    Only for embedders whose vector of a text depends on that text alone and not on what else is in its
    batch: what is remembered is then what would be computed again, bit for bit.
    """

    def __init__(self, inner: Embedder, size: int = REMEMBERED) -> None:
        self._inner = inner
        self._size = size
        self._known: OrderedDict[_Key, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self.dimension, self.max_tokens = inner.dimension, inner.max_tokens

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the embedder itself."""
        return self._inner.fingerprint

    def tokenize(self, text: str) -> list[int]:
        """Token ids without special tokens and without truncation."""
        return self._inner.tokenize(text)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of a question, shape (dimension,); not to be changed."""
        key = _key(text, query=True)
        vector = self._find([key])[0]
        if vector is None:
            vector = self._inner.embed_query(text)
            self._keep({key: vector})
        return vector

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, shape (len(texts), dimension)."""
        keys = [_key(text, query=False) for text in texts]
        known = {
            key: vector for key, vector in zip(keys, self._find(keys), strict=True) if vector is not None
        }
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = dict(
                zip(missing, self._inner.embed_documents(list(missing.values()), progress), strict=True)
            )
            self._keep(made)
            known.update(made)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for row, key in enumerate(keys):
            vectors[row] = known[key]
        return vectors

    def _find(self, keys: Sequence[_Key]) -> list[NDArray[np.float32] | None]:
        with self._lock:
            for key in keys:
                if key in self._known:
                    self._known.move_to_end(key)
            return [self._known.get(key) for key in keys]

    def _keep(self, made: dict[_Key, NDArray[np.float32]]) -> None:
        with self._lock:
            for key, vector in made.items():
                self._known[key] = vector.copy()  # a row of a batch would keep the whole batch
            while len(self._known) > self._size:
                self._known.popitem(last=False)


def _key(text: str, *, query: bool) -> _Key:
    """Not the text itself: passages are long."""
    return query, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
