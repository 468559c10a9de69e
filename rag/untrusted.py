"""Text that nobody vouches for: what documents say to a model, and what a model says to a reader's browser.

Passages are handed to a model between marks with a key that is drawn for the request, so that no document can
know how to end its own ("delimiting" of Spotlighting, Hines et al. 2024, arXiv 2403.14720, the mildest of the
paper's three: datamarking and encoding change the words, and answers here are held against the words).
"""

import re
import secrets
from collections.abc import Iterable, Sequence, Set

from knowledge_base.orders import find_orders
from rag.answer import Context

_TAG = re.compile(r"</?passage", re.IGNORECASE)
# Letters that only a machine reads, and marks that make the rest read otherwise than it stands.
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e01ef]")

# Within a line: what a renderer takes for the end of a paragraph ends code, too.
_CODE = re.compile(r"(?<![`\\])(`+)(?!`)(?:.+?)(?<!`)\1(?!`)")
_FENCE = re.compile(r"(`{3,})(?=[^`\n]*(?:\n|\Z))|(~{3,})")
_LINE_END = re.compile(r"\r\n?")
_TILDES = re.compile(r"~{3,}")
_IMAGE = re.compile(r"(?<!!)!+\[")
_ELEMENT = re.compile(r"<(?=[A-Za-z/!?])(?!https?://|mailto:)")
_SCRIPT = re.compile(r"\](?=\(\s*(?!https?:|mailto:|#|/|\.)[a-z][a-z0-9+.-]*:)|\](?=:\s)", re.IGNORECASE)
_ADDRESS = re.compile(
    r"\b(?:https?|ftp)://[^\s<>\"'`\])]+|\bwww\.[^\s<>\"'`\])]+|"
    r"(?<![\w@./-])(?:[a-z0-9-]+\.)+(?:com|net|org|info|biz|xyz|top|site|online|click|shop|app|dev|io)\b"
    r"(?:/[^\s<>\"'`\])]*)?",
    re.IGNORECASE,
)
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\(([^)]*)\)")
_TARGET = re.compile(r"\](?=\(([^)]*)\))")
_RUN = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")
_LETTERS = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u04ff]{3,}")
_WORD = re.compile(rf"{_LETTERS.pattern}|\w*\d\w*")
# Words that say nothing of what a sentence is about; lead-ins are made of them.
_CONNECTIVES = frozenset(
    """
    about above additional after all also and answer are based because before below between both but can
    case cases context data depends details different documents does each either example examples
    features few first following follows for four from further general given has have here how include
    includes including information into its key kinds list main may means methods more most must need
    needed not note notes one only options order other otherwise overview part parts passage passages
    points possible question reasons related required requirements result results second section several
    short should some source sources step steps such summary than that the their them then there these
    they things this those three two types under use used using values way ways what when where which
    who why will with you your
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)


def draw_key() -> str:
    """A key for one request, that nobody who wrote a document can have known."""
    return secrets.token_hex(8)


def numbered(contexts: Sequence[Context], key: str) -> str:
    """Passages as a model is given them: numbered, between marks with the key, without unseen letters."""
    parts = []
    for number, context in enumerate(contexts, 1):
        section = f' section="{_attribute(" > ".join(context.heading))}"' if context.heading else ""
        text = _UNSEEN.sub("", context.text.strip())
        text = _TAG.sub(lambda found: found[0].replace("<", "&lt;"), text)
        opening = f'<passage number="{number}" key="{key}" source="{_attribute(context.path)}"{section}>'
        parts.append(f"{opening}\n{text}\n</passage {key}>")
    return "\n".join(parts)


def _attribute(text: str) -> str:
    plain = _UNSEEN.sub("", text)
    return plain.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("\n", " ")


def evidence(contexts: Iterable[Context]) -> list[Context]:
    """The passages with spaces in place of orders to a model: what only an order says has no support."""
    return [_without_orders(context) for context in contexts]


def _without_orders(context: Context) -> Context:
    text = context.text
    for order in find_orders(text):
        if order.plain:
            text = text[: order.start] + " " * (order.end - order.start) + text[order.end :]
    return context if text is context.text else context.model_copy(update={"text": text})


def harmless(text: str, lead: str = "") -> str:
    """A model's Markdown that loads nothing by itself: images become links, HTML and scripts become text.

    Code stays as it is. Text in pieces is harmless when each of its pieces has been made so; `lead` is the
    white space before the piece, which decides whether a fence is one.
    """
    parts: list[str] = []
    text, place = _LINE_END.sub("\n", text), 0
    while place < len(text):
        before = lead.rpartition("\n")[2].expandtabs(4)
        fence = _FENCE.match(text, place)
        if not fence or len(before) >= 4 or before.strip(" "):
            return "".join([*parts, _outside_code(text[place:])])
        block, end = _fenced(text, fence, len(before))
        place = end
        while text[place : place + 1] in {" ", "\t", "\n"}:
            place += 1
        lead = text[end:place]
        parts += [block, lead if place < len(text) else ""]
    return "".join(parts)


def _outside_code(text: str) -> str:
    """Prose made harmless but for the code within its lines."""
    parts: list[str] = []
    end = 0
    for code in _CODE.finditer(text):
        parts += [_disarmed(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _disarmed(text[end:])])


def _fenced(text: str, opening: re.Match[str], indent: int) -> tuple[str, int]:
    """A block of code that ends where it does for every renderer, and where the text goes on.

    A line that stands further left than its fence may have left the list item that holds the block, and with
    it the code: the block is closed before it. So is one that nothing closes.
    """
    fence, start = opening[0], opening.start()
    closing = " " * indent + fence
    place = text.find("\n", start) + 1
    while place:
        end = text.find("\n", place)
        line = text[place : end if end >= 0 else len(text)].expandtabs(4)
        bare = line.lstrip(" ")
        depth = len(line) - len(bare)
        closes = bare.startswith(fence) and not bare.rstrip(" ").strip(fence[0]) and depth < indent + 4
        if closes or (bare and depth < indent):
            after = place - 1 if not closes else end if end >= 0 else len(text)
            return text[start:place] + closing, after
        place = end + 1
    return f"{text[start:]}\n{closing}", len(text)


def _disarmed(text: str) -> str:
    # A backtick without its partner could make code of what is none, or end code in the piece after it.
    text = _IMAGE.sub("[", _TILDES.sub("~~", text.replace("`", "")))
    return _SCRIPT.sub("] ", _ELEMENT.sub("< ", text))


def foreign_addresses(text: str, known: Iterable[str]) -> list[str]:
    """Web addresses in a text that stand in none of the others."""
    found = [address.rstrip(".,;:!?*_") for address in _ADDRESS.findall(text)]
    if not found:
        return []
    everything = "\n".join(known).lower()
    return [address for address in found if address.lower() not in everything]


def without_addresses(text: str, addresses: Iterable[str]) -> str:
    """A text that no longer says them."""
    for address in addresses:
        text = text.replace(address, "(address)")
    return text


def without_foreign_links(text: str, known: Iterable[str]) -> str:
    """Markdown whose links and images lead only where the other texts say; the words of the rest stay.

    However a target is written: a browser also follows //host/path, and &#58; for a colon.
    """
    everything = "\n".join(known).lower()

    def is_known(target: str) -> bool:
        first = "".join(target.split()[:1]).lower()
        return (first[1:-1] if first.startswith("<") and first.endswith(">") else first) in everything

    text = _LINK.sub(lambda link: link[0] if is_known(link[2]) else link[1], text)
    # Words with brackets among them keep theirs, but no target behind them.
    return _TARGET.sub(lambda end: "]" if is_known(end[1]) else "] ", text)


def terms(text: str) -> set[str]:
    """What a text is about: the first four letters of its words, and its numbers whole.

    Words of three letters and more in Latin, Greek and Cyrillic; texts in other scripts have few or none.
    """
    words: set[str] = set()
    for run in _RUN.findall(text):
        # Looked for in a run without a digit, a number would take the square of the run's length.
        words.update(word.lower() for word in (_WORD if _DIGIT.search(run) else _LETTERS).findall(run))
    words -= _CONNECTIVES
    return {word[:4] if word.isalpha() else word for word in words}


def known_share(text: str, known: Set[str]) -> float:
    """Which share of a text's terms is known; 1 for a text without any."""
    said = terms(text)
    return len(said & known) / len(said) if said else 1.0
