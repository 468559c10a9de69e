"""The reader of rag/support_reader.py as an int8 graph: shipped adapter and base model, put together at load.

Takes a second and no torch. Weights have one scale per output channel, activations one per call (dynamic).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYERS, WIDTH, HEADS = 6, 384, 12
LINEAR = ("attention.self.query", "attention.self.key", "attention.self.value",
          "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_EPSILON = 1e-12
Floats = NDArray[np.float32]


class _Graph:
    """Nodes and constants, each node with one output of a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

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

    def norm(self, x: str, weight: Floats, bias: Floats) -> str:
        return str(self.add("LayerNormalization", x, self.constant(weight), self.constant(bias),
                            axis=-1, epsilon=_EPSILON))  # fmt: skip


def build(weights: Mapping[str, Floats]) -> bytes:
    """The encoder: tokens (T, WIDTH), contexts before claims, to claims (T - `read`, WIDTH).

    `read` is the number of tokens of the contexts, `mask` (T - read, T) is added to the claims' attention.
    """
    from onnx import TensorProto, helper

    graph = _Graph()
    zero = graph.constant(np.array([0], np.int64))
    split = graph.constant(np.array([0, HEADS, WIDTH // HEADS], np.int64))
    joined = graph.constant(np.array([0, WIDTH], np.int64))
    end = graph.constant(np.array([np.iinfo(np.int64).max], np.int64))
    size = graph.constant(np.float32((WIDTH // HEADS) ** -0.5))
    half, one, root = (graph.constant(np.float32(v)) for v in (0.5, 1, 2**-0.5))

    def heads(x: str, order: list[int]) -> str:
        return str(graph.add("Transpose", graph.add("Reshape", x, split), perm=order))

    def attend(q: str, k: str, v: str, mask: str | None) -> str:
        scores = graph.add("Mul", graph.add("MatMul", q, k), size)
        scores = graph.add("Add", scores, mask) if mask else scores
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
        return str(graph.add("Reshape", graph.add("Transpose", mixed, perm=[1, 0, 2]), joined))

    def first(x: str, axis: int) -> str:
        return str(graph.add("Slice", x, zero, "read", graph.constant(np.array([axis], np.int64))))

    def rest(x: str, axis: int) -> str:
        return str(graph.add("Slice", x, "read", end, graph.constant(np.array([axis], np.int64))))

    x = "tokens"
    for layer in range(LAYERS):

        def of(name: str, layer: int = layer) -> tuple[Floats, Floats]:
            part = f"encoder.layer.{layer}.{name}"
            return weights[f"{part}.weight"], weights[f"{part}.bias"]

        last = layer == LAYERS - 1  # what the contexts become after the last layer is read by nobody
        x8 = graph.quantised(x)
        k = heads(graph.linear(x8, *of(LINEAR[1])), [1, 2, 0])
        v = heads(graph.linear(x8, *of(LINEAR[2])), [1, 0, 2])
        if last:
            x = rest(x, 0)
            x8 = [rest(x8[0], 0), *x8[1:]]
        q = heads(graph.linear(x8, *of(LINEAR[0])), [1, 0, 2])
        if last:
            mixed = attend(q, k, v, "mask")
        else:
            claims = attend(rest(q, 1), k, v, "mask")
            contexts = attend(first(q, 1), first(k, 2), first(v, 1), None)
            mixed = graph.add("Concat", contexts, claims, axis=0)
        x = graph.norm(
            graph.add("Add", x, graph.linear(graph.quantised(mixed), *of(LINEAR[3]))), *of(NORMS[0])
        )
        up = graph.linear(graph.quantised(x), *of(LINEAR[4]))
        erf = graph.add("Add", graph.add("Erf", graph.add("Mul", up, root)), one)
        up = graph.add("Mul", graph.add("Mul", up, erf), half)
        x = graph.norm(graph.add("Add", x, graph.linear(graph.quantised(up), *of(LINEAR[5]))), *of(NORMS[1]))
    made = helper.make_graph(
        graph.nodes,
        "reader",
        [
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["all", WIDTH]),
            helper.make_tensor_value_info("read", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["claims", "all"]),
        ],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["claims", WIDTH])],
        graph.constants,
    )
    model: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return model
