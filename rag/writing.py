"""A language model writes, and only what holds is kept: the draft of an answer and its making."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.errors import ModelError
from knowledge_base.prompts import NO_ANSWER, Prompt
from knowledge_base.sentences import split_units
from rag.answer import Citation, Context, Unsupported, Usage
from rag.grounding import Checked, Statement, Support, check, is_supported, read_statements, trust
from rag.models import LanguageModel, Message
from rag.support import claims
from rag.untrusted import (
    draw_key,
    evidence,
    foreign_addresses,
    harmless,
    known_share,
    numbered,
    terms,
    without_addresses,
    without_foreign_links,
)

_LINE = re.compile(r"\s*(\d+)[.)]\s*(.*)")
_OPENS_MARKER = ("[", "\u3010")
_DROPPED = "DROP"
_FLAG = " [unsupported]"
LEAST_SHARE = 0.3
"""Of a sentence's terms, what passages and question must share; human answers share more: docs/safety.md."""


class Draft:
    """An answer as it grows: its text, with markers of its own numbering, and its citations."""

    def __init__(self, question: str, contexts: Sequence[Context], grounding: str, commit: str) -> None:
        self.text = ""
        self.citations: list[Citation] = []
        self.unsupported: list[Unsupported] = []
        self.question = question
        self.contexts = tuple(contexts)
        self._evidence = evidence(contexts)
        self._known = [question, *(context.text for context in self._evidence)]
        self._terms = terms(" ".join([*self._known, *(part for c in contexts for part in c.heading)]))
        self._strict = grounding == "strict"
        self._judged = grounding != "off"
        self._commit = commit
        self._waiting: list[Statement] = []

    def check(self, statement: Statement) -> Checked:
        """What supports a statement, as far as the grounding asks for it.

        No order to a model is evidence. An address that no passage holds has none, nor has a sentence on
        something else: the judge was trained on answers that keep to their subject, and trusts remarks.
        """
        if not self._judged:
            return trust(statement, self.contexts)
        text = without_foreign_links(statement.text, self._known)
        foreign = foreign_addresses(text, self._known) or not claims(text)
        if foreign or known_share(text, self._terms) < LEAST_SHARE:
            return Checked(statement, (), 0.0)
        statement = replace(statement, text=text)
        checked = check(statement, self._evidence)
        return replace(checked, supports=tuple(self._in_full(support) for support in checked.supports))

    def _in_full(self, support: Support) -> Support:
        """The same support with its passage as it stands in the document."""
        place = next(i for i, context in enumerate(self._evidence) if context is support.context)
        return replace(support, context=self.contexts[place])

    def holds(self, checked: Checked) -> bool:
        """Whether a statement may stand as it is."""
        return not self._judged or is_supported(checked)

    def add(self, checked: Checked) -> str:
        """Take a statement that holds; returns the text that this adds."""
        if not checked.statement.makes_claim:
            # A heading or lead-in stands only before something that it introduces.
            if checked.statement.text.startswith("#"):
                self._waiting.clear()
            if not self._judged or known_share(checked.statement.text, self._terms) == 1:
                self._waiting.append(checked.statement)
            return ""
        before = "".join(waiting.lead + harmless(waiting.text, waiting.lead) for waiting in self._waiting)
        self._waiting.clear()
        numbers = sorted({self._cite(support) for support in checked.supports})
        added = before + _marked(checked.statement, "".join(f" [{number}]" for number in numbers))
        added = added if self.text else added.lstrip()
        self.text += added
        return added

    def refuse(self, checked: Checked) -> str:
        """Take what does not hold: dropped, or shown with a mark; returns the text that this adds."""
        self.unsupported.append(
            Unsupported(sentence=self._shown(checked), support=checked.score, flagged=not self._strict)
        )
        if self._strict:
            return ""
        added = _marked(replace(checked.statement, text=self._shown(checked)), _FLAG)
        added = added if self.text else added.lstrip()
        self.text += added
        return added

    def _shown(self, checked: Checked) -> str:
        """What is shown of a sentence that does not hold: no address that could carry anything away."""
        text = without_foreign_links(checked.statement.text, self._known)
        named = without_addresses(text, foreign_addresses(text, self._known))
        return harmless(named, checked.statement.lead)

    def _cite(self, support: Support) -> int:
        for citation in self.citations:
            if (citation.path, citation.start, citation.end) == (
                support.context.path,
                support.start,
                support.end,
            ):
                return citation.marker
        quote = support.quote
        self.citations.append(
            Citation(
                marker=len(self.citations) + 1,
                path=support.context.path,
                commit=self._commit,
                chunk_id=support.context.chunk_id,
                start=support.start,
                end=support.end,
                quote=quote,
                sha256=sha256_hex(quote.encode()),
                score=support.context.score,
                support=support.score,
            )
        )
        return len(self.citations)


def write(
    draft: Draft,
    model: LanguageModel,
    prompts: Mapping[str, Prompt],
    spend: Callable[[Usage], None],
) -> Iterator[str]:
    """Have the model answer into `draft`; yields each piece of checked text, and tells `spend` the tokens.

    Raises:
        ModelError: The model failed; what the draft holds is then worth nothing.
    """
    question, passages = draft.question, numbered(draft.contexts, draw_key())
    asked = prompts["answer"].render(question=question, contexts=passages)
    held: list[Checked] = []
    for statement in _statements(model, asked, spend):
        if statement.text.strip(" .*").upper().startswith(NO_ANSWER):
            continue
        checked = draft.check(statement)
        if held or not draft.holds(checked):
            held.append(checked)
        else:
            yield draft.add(checked)
    if not held:
        return
    wrong = [checked.statement.text for checked in held if not draft.holds(checked)]
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(wrong, 1))
    better = _repairs(
        model, prompts["repair"].render(question=question, contexts=passages, sentences=listed), spend
    )
    for checked in held:
        yield from [draft.add(checked)] if draft.holds(checked) else _mend(draft, checked, next(better, ""))


def _statements(
    model: LanguageModel, messages: Sequence[Message], spend: Callable[[Usage], None]
) -> Iterator[Statement]:
    """Each statement of the reply as soon as the next one has begun."""
    said, done, ended = "", 0, False
    for piece in model.stream(messages):
        said += piece.text
        if piece.completion:
            spend(piece.completion.usage)
            known = read_statements(said)
            # A reply at its limit ends in the middle of a sentence.
            if piece.completion.cut and not said.rstrip().endswith((".", "!", "?", "]")):
                known = known[:-1]
            yield from known[done:]
            return
        # Looked at again only when a sentence may have ended, until the next one has begun.
        ended = ended or any(sign in piece.text for sign in ".!?\n")
        if ended:
            # The sentence under way may still change; the one before it, too, while its markers come in.
            known = read_statements(said)
            ready = known[: -2 if known and known[-1].text.startswith(_OPENS_MARKER) else -1]
            yield from ready[done:]
            if len(ready) > done:
                done, ended = len(ready), False


def _repairs(
    model: LanguageModel, messages: Sequence[Message], spend: Callable[[Usage], None]
) -> Iterator[str]:
    """What the model would rather say in place of each sentence, in turn; empty for one it gives up."""
    try:
        reply = model.complete(messages)
    except ModelError:
        return  # what was supported before still is
    spend(reply.usage)
    found = {int(line[1]): line[2] for line in map(_LINE.fullmatch, reply.text.splitlines()) if line}
    for number in range(1, max(found, default=0) + 1):
        text = found.get(number, "")
        yield "" if text.strip(" .").upper().startswith(_DROPPED) else text


def _mend(draft: Draft, wrong: Checked, better: str) -> Iterator[str]:
    """Take what holds of a repair, in the place of the sentence it repairs."""
    mended = [draft.check(statement) for statement in read_statements(better)]
    mended = [one for one in mended if one.statement.makes_claim and draft.holds(one)]
    if not mended:
        yield draft.refuse(wrong)
    for place, one in enumerate(mended):
        lead = one.statement.lead if place else wrong.statement.lead
        yield draft.add(replace(one, statement=replace(one.statement, lead=lead or " ")))


def _marked(statement: Statement, markers: str) -> str:
    """The statement with its markers before its last full stop, or on the line after a block of code."""
    text = harmless(statement.text, statement.lead)
    if text.endswith("```"):
        return f"{statement.lead}{text}\n{markers.strip()}"
    stop = re.search(r"[.!?][\"'\u201d)]*$", text)
    place = stop.start() if stop else len(text)
    return statement.lead + text[:place] + markers + text[place:]


def pack(contexts: Sequence[Context], budget: int, embedder: Embedder) -> tuple[Context, ...]:
    """As many of the best passages as fit into `budget` tokens; of the first, at least its beginning."""
    chosen: list[Context] = []
    for context in contexts:
        tokens = len(embedder.tokenize(context.text))
        if tokens <= budget:
            chosen.append(context)
            budget -= tokens
        elif not chosen:
            return (_shortened(context, budget, embedder),)
    return tuple(chosen)


def _shortened(context: Context, budget: int, embedder: Embedder) -> Context:
    end = 0
    for unit in split_units(context.text):
        if end and len(embedder.tokenize(context.text[: unit.end])) > budget:
            break
        end = unit.end
    return context.model_copy(update={"text": context.text[:end], "end": context.start + end})
