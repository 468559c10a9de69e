"""What a document says to a language model, or holds unseen by whoever opens it: flagged at ingest.

Looked at: the extracted text of every document; elements of HTML and of HTML within Markdown that their own
attributes hide, and comments; hidden or tiny runs in Word, hidden slides and tiny runs in PowerPoint, hidden
sheets in Excel. Not looked at: style sheets and classes, PDF rendering, pictures.

An order to a model is an alarm, also when people might say it to each other but it stands where nobody sees
it; and so are characters that are made to carry text unseen. Other hidden prose is a notice.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from ingestion.readers import contained, reader_for
from ingestion.readers_office import read_docx, read_pptx, read_table
from ingestion.readers_text import read_html, read_markdown, read_source
from knowledge_base.documents import Document
from knowledge_base.errors import DocumentError
from knowledge_base.findings import Finding, Inspection, Kind
from knowledge_base.orders import bare, find_orders

_EXCERPT = 200
_MOST = 20
_PROSE = re.compile(r"\b(?:[^\W\d_]{2,}\W+){7}[^\W\d_]{2,}")
"""Eight words: less is a label, a switch of some tool, or an icon."""

_TAGS = re.compile("[\U000e0020-\U000e007e]{3,}")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
_CARRIERS = re.compile("[\u200b-\u200d\u2060-\u2064\ufeff]{8,}|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_OVERRIDES = re.compile("[\u202d\u202e]")

_HIDES = re.compile(
    r"display:none|visibility:hidden|opacity:0(?:\.0*)?(?:;|$)|font-size:[01](?:\.\d+)?(?:px|pt|em|rem|%)?(?:;|$)|"
    r"text-indent:-\d{3,}|(?:left|top):-\d{3,}|(?<![-\w])color:transparent"
)
_WHITE = r"(?:white|#fff(?:fff)?|rgb\(255,255,255\))"
_INK, _GROUND = (
    re.compile(rf"(?<![-\w])color:{_WHITE}(?:;|$|!)"),
    re.compile(rf"background(?:-color)?:(?!{_WHITE}|transparent|none)"),
)
_HTML_CLUES = re.compile(r"<[a-z][^>]{0,500}?\b(?:hidden\b|style\s*=|color\s*=)", re.IGNORECASE)
_BLOCKS = re.compile(r"(?ms)^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)|(?i:<(script|style)\b.*?(?:</\2|\Z))")
"""What is shown as it is, or run: what looks like a comment in it is none."""
_COMMENT = re.compile(r"<!--(.*?)(?:-->|\Z)", re.DOTALL)
_NOTE = re.compile(r"^\[[^\]\n]*\]:\s*(?:#|<>)\s*[(\"'](.*)[)\"']\s*$", re.MULTILINE)

_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"


def inspect(document: Document, content: bytes) -> Inspection:
    """What is found in a document that was extracted from `content`, at most 20 findings; never fails."""
    found = list(_in_text(document.text))
    try:
        found += contained(lambda: list(_in_source(document.path, content)))
    except DocumentError as error:
        found.append(Finding(kind="not inspected", severity="notice", place="source", excerpt=error.message))
    # Alarms first: of thousands of comments the one that counts must not be cut off.
    found.sort(key=lambda finding: finding.severity != "alarm")
    return Inspection(path=document.path, sha256=document.sha256, findings=tuple(found[:_MOST]))


def _in_text(text: str) -> Iterator[Finding]:
    for order in find_orders(text):
        place = f"characters {order.start} to {order.end}"
        yield _finding("order", text[order.start : order.end], place, alarm=order.plain)
    flags = {found.span() for found in _FLAG.finditer(text)}
    for found in _TAGS.finditer(text):
        if not any(start < found.start() < end for start, end in flags):
            said = "".join(chr(ord(sign) - 0xE0000) for sign in found[0])
            yield _finding("unseen characters", said, _at(found), alarm=True)
    for found in _CARRIERS.finditer(text):
        said = f"{len(found[0])} in a row, the first U+{ord(found[0][0]):04X}"
        yield _finding("unseen characters", said, _at(found), alarm=True)
    for found in _OVERRIDES.finditer(text):
        around = text[found.start() : found.start() + _EXCERPT].split("\n")[0]
        yield _finding("unseen characters", f"turns the direction of: {around[1:]}", _at(found), alarm=False)


def _at(found: re.Match[str]) -> str:
    return f"characters {found.start()} to {found.end()}"


def _finding(kind: Kind, said: str, place: str, *, alarm: bool) -> Finding:
    excerpt = " ".join(bare(said).split())
    if len(excerpt) > _EXCERPT:
        excerpt = excerpt[: _EXCERPT - 4] + " ..."
    return Finding(kind=kind, severity="alarm" if alarm else "notice", place=place, excerpt=excerpt)


def _unseen(kind: Kind, said: str, place: str) -> Iterator[Finding]:
    """A finding when what is hidden is an order, or at least prose."""
    ordered = bool(find_orders(said))
    if ordered or _PROSE.search(said):
        yield _finding(kind, said, place, alarm=ordered)


# -- the sources -------------------------------------------------------------------------------


def _in_source(path: str, content: bytes) -> Iterator[Finding]:
    read = reader_for(path, content)
    if read in (read_html, read_markdown):
        html = _BLOCKS.sub(_blanked, read_source(content))
        if read is read_markdown:
            for note in _NOTE.finditer(html):
                yield from _unseen("comment", note[1], _line(html, note.start()))
        for comment in _COMMENT.finditer(html):
            yield from _unseen("comment", comment[1], _line(html, comment.start()))
        if _HTML_CLUES.search(html):
            yield from _in_html(html)
    elif read is read_docx:
        yield from _in_word(content)
    elif read is read_pptx:
        yield from _in_slides(content)
    elif read is read_table and content.startswith(b"PK"):
        yield from _in_workbook(content)


def _blanked(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def _line(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1} of the source"


def _in_html(html: str) -> Iterator[Finding]:
    from bs4 import BeautifulSoup, Tag

    page = BeautifulSoup(html.replace("\0", ""), "html.parser")
    for noise in page(["noscript", "template"]):
        noise.decompose()
    hidden: set[int] = set()
    for tag in page.find_all(True):
        if not isinstance(tag, Tag) or any(id(parent) in hidden for parent in tag.parents):
            continue
        if _is_hidden(tag.attrs):
            hidden.add(id(tag))
            yield from _unseen(
                "hidden text", tag.get_text(" "), f"<{tag.name}>, line {tag.sourceline} of the source"
            )


def _is_hidden(attributes: Mapping[str, object]) -> bool:
    style = re.sub(r"\s+", "", str(attributes.get("style", ""))).lower()
    white = _INK.search(style) or str(attributes.get("color", "")).lower() in ("white", "#fff", "#ffffff")
    return "hidden" in attributes or bool(_HIDES.search(style)) or bool(white and not _GROUND.search(style))


def _in_word(content: bytes) -> Iterator[Finding]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        body = ElementTree.fromstring(archive.read("word/document.xml"))
    for number, paragraph in enumerate(body.iter(f"{_WORD}p"), 1):
        runs = (run for run in paragraph.iter(f"{_WORD}r") if _is_hidden_run(run))
        said = "".join(text.text or "" for run in runs for text in run.iter(f"{_WORD}t"))
        yield from _unseen("hidden text", said, f"paragraph {number}")


def _is_hidden_run(run: ElementTree.Element) -> bool:
    look = run.find(f"{_WORD}rPr")
    if look is None:
        return False
    values = {name: _value(look, name) for name in ("vanish", "color", "sz", "shd", "highlight")}
    vanished = values["vanish"] is not None and values["vanish"] not in ("0", "false")
    tiny = (values["sz"] or "").isdecimal() and int(values["sz"] or 0) <= 2  # half points
    white = (values["color"] or "").upper() == "FFFFFF" and values["shd"] is values["highlight"] is None
    return vanished or tiny or white


def _value(look: ElementTree.Element, name: str) -> str | None:
    found = look.find(f"{_WORD}{name}")
    return None if found is None else found.get(f"{_WORD}val", "")


def _in_slides(content: bytes) -> Iterator[Finding]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in sorted(archive.namelist()):
            if not re.fullmatch(r"ppt/slides/slide\d+\.xml", name):
                continue
            slide = ElementTree.fromstring(archive.read(name))
            hidden = slide.get("show") in ("0", "false")
            said = [
                run.findtext(f"{_DRAWING}t") or ""
                for run in slide.iter(f"{_DRAWING}r")
                if hidden or _is_tiny(run.find(f"{_DRAWING}rPr"))
            ]
            yield from _unseen("hidden text", " ".join(said), name)


def _is_tiny(look: ElementTree.Element | None) -> bool:
    size = look.get("sz", "") if look is not None else ""
    return size.isdecimal() and int(size) <= 100  # hundredths of a point


def _in_workbook(content: bytes) -> Iterator[Finding]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        book = ElementTree.fromstring(archive.read("xl/workbook.xml"))
    for sheet in book.iter():
        if sheet.tag.endswith("}sheet") and sheet.get("state") in ("hidden", "veryHidden"):
            # What it says has been read like all others, orders in it too.
            yield _finding("hidden text", sheet.get("name", ""), "a hidden sheet", alarm=False)
