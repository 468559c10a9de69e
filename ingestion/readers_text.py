"""Readers of everything that is text: in any encoding, as Markdown, HTML, mail or JSON."""

import json
import re
from pathlib import PurePosixPath

from ingestion.readers_outline import Extracted, clean, markdown, stem
from knowledge_base.errors import DocumentError

_CONTROL = re.compile(r"[\x00-\x07\x0e-\x1a\x1c-\x1f]")
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_DECLARED = re.compile(
    rb"""\A\s*<\?xml[^>]*\sencoding=["']([\w.-]+)|<meta[^>]*charset=["']?([\w.-]+)""", re.I
)


def _decode(content: bytes, declared: str | None = None) -> str:
    """Text in whatever encoding it is in; nothing is dropped. Raises DocumentError for binary data."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    for candidate in (_wide(content), "utf-8-sig", declared):
        try:
            text = content.decode(candidate) if candidate else ""
        except (UnicodeDecodeError, LookupError):
            continue
        if text:
            break
    else:
        text = _guess(content)
    if len(_CONTROL.findall(text)) > max(8, 0.01 * len(text)):
        raise DocumentError("not supported: binary data of an unknown format")
    return text


def _wide(content: bytes) -> str | None:
    """UTF-16 without a mark: half of its bytes are zero in most scripts' punctuation and in Latin text."""
    even, odd = content[:4000:2].count(0), content[1:4000:2].count(0)
    if max(even, odd) < 0.3 * len(content[:4000:2]) or min(even, odd) > 0.01 * max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _guess(content: bytes) -> str:
    patched = content.decode("utf-8", "replace")
    if len(re.findall(r"[^\x00-\x7f\ufffd]", patched)) > 10 * patched.count("\ufffd"):
        # UTF-8 with a few bad bytes: marking those harms less than reading it all in another encoding.
        return patched
    from charset_normalizer import from_bytes

    matches = from_bytes(content[:1_000_000])
    best = matches.best()
    if best is None:
        raise DocumentError("not supported: binary data of an unknown format")
    # On short Western text many encodings are equally likely; far the most common one comes first.
    likely = (m for m in matches if m.chaos <= best.chaos + 0.05 and m.coherence >= best.coherence - 0.15)
    western = any("cp1252" in (match.encoding, *match.could_be_from_charset) for match in likely)
    encoding = "cp1252" if western else best.encoding
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(f"the text is neither UTF-8 nor all {encoding}: save it as UTF-8") from error


def read_text(path: str, content: bytes) -> Extracted:
    """A text as it is."""
    return Extracted(PurePosixPath(path).name, clean(_decode(content, _declared(content))))


def _declared(content: bytes) -> str | None:
    found = _DECLARED.search(content[:4096])
    return (found[1] or found[2]).decode() if found else None


def read_json(path: str, content: bytes) -> Extracted:
    """JSON as it is, or JSON Lines by that name. Raises DocumentError for what parses as neither."""
    read = read_text(path, content)
    try:
        _parse_json(read.text)
    except ValueError as error:
        try:
            for line in filter(str.strip, read.text.split("\n")):
                _parse_json(line)
        except ValueError:
            raise DocumentError(f"damaged: not JSON ({error})") from error
    return read


def _parse_json(text: str) -> None:
    # Numbers stay text: Python refuses to convert those of thousands of digits, which JSON allows.
    json.loads(text.removeprefix("\ufeff"), parse_int=str, parse_float=str)


def read_markdown(path: str, content: bytes) -> Extracted:
    """Markdown with its own characters, in sections by its headings."""
    return markdown(path, clean(_decode(content)))


def read_html(path: str, content: bytes) -> Extracted:
    """A web page as Markdown."""
    return _html(path, read_source(content))


def read_source(content: bytes) -> str:
    """The text of a file as it is, in the encoding that it declares. Raises DocumentError."""
    return _decode(content, _declared(content))


def _html(path: str, html: str) -> Extracted:
    """A web page as Markdown, without what is not read: scripts, styles, navigation."""
    from bs4 import BeautifulSoup

    for parser in ("html.parser", "lxml"):
        page = BeautifulSoup(html.replace("\0", ""), parser)
        for noise in page(["script", "style", "noscript", "template", "nav"]):
            noise.decompose()
        body = page.body or page
        if body.get_text(strip=True):
            # A script whose end is misspelt hides all the rest from the first parser.
            break
    title = " ".join(page.title.get_text(" ").split()) if page.title else ""
    read = markdown(path, clean(_from_html(str(body))))
    return Extracted(clean(title) or read.title, read.text, read.sections)


def _from_html(html: str) -> str:
    import html2text

    class Converter(html2text.HTML2Text):
        def handle_data(self, data: str, entity_char: bool = False) -> None:
            # True: no backslashes before dots and dashes; the text is searched and quoted, not rendered.
            super().handle_data(data, True)

    converter = Converter(bodywidth=0)
    converter.ignore_images = True
    converter.ignore_links = True
    converter.ignore_emphasis = True
    text: str = converter.handle(html)
    return text.strip() + "\n"


def read_mail(path: str, content: bytes) -> Extracted:
    """The headers people read, then the body as text; attachments are left out."""
    from email import message_from_bytes, policy

    mail = message_from_bytes(content, policy=policy.default)
    head = "".join(f"{name}: {mail[name]}\n" for name in ("Subject", "From", "To", "Date") if mail[name])
    part = mail.get_body(("plain", "html"))
    payload = part.get_payload(decode=True) if part is not None else None
    body = _decode(payload, part.get_content_charset()) if part and isinstance(payload, bytes) else ""
    if part and part.get_content_subtype() == "html":
        body = _html(path, body).text
    return Extracted(clean(str(mail["Subject"] or "")) or stem(path), clean(f"{head}\n{body}"))
