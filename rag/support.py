"""Is a claim supported by its contexts? The offline judge: trained models, no network, repeatable.

Trees count words, in a few milliseconds: they check answers while these are written. A reader beside them
sees what counting cannot, in a twentieth of a second: the evaluator asks for it with `read`. Trained by
benchmarks/training on RAGTruth QA, SciFact and CLAP NQ; what they are and where they err is in docs/judge.md.
A claim that stands in a context word for word is supported, whatever the models say.
"""

import hashlib
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

_READ = _FACTS["read"]

GROUNDING = f"trees-1 {_FACTS['trees'][:12]}"
"""Name of the trees and hash of their weights."""
JUDGE = f"reader-1 {hashlib.sha256(json.dumps(_FACTS).encode()).hexdigest()[:12]}"
"""Name of trees and reader, and hash of all their weights: scores of different judges are never compared."""
SUPPORT_THRESHOLD: float = _FACTS["threshold"]
"""A claim with less support by the trees is unsupported; chosen on questions kept out of the training."""
READ_THRESHOLD: float = _READ["threshold"]
"""The same for trees and reader together."""
_MARKER = re.compile(r"\s*\[\d+\]")
_WORD = re.compile(r"[^\W_]{2,}|\d")


def claims(answer: str) -> list[str]:
    """The sentences of an answer that hold a word, without their citation markers."""
    # A marker ends a claim too: a quoted heading or list item has no full stop of its own.
    unmarked = _MARKER.sub("\n\n", answer)
    sentences = [unmarked[start:end] for start, end in split_sentences(unmarked)]
    return [sentence for sentence in sentences if _WORD.search(sentence)]


def support(made: Sequence[str], contexts: Sequence[str], *, read: bool = False) -> list[float]:
    """For each claim of one answer, the probability that its contexts support it, 0 to 1.

    Without contexts nothing is supported. A claim without a word is, and so is one that is quoted.

    Args:
        made: The claims, in the answer's order.
        contexts: The passages beside which they are judged.
        read: Ask the reader too, 20 to 100 ms an answer; its threshold is READ_THRESHOLD.

    Raises:
        EmbedderError: With `read`, the model that the reader was trained on is not the one that is installed.
    """
    evidence = Evidence.of(contexts)
    words = [Words(claim) for claim in made]
    certain = [not _WORD.search(claim) or _is_quoted(claim, evidence) for claim in made]
    if all(certain):
        return [1.0] * len(made)
    if not evidence.sentences:
        return [1.0 if sure else 0.0 for sure in certain]
    # A score may depend on the answer's other claims, so all of them are judged together.
    odds = _read(words, evidence, contexts) if read else _count(words, evidence)
    scores = 1 / (1 + np.exp(odds))
    return [1.0 if sure else round(float(score), 4) for sure, score in zip(certain, scores, strict=True)]


def _is_quoted(claim: str, evidence: Evidence) -> bool:
    """Whether a claim stands in a context, not as a part of longer words; its full stop may be missing."""
    quote = re.escape(plain(claim).rstrip(".").rstrip())
    return bool(quote) and re.search(rf"(?<!\w){quote}(?!\w)", evidence.plain) is not None


def _count(made: Sequence[Words], evidence: Evidence) -> NDArray[np.float64]:
    """Log-odds by the trees that each claim is not supported."""
    return np.asarray(_FACTS["slope"] * _raw(made, evidence) + _FACTS["shift"])


def _read(made: Sequence[Words], evidence: Evidence, contexts: Sequence[str]) -> NDArray[np.float64]:
    """The same by trees and reader."""
    from rag.support_reader import unsupported

    reader = unsupported(made, evidence, contexts, _READ["base"]).astype(np.float64)
    return np.asarray(_READ["trees"] * _raw(made, evidence) + _READ["reader"] * reader + _READ["shift"])


def _raw(made: Sequence[Words], evidence: Evidence) -> NDArray[np.float64]:
    raw: NDArray[np.float32] = _trees().run(None, {"features": features(made, evidence)})[0][:, 0]
    return raw.astype(np.float64)


@cache
def _trees() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        (_MODELS / "support.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )
