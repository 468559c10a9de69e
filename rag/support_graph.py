"""The reader of rag/support_reader.py as an int8 graph: shipped adapter and base model, put together at load.

Takes a second and no torch. Weights have one scale per output channel, activations one per call (dynamic).
"""

from collections.abc import Mapping

import numpy as np

from rag.encoder_graph import Floats, Graph

LAYERS, WIDTH, HEADS = 6, 384, 12
LINEAR = ("attention.self.query", "attention.self.key", "attention.self.value",
          "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_EPSILON = 1e-12


class _Encoder(Graph):
    """The layers of the encoder; claims read the contexts and themselves, contexts each other."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        super().__init__(WIDTH, HEADS, _EPSILON)
        self._weights = weights
        self._zero = self.constant(np.array([0], np.int64))
        self._end = self.constant(np.array([np.iinfo(np.int64).max], np.int64))

    def quantised(self, x: str) -> list[str]:
        return list(self.add("DynamicQuantizeLinear", x, outputs=3))

    def linear(self, x: list[str], weight: Floats, bias: Floats) -> str:
        """`x @ weight.T + bias` with x as uint8 and the weight as int8."""
        values, scale, zero = x
        scales = np.maximum(np.abs(weight).max(1), 1e-9) / 127
        whole = np.round(weight / scales[:, None]).astype(np.int8).T.copy()
        product = self.add("MatMulInteger", values, self.constant(whole), zero)
        both = self.add("Mul", scale, self.constant(scales.astype(np.float32)))
        return str(
            self.add("Add", self.add("Mul", self.add("Cast", product, to=1), both), self.constant(bias))
        )

    def layer(self, x: str, number: int) -> str:
        """One layer; of the last only what becomes of the claims."""
        last = number == LAYERS - 1
        x8 = self.quantised(x)
        k = self.heads(self.linear(x8, *self._of(number, LINEAR[1])), [1, 2, 0])
        v = self.heads(self.linear(x8, *self._of(number, LINEAR[2])), [1, 0, 2])
        if last:
            x = self._rest(x, 0)
            x8 = [self._rest(x8[0], 0), *x8[1:]]
        q = self.heads(self.linear(x8, *self._of(number, LINEAR[0])), [1, 0, 2])
        if last:
            mixed = self.attend(q, k, v, "mask")
        else:
            claims = self.attend(self._rest(q, 1), k, v, "mask")
            contexts = self.attend(self._first(q, 1), self._first(k, 2), self._first(v, 1), None)
            mixed = self.add("Concat", contexts, claims, axis=0)
        return self._fed_forward(self._added(x, self.quantised(mixed), number, LINEAR[3], NORMS[0]), number)

    def _fed_forward(self, x: str, number: int) -> str:
        up = self.gelu(self.linear(self.quantised(x), *self._of(number, LINEAR[4])))
        return self._added(x, self.quantised(up), number, LINEAR[5], NORMS[1])

    def _added(self, x: str, more: list[str], number: int, linear: str, norm: str) -> str:
        total = self.add("Add", x, self.linear(more, *self._of(number, linear)))
        return self.norm(total, *self._of(number, norm))

    def _of(self, number: int, name: str) -> tuple[Floats, Floats]:
        part = f"encoder.layer.{number}.{name}"
        return self._weights[f"{part}.weight"], self._weights[f"{part}.bias"]

    def _first(self, x: str, axis: int) -> str:
        return str(self.add("Slice", x, self._zero, "read", self.constant(np.array([axis], np.int64))))

    def _rest(self, x: str, axis: int) -> str:
        return str(self.add("Slice", x, "read", self._end, self.constant(np.array([axis], np.int64))))


def build(weights: Mapping[str, Floats]) -> bytes:
    """The encoder: tokens (T, WIDTH), contexts before claims, to claims (T - `read`, WIDTH).

    `read` is the number of tokens of the contexts, `mask` (T - read, T) is added to the claims' attention.
    """
    from onnx import TensorProto

    graph = _Encoder(weights)
    x = "tokens"
    for number in range(LAYERS):
        x = graph.layer(x, number)
    inputs: list[tuple[str, int, list[str | int]]] = [
        ("tokens", TensorProto.FLOAT, ["all", WIDTH]),
        ("read", TensorProto.INT64, [1]),
        ("mask", TensorProto.FLOAT, ["claims", "all"]),
    ]
    return graph.serialised(inputs, x, ["claims", WIDTH])
