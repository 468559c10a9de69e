from pathlib import Path

import numpy as np
import pytest

from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder
from knowledge_base.errors import EmbedderError

TEXTS = [
    "The sidecar listens on port 3500.",
    "Invoices are sent on the first day of each month, and a refund is paid within fourteen days. " * 8,
    "A cat sat on the mat.",
    "Wie wird das Passwort gehasht?",
]


def test_vectors_have_length_one(models: Path) -> None:
    vectors = load_embedder(EmbedderSettings(), models).embed_documents(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(models: Path) -> None:
    embedder = load_embedder(EmbedderSettings(), models)
    together = embedder.embed_documents(TEXTS)
    alone = np.stack([embedder.embed_documents([text])[0] for text in TEXTS])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[0], embedder.embed_query(TEXTS[0]))


def test_int8_agrees_with_the_original_model(models: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from knowledge_base.embedders import resolve_model

    original = SentenceTransformer(str(resolve_model("all-MiniLM-L6-v2")), device="cpu").encode(TEXTS)
    for precision, least in (("int8", 0.98), ("fp32", 0.99999)):
        settings = EmbedderSettings.model_validate({"precision": precision})
        ours = load_embedder(settings, models).embed_documents(TEXTS)
        assert (ours * original).sum(axis=1).min() > least, precision


def test_prefixes_change_vectors_and_fingerprint(models: Path) -> None:
    plain = load_embedder(EmbedderSettings(), models)
    prefixed = load_embedder(EmbedderSettings(query_prefix="query: "), models)
    assert np.array_equal(prefixed.embed_query("x"), plain.embed_query("query: x"))
    assert np.array_equal(prefixed.embed_documents(["x"]), plain.embed_documents(["x"]))
    assert prefixed.fingerprint != plain.fingerprint


def test_a_static_model_is_another_fingerprint(models: Path) -> None:
    static = load_embedder(EmbedderSettings(model="static:all-MiniLM-L6-v2"), models)
    assert static.fingerprint != load_embedder(EmbedderSettings(), models).fingerprint
    vectors = static.embed_documents(["a cat on a mat", "the cat sat", "quarterly revenue rose"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_unknown_model_says_what_to_do(models: Path) -> None:
    with pytest.raises(EmbedderError, match="no-such/model") as caught:
        load_embedder(EmbedderSettings(model="no-such/model"), models)
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_damaged_export_says_what_to_do(models: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(models, tmp_path / "models")
    load_embedder(EmbedderSettings(), tmp_path / "models")
    for path in (tmp_path / "models").glob("*-int8/model.onnx"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        load_embedder(EmbedderSettings(), tmp_path / "models")
