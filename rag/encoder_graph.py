"""Encoders as graphs for onnxruntime: what those of the two readers have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Graph:
    """Nodes and constants, each node with one output of a name of its own."""

    def __init__(self, width: int, heads: int, epsilon: float) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._epsilon = epsilon
        self._split = self.constant(np.array([0, heads, width // heads], np.int64))
        self._joined = self.constant(np.array([0, width], np.int64))
        self._size = self.constant(np.float32((width // heads) ** -0.5))
        self._half, self._one, self._root = (self.constant(np.float32(v)) for v in (0.5, 1, 2**-0.5))

    def constant(self, value: Any) -> str:
        """A value that is stored in the graph."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns the name of its output, or a list of names."""
        from onnx import helper

        names = [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def norm(self, x: str, weight: Floats, bias: Floats) -> str:
        """Layer normalisation."""
        return str(self.add("LayerNormalization", x, self.constant(weight), self.constant(bias),
                            axis=-1, epsilon=self._epsilon))  # fmt: skip

    def gelu(self, x: str) -> str:
        """GELU, by the error function."""
        erf = self.add("Add", self.add("Erf", self.add("Mul", x, self._root)), self._one)
        return str(self.add("Mul", self.add("Mul", x, erf), self._half))

    def heads(self, x: str, order: Sequence[int]) -> str:
        """Rows (T, width) as (T, heads, width of a head), transposed."""
        return str(self.add("Transpose", self.add("Reshape", x, self._split), perm=list(order)))

    def attend(self, q: str, k: str, v: str, mask: str | None) -> str:
        """Attention of q (heads, Q, w) to k (heads, w, T) and v (heads, T, w), `mask` added to its scores."""
        scores = self.add("Mul", self.add("MatMul", q, k), self._size)
        scores = self.add("Add", scores, mask) if mask else scores
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        return str(self.add("Reshape", self.add("Transpose", mixed, perm=[1, 0, 2]), self._joined))

    def serialised(
        self, inputs: Sequence[tuple[str, Any, Sequence[Any]]], output: str, shape: Sequence[Any]
    ) -> bytes:
        """The whole model; inputs are (name, element type, shape)."""
        from onnx import TensorProto, helper

        made = helper.make_graph(
            self.nodes,
            "reader",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.constants,
        )
        model: bytes = helper.make_model(
            made,
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
            ir_version=8,
        ).SerializeToString()
        return model


def open_session(model: bytes | str) -> Any:
    """An onnxruntime session of one thread, of a model or the path of its file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
