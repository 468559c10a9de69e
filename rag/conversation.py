"""What a question asks: after what was said before it, and when it is several in one."""

import re
from collections.abc import Mapping, Sequence

from knowledge_base.errors import ModelError, PlumblineError
from knowledge_base.prompts import Prompt
from rag.answer import Turn, Usage
from rag.models import LanguageModel

_TURNS = 4
_REMEMBERED = 600  # characters of an answer
_LONGEST_QUERY = 1000
_WORD = re.compile(r"[^\W_]+")
_POINTING = frozenset(
    """
    it its he him his she her they them their theirs this that these those there then one ones former latter
    same such both
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)
_OPENINGS = re.compile(
    r"\s*(?:and|but|or|so|what about|how about|why|why not|since when|which one)\b", re.IGNORECASE
)
_SHORT = 3
_ASKS = r"(?:what|which|who|whom|whose|when|where|why|how)"
_HELPS = r"(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have)"
_LEADS = r"(?:at|by|for|from|in|of|on|since|to|under|until|with)"
_SUBJECT = r"(?:i|we|you|he|she|it|they|there|this|that|these|those|the|an?|my|our|your)"
_FIRST = re.compile(rf"\s*{_HELPS}\b|.*\b{_ASKS}\b", re.IGNORECASE | re.DOTALL)
_NEXT = re.compile(
    # Not "Austria and what other country": that is one question. White space is tried from its beginning
    # alone, else a question of blanks would take the square of its length.
    rf"(?:\?\s+(?:and\s+)?|(?:[,;]|(?<!\s))\s+and\s+)(?:also\s+)?"
    rf"(?=(?:{_LEADS}\s+)?{_ASKS}\s++(?!other\b|else\b)|{_HELPS}\s+{_SUBJECT}\b)",
    re.IGNORECASE,
)
# "The difference between what is billed and what is used" is one question as well.
_PAIR = re.compile(r"\b(?:between|both)\b(?!.*\band\b)", re.IGNORECASE | re.DOTALL)
_MOST_PARTS = 4


def stand_alone(
    question: str, history: Sequence[Turn], model: LanguageModel | None, prompts: Mapping[str, Prompt]
) -> tuple[str, Usage]:
    """The question as it can be searched for without the conversation, and the tokens this took.

    A language model rewrites it with the prompt `condense`. Without one, or when that fails, a question that
    points back (a pronoun, "and on Sundays?", three words or fewer) is searched for together with the one
    before it.
    """
    if not history:
        return question, Usage()
    if model and "condense" in prompts:
        try:
            said = model.complete(prompts["condense"].render(question=question, history=_transcript(history)))
        except PlumblineError:
            pass  # the answer itself will say what is wrong with the model
        else:
            rewritten = " ".join(said.text.split())
            return (rewritten if 0 < len(rewritten) <= _LONGEST_QUERY else question), said.usage
    return _joined(question, history), Usage()


def other_queries(question: str, count: int, model: LanguageModel, prompt: Prompt) -> tuple[list[str], Usage]:
    """Up to `count` other ways to ask, and the tokens this took. Raises ModelError."""
    said = model.complete(prompt.render(question=question, count=str(count)))
    lines = [re.sub(r"^\s*(?:[-*]|\d+[.)])\s*", "", line).strip() for line in said.text.splitlines()]
    found = [
        line for line in dict.fromkeys(lines) if line and line != question and len(line) <= _LONGEST_QUERY
    ]
    if not found:
        raise ModelError(f"{model.name} wrote no queries.")
    return found[:count], said.usage


def asked_apart(question: str, query: str, history: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
    """The questions in one ("What is the port, and how do I change it?"): as searched for, and as asked.

    `query` is what the whole question is searched for; a part that points back comes with the one before.
    """
    parts = split_question(question)
    if len(parts) == 1:
        return ((query, question),)
    turns = list(history)
    apart = []
    for part in parts:
        apart.append((_joined(part, turns), part))
        turns.append(Turn(question=part, answer=""))
    return tuple(apart)


def split_question(question: str) -> tuple[str, ...]:
    """The questions that one holds, four at most; itself alone when it is in doubt."""
    parts = tuple(part.strip() for part in _NEXT.split(question, maxsplit=_MOST_PARTS - 1))
    is_plain = _FIRST.match(parts[0]) and all(len(_WORD.findall(part)) >= _SHORT for part in parts)
    is_pair = any(map(_PAIR.search, parts[:-1]))
    return parts if is_plain and not is_pair else (question,)


def _transcript(history: Sequence[Turn]) -> str:
    return "\n".join(
        f"Question: {turn.question}\nAnswer: {turn.answer[:_REMEMBERED]}" for turn in history[-_TURNS:]
    )


def _joined(question: str, history: Sequence[Turn]) -> str:
    words = [word.lower() for word in _WORD.findall(question)]
    points_back = len(words) <= _SHORT or bool(set(words) & _POINTING) or bool(_OPENINGS.match(question))
    if not (points_back and history):
        return question
    # The question before may itself have pointed further back.
    before = _joined(history[-1].question, history[:-1]) if len(history) > 1 else history[-1].question
    return f"{before} {question}"[-_LONGEST_QUERY:]
