"""Sentences that order a language model about: what indirect prompt injection looks like in a document.

One rule for what is flagged at ingest and for what counts as no evidence for an answer. It knows forms of
words, not intentions: a question or a task that stands alone ("Write a poem.") is not told from a text that
quotes one, and whoever knows the rule can word an order past it. So it is an alarm, and no wall. Precision
comes first: what people write for people ("ignore the previous step", "include it in your reply") is let by.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from knowledge_base.sentences import split_units


@dataclass(frozen=True)
class Order:
    """Where an order stands, in characters of the text; `plain` when it can hardly be meant for people."""

    start: int
    end: int
    plain: bool


def _any_of(*forms: str) -> re.Pattern[str]:
    return re.compile("|".join(forms), re.IGNORECASE)


# Forms are matched in sentences whose white space is single spaces.
_OPENING = (
    r"(?:system|assistant|user|human|ai|important|attention|note|urgent|warning|new rules?|"
    r"admin(?:istrator)?)\b[^\w\n]{0,5}"
)
_COURTESY = (
    r"(?:please|now|also|then|first|finally|instead|so|and|but|kindly|be sure to|make sure to|remember to|"
    r"you (?:must|should|will|shall)(?: now| always)?|hey[^,]{0,20}),? "
)
# What may stand before an imperative; not "if" and "when", which begin advice to people.
_DO = rf"^[\W_]*(?:{_OPENING})?(?:{_COURTESY})*"
_MODEL = (
    r"(?:(?:(?:ai|artificial intelligence|large|language|chat)[ -])+(?:assistant|model|agent|system|bot)s?|"
    r"llms?|chatbots?|(?:chat)?gpt(?:-?\d\S*)?|claude|gemini|copilot)"
)
_IGNORE = (
    r"(?:ignore|disregard|forget|override|bypass|discard|neglect|stop following|do not follow|don't follow)"
)
_EARLIER = r"(?:previous|prior|preceding|earlier|above|foregoing|former|original|initial|existing|system)"
_RULES = (
    r"(?:instructions?|prompts?|directions?|directives?|guidelines?|rules?|commands?|orders?|messages?|"
    r"context|conversation|training|constraints?|restrictions?)\b"
)
_PROMPT = r"(?:(?:system|hidden|initial|original|secret|full|entire|own|previous) )*(?:prompt|instructions)\b"
_REPLY = (
    r"\byour (?:\w+ ){0,2}?(?:answer|response|reply)\b(?! (?:template|form|sheet|card|key|button|format))"
)
_GIVE = r"(?:reveal|leak|disclose|recite|expose|exfiltrate|repeat|print|output|show|display|list|send|post)"
_REWORK = (
    r"(?:modify|augment|enhance|alter|integrate|embed|insert|append|prepend|incorporate|weave|replace|"
    r"substitute|scramble|jumble|rearrange|convert|encode|encrypt|render|misspell|anagram|reverse|translate|"
    r"obfuscate|rewrite|introduce|combine|remove|group|swap|spell|capitali[sz]e|shuffle)"
)
_WRITE = (
    r"(?:add|include|mention|give|provide|write|use|put|keep|make|state|phrase|link|format|deliver|offer|share|"
    r"send|craft|compose|limit)"
)
_BEGIN = r"(?:begin|start|end|finish|conclude|preface)"
_SAY = r"(?:answer|respond|reply|write|say|output|print)"

_PLAIN = _any_of(
    # What was said before is to count no more.
    rf"{_DO}{_IGNORE} (?:absolutely )?(?:all|any|every|everything)(?: (?:of|the|your|these|those|other))* "
    rf"(?:{_EARLIER} (?:(?:or|and) {_EARLIER} )?)?{_RULES}(?! (?:for|on|about|in|from|you received)\b)",
    rf"{_DO}{_IGNORE} (?:the |your )?(?:{_EARLIER} )?{_RULES} (?:you (?:were|have been|got)|given to you)\b",
    rf"{_DO}{_IGNORE} your (?:{_EARLIER} |safety |programming )?{_RULES}",
    rf"{_DO}{_IGNORE} (?:everything|anything|all) (?:you (?:were|have been|know)|(?:that )?(?:was|came) "
    r"(?:said|written|before))\b",
    rf"{_DO}{_IGNORE} (?:the|this|that) (?:user'?s? )?(?:question|query)\b",
    # Who the reader is to be.
    rf"{_DO}(?:from now on,? )?you are (?:now|no longer) (?:an? |the |in |called )?(?:\w+ ){{0,3}}"
    r"(?:ai|assistant|chatbot|dan|unrestricted|jailbroken|(?:god|jailbreak) mode|bound by)\b",
    rf"{_DO}(?:from now on|starting now|henceforth),? (?:you (?:must|will|shall|are to) )?(?:only |always )?"
    r"(?:act|answer|respond|reply|behave|speak|pretend)\b",
    rf"{_DO}(?:enter|enable|activate|switch to) (?:dan|god|jailbreak|unrestricted) mode\b",
    r"^[\W_]*(?:system|assistant) ?: ?(?:new|updated?|override|you|ignore|forget)\b",
    r"^[\W_]*(?:new|updated|real|actual) (?:system )?(?:instructions?|prompt) ?:",
    # A word to the model itself.
    r"^[\W_]*(?:(?:attention|dear|hello|hey|hi|note|notice|message|instructions?|important)[ ,:!-]+)+"
    rf"(?:(?:to|for) )?(?:all |any |the )?{_MODEL}\b",
    rf"\bif you(?:'re| are) (?:an?|the) (?:automated )?{_MODEL}\b",
    rf"^[\W_]*(?:as )?an? {_MODEL},? you (?:must|should|will|shall|have to|are (?:required|instructed))\b",
    # What it was told, or holds, is to be given away.
    rf"{_DO}(?:{_GIVE}|return|tell|give|write) (?:(?:me|us|out|back|verbatim) )*your {_PROMPT}",
    rf"{_DO}(?:reveal|leak|disclose|recite|expose|exfiltrate) (?:the )?(?:system|hidden|secret|initial) "
    rf"{_PROMPT}",
    rf"{_DO}(?:{_GIVE}|forward|email) [^\n]{{0,40}}\b(?:this|the|our) "
    r"(?:conversation|chat history|chat|user'?s? (?:data|question|query|messages?))\b",
    r"!\[[^\]\n]*\]\([^)\s]*[?&=/][^)\s]*(?:\{[^}\s]*\}|<[^>\s]+>|\[[A-Z_ ]{4,}\])",
    # What its answer is to be like.
    rf"{_DO}{_REWORK}\b[^\n]{{0,160}}{_REPLY}",
    rf"{_DO}{_BEGIN} (?:(?:(?:all|each|every one) )?(?:of )?{_REPLY}|"
    r"(?:every|each) (?:answer|response|reply)\b)",
    rf"{_DO}(?:scramble|jumble|misspell|anagram|encode|obfuscate|render)\b[^\n]{{0,80}}"
    r"\byour (?:message|output|text)\b",
    rf"{_DO}in your (?:answer|response|reply|summary),? (?:\w+ )?(?:suggest|include|tease|mention|say|tell|"
    r"add|claim|recommend|use|state|ask|urge|promote|refer|insist|link)\b",
    rf"{_DO}(?:answer|respond|reply) (?:only )?in (?:base64|rot13|leetspeak|morse|pig latin)\b",
    rf"{_DO}{_SAY} (?:with )?(?:only|nothing but|exactly) (?:with )?the (?:words?|phrase|sentence|string)\b",
    # Marks that begin and end turns in the formats of chat models.
    r"(?<![\"'`\w])(?:<\|(?:im_start|im_end|system|user|assistant|endoftext|start_header_id|eot_id)\|>|"
    r"\[/?INST\]|<</?SYS>>)",
    r"^[\W_]*</(?:passages?|context|documents?|data|quote)>",
)
# The same, in words that people may well say to each other: worth a look.
_PERHAPS = _any_of(
    rf"{_DO}{_IGNORE} (?:(?:all|any) )?(?:of )?(?:the )?{_EARLIER} {_RULES}",
    rf"{_DO}{_IGNORE} (?:(?:all|any) )?(?:of )?the {_RULES} above\b",
    rf"{_DO}{_IGNORE} (?:all )?(?:of )?the above ?(?:and|[,.;:!])",
    rf"{_DO}{_WRITE}\b[^\n]{{0,160}}{_REPLY}",
    rf"{_DO}{_SAY} (?:only )?with the (?:word|phrase|sentence|string|following)\b",
    rf"{_DO}{_GIVE} the (?:system|hidden|initial) prompt\b",
    rf"{_DO}(?:tell|inform|advise|urge|convince|persuade) (?:the user|users|everyone|everybody|"
    r"whoever asks)\b",
    rf"{_DO}(?:act as|pretend (?:to be|that you|you))\b",
    rf"\b{_MODEL} (?:must|should|shall) (?:always|never|only|ignore|not|say|answer|respond|recommend|rank)\b",
    r"\b(?:if|when(?:ever)?) (?:the user|anyone|someone|somebody|you are|you're) ask(?:s|ed)\b[^\n]{0,80}"
    r"\b(?:answer|say|reply|respond|claim|tell)\b",
)
# Words of a web service's response, not of a writer's.
_SERVICE = _any_of(
    r"\b(?:https?|headers?|status(?: codes?)?|api|json|xml|endpoints?|servers?|requests?|payload|body|"
    r"fields?|cookies?|callback|handlers?|webhooks?|client|cache|query string|class|functions?|middleware)\b",
    r"[`{}=]",
)
# One of these stands in whatever the forms above find, and looking for them first is much faster.
_YOUR = "your"
_CLUES = (
    _YOUR,
    *(
        "ignor",
        "disregard",
        "forget",
        "overrid",
        "bypass",
        "discard",
        "neglect",
        "not follow",
        "stop following",
    ),
    *("you are n", "you are an", "you are the", "you're a", "now on", "starting now", "henceforth", "mode"),
    *("assistant", "instruction", "prompt", "language model", "llm", "gpt", "chatbot", "claude", "gemini"),
    *("copilot", "ai model", "ai agent", "ai system", "ai bot", "conversation", "chat", "user", "everyone"),
    *(
        "everybody",
        "asks",
        "asked",
        "act as",
        "pretend",
        "only",
        "nothing but",
        "exactly",
        "with the",
    ),
    *("system", "every", "each", "the above", "![", "<|", "[inst", "[/inst", "<<", "</"),
)
_YOURS = re.compile(r"your (?:\w+ ){0,2}?(?:answer|respons|repl|message|output|text|summary|rules|training)")
_UNSEEN = re.compile(
    "[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f\U000e0000-\U000e01ef]"
)
_LONGEST = 2000


def find_orders(text: str) -> list[Order]:
    """Orders to a model in a text, sentence by sentence, in order."""
    clues = _clues_in(bare(text).lower(), _CLUES)
    if not clues:
        return []
    found = []
    for unit in split_units(text):
        plain = _read(text[unit.start : unit.end], clues)
        if plain is not None:
            found.append(Order(unit.start, unit.end, plain))
    return found


def is_order(sentence: str) -> bool:
    """Whether a sentence is plainly an order to a model."""
    return _read(sentence, _CLUES) is True


def _clues_in(lowered: str, clues: Sequence[str]) -> list[str]:
    """Those that stand in a text; a sentence of it needs to be searched for no others."""
    return [clue for clue in clues if clue in lowered]


def _read(sentence: str, clues: Sequence[str]) -> bool | None:
    """Whether a sentence is plainly an order to a model (True), perhaps one (False), or none (None)."""
    said = " ".join(bare(sentence[:_LONGEST]).split())
    clues = _clues_in(said.lower(), clues)
    if not clues or (clues == [_YOUR] and not _YOURS.search(said.lower())):
        return None
    if _SERVICE.search(said) and re.search(r"\bresponse", said, re.IGNORECASE):
        return None
    return True if _PLAIN.search(said) else False if _PERHAPS.search(said) else None


def bare(text: str) -> str:
    """A text as a model reads it: without characters that nobody sees, in compatibility form."""
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
