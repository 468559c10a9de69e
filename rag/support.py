"""Is a claim supported by its contexts? The offline judge: a trained model, no network, repeatable.

Trained by benchmarks/training on RAGTruth QA, SciFact and CLAP NQ; what it is and where it errs is in
docs/judge.md. A claim that stands in a context word for word is supported, whatever the model says.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowledge_base.sentences import split_sentences
from rag.evidence import Evidence, Words, features, plain

_MODELS = Path(__file__).parent / "models"
_FACTS = json.loads((_MODELS / "support.json").read_text())

JUDGE = f"trees-1 {_FACTS['trees'][:12]}"
"""Name of the model and hash of its weights: scores of different judges are never compared."""
SUPPORT_THRESHOLD: float = _FACTS["threshold"]
"""A claim with less support counts as unsupported; chosen on questions kept out of the training."""
_MARKER = re.compile(r"\s*\[\d+\]")
_WORD = re.compile(r"[^\W_]{2,}|\d")


def claims(answer: str) -> list[str]:
    """The sentences of an answer that hold a word, without their citation markers."""
    # A marker ends a claim too: a quoted heading or list item has no full stop of its own.
    unmarked = _MARKER.sub("\n\n", answer)
    sentences = [unmarked[start:end] for start, end in split_sentences(unmarked)]
    return [sentence for sentence in sentences if _WORD.search(sentence)]


def support(made: Sequence[str], contexts: Sequence[str]) -> list[float]:
    """For each claim of one answer, the probability that its contexts support it, 0 to 1.

    Without contexts nothing is supported. A claim without a word is, and so is one that is quoted.
    """
    evidence = Evidence.of(contexts)
    words = [Words(claim) for claim in made]
    # A score may depend on the answer's other claims, so all of them are judged together.
    scores = _judge(words, evidence) if made and evidence.sentences else [0.0] * len(made)
    return [
        1.0 if not _WORD.search(claim.text) or _is_quoted(claim.text, evidence) else score
        for claim, score in zip(words, scores, strict=True)
    ]


def _is_quoted(claim: str, evidence: Evidence) -> bool:
    """Whether a claim stands in a context, not as a part of longer words; its full stop may be missing."""
    quote = re.escape(plain(claim).rstrip(".").rstrip())
    return bool(quote) and re.search(rf"(?<!\w){quote}(?!\w)", evidence.plain) is not None


def _judge(made: Sequence[Words], evidence: Evidence) -> list[float]:
    raw: NDArray[np.float32] = _trees().run(None, {"features": features(made, evidence)})[0][:, 0]
    unsupported = 1 / (1 + np.exp(-(_FACTS["slope"] * raw.astype(np.float64) + _FACTS["shift"])))
    return [round(float(value), 4) for value in 1 - unsupported]


@cache
def _trees() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        (_MODELS / "support.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )
