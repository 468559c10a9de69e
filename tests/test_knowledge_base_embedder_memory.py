import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedder_memory import RememberingEmbedder
from knowledge_base.embedders import load_embedder


class Counting:
    """The real embedder; how many texts it was given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.texts = inner, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def embed_documents(self, texts: Sequence[str], progress: object = None) -> Any:
        self.texts += texts
        return self.inner.embed_documents(texts)

    def embed_query(self, text: str) -> Any:
        self.texts.append(text)
        return self.inner.embed_query(text)


@pytest.fixture(scope="module")
def real(models: Path) -> Any:
    return load_embedder(EmbedderSettings(), models)


WORDS = st.lists(st.sampled_from(["ferry", "port", "refund", "a key", "", "two words", "é"]), max_size=8)


@settings(max_examples=30)
@given(st.lists(WORDS, max_size=6))
def test_what_is_remembered_is_what_would_be_computed(real: Any, batches: list[list[str]]) -> None:
    remembering = RememberingEmbedder(Counting(real), size=3)
    for batch in batches:
        assert np.array_equal(remembering.embed_documents(batch), real.embed_documents(batch))
        for text in batch[:1]:
            assert np.array_equal(remembering.embed_query(text), real.embed_query(text))
    assert len(remembering._known) <= 3


def test_a_text_is_embedded_once(real: Any) -> None:
    counting = Counting(real)
    remembering = RememberingEmbedder(counting)
    for batch in (["one", "two", "one"], ["two", "three"]):
        remembering.embed_documents(batch)
    remembering.embed_query("one")
    remembering.embed_query("one")
    assert counting.texts == ["one", "two", "three", "one"], "a question and a passage are not the same"
    assert remembering.fingerprint == real.fingerprint


def test_threads_may_share_it(real: Any) -> None:
    remembering = RememberingEmbedder(real, size=5)
    expected = {str(number): real.embed_query(str(number)) for number in range(10)}
    wrong: list[str] = []

    def work(start: int) -> None:
        for number in range(60):
            text = str((start + number) % 10)
            if not np.array_equal(remembering.embed_query(text), expected[text]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
