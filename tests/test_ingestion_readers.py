"""Every format yields its text or one plain reason; real awkward files too, and nothing on the screen."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion import readers, readers_text
from ingestion.readers import extract
from ingestion.readers_outline import Extracted, clean
from knowledge_base.errors import DocumentError

DATA = Path(os.environ.get("PLUMBLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
# Share of the strings Tika's own tests look for that are found in the formats we read. The rest are in
# attachments, charts, comments, automatic numbers and the like. Measured: 123 of 235.
FOUND_AT_LEAST = 0.52
READ = {".docx", ".pptx", ".xlsx", ".xls", ".pdf", ".rtf", ".html", ".xml", ".txt", ".epub", ".eml", ".mbox"}


def packed(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def docx(*paragraphs: tuple[str, str]) -> bytes:
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{words}</w:t></w:r></w:p>'
        for style, words in paragraphs
    )
    styles = "".join(
        f'<w:style w:styleId="H{level}"><w:name w:val="heading {level}"/></w:style>' for level in (1, 2)
    )
    return packed(
        {
            "[Content_Types].xml": "<Types/>",
            "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
            "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{styles}</w:styles>',
        }
    )


def pptx() -> bytes:
    from pptx import Presentation

    deck = Presentation()
    for title, text in (("Plans", "Ship it in May"), ("Costs", "Nine thousand")):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
    slide.notes_slide.notes_text_frame.text = "Say this slowly"
    buffer = io.BytesIO()
    deck.save(buffer)
    return buffer.getvalue()


def xlsx() -> bytes:
    import openpyxl  # type: ignore[import-untyped]

    book = openpyxl.Workbook()
    book.active.title = "Prices"
    book.active.append(["Item", "Price"])
    book.active.append(["Bolt", 3])
    book.create_sheet("Empty")
    book.create_sheet("Stock").append(["Nut", 12])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def epub(folder: Path) -> bytes:
    from ebooklib import epub as library  # type: ignore[import-untyped]

    book = library.EpubBook()
    book.set_identifier("x")
    book.set_title("A book")
    chapter = library.EpubHtml(title="One", file_name="one.xhtml")
    chapter.content = "<h1>Chapter one</h1><p>Call me Ishmael.</p>"
    book.add_item(chapter)
    book.toc, book.spine = [chapter], [chapter]
    book.add_item(library.EpubNcx())
    library.write_epub(str(folder / "book.epub"), book)
    return (folder / "book.epub").read_bytes()


def pdf(*pages: str, password: str = "") -> bytes:
    """A PDF by hand: pypdf writes files, but no text."""
    from pypdf import PdfReader, PdfWriter

    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for words in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET" if words else ""
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {len(objects)} 0 R>>"
        )
    objects[1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>"
    text, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(text))
        text += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    text += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R>>\nstartxref\n"
    whole = (text + f"{text.index('xref')}\n%%EOF").encode()
    if not password:
        return whole
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(whole)))
    writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def reason(path: str, content: bytes, **options: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        extract(path, content, **options)
    assert caught.value.message and "\n" not in caught.value.message
    return caught.value.message


# -- text --------------------------------------------------------------------------------------


def test_markdown_keeps_its_own_characters_and_knows_its_headings() -> None:
    text = "Intro\n\n# One\n\na\n\n## Two ##\n\nb\n\nThree\n=====\n\nc\n"
    found = extract("a.md", text.encode())
    assert (found.text, found.title) == (text, "One")
    assert [section.heading for section in found.sections] == [(), ("One",), ("One", "Two"), ("Three",)]
    assert "".join(text[section.start : section.end] for section in found.sections) == text


@pytest.mark.parametrize(
    "block",
    [
        "```\n# not\n```\n",
        "~~~~\n# not\n```\n~~~~\n",
        "    # not\n",
        "```sh\n# not\n",
        "#not\n",
        "| a |\n---\n",
        "- a\n---\n",
    ],
)
def test_what_only_looks_like_a_heading_is_none(block: str) -> None:
    sections = extract("a.md", f"# Real\n\n{block}".encode()).sections
    assert [section.heading for section in sections] == [("Real",)]


def test_inline_code_in_backticks_opens_no_fence() -> None:
    sections = extract("a.md", b"# A\n\n```x``` is code\n\n## B {#anchor}\n").sections
    assert [section.heading for section in sections] == [("A",), ("A", "B")]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('---\ntitle: "From: the front"\n---\n# Heading\n', "From: the front"),
        ("---\nweight: 3\n---\n# Heading\n", "Heading"),
        ("---\ntitle: All of it\nweight: 3\n---", "All of it"),
        ("words only\n", "guide"),
    ],
)
def test_the_title_comes_from_front_matter_or_heading_or_name(text: str, title: str) -> None:
    assert extract("docs/guide.md", text.encode()).title == title


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "naïve — 日本"),
        ("utf-8-sig", "naïve — 日本"),
        ("utf-16", "naïve — 日本"),
        ("utf-32", "naïve — 日本"),
        ("utf-16-le", "Plain words, no mark. Größe.\n"),
        ("utf-16-be", "Plain words, no mark. Größe.\n"),
        ("cp1252", "café au lait"),
        ("cp1252", "Größe und Maße, naïve façade: “quoted”"),
        ("cp1251", "Съешь ещё этих мягких французских булок"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
        ("shift_jis", "日本語のテキストです。これはテストです。"),
    ],
)
def test_the_encoding_is_found(encoding: str, text: str) -> None:
    assert extract("a.txt", text.encode(encoding)).text == text


def test_a_few_bad_bytes_in_utf8_are_marked_not_dropped() -> None:
    found = extract("a.txt", "Größe ändern für Übung, überall schön.".encode() * 3 + b"\xff end")
    assert found.text.endswith("schön.\ufffd end")


@pytest.mark.parametrize(
    ("name", "head"), [("a.xml", "<?xml version='1.0' encoding='cp1251'?>"), ("a.html", "")]
)
def test_a_declared_encoding_is_believed(name: str, head: str) -> None:
    meta = '<meta charset="cp1251">' if not head else ""
    assert "Это" in extract(name, f"{head}<p>{meta}Это</p>".encode("cp1251")).text


def test_text_is_normalised() -> None:
    assert extract("a.txt", "e\u0301\r\nx\ry\0z".encode()).text == "\u00e9\nx\nyz"


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\0\0", "\u200b\ufeff \u00a0".encode(), b"\xef\xbb\xbf"])
def test_a_document_without_a_visible_character_is_refused(content: bytes) -> None:
    assert reason("a.txt", content).startswith(("empty", "no text found"))


@given(st.binary(max_size=300), st.sampled_from(["a.md", "a.html", "a.txt", "a.eml", "a.rtf", "a"]))
def test_any_bytes_give_text_or_a_reason(content: bytes, name: str) -> None:
    try:
        found = extract(name, content)
    except DocumentError as error:
        assert error.message and "\n" not in error.message
    else:
        found.text.encode()
        assert "\0" not in found.text and "\r" not in found.text
        assert all(0 <= s.start <= s.end <= len(found.text) for s in found.sections)


# -- pages, office, mail -----------------------------------------------------------------------


def test_html_becomes_markdown_without_scripts_and_navigation() -> None:
    page = b"""<html><head><title>The  page</title><style>p{}</style></head><body><nav>Menu</nav>
    <h1>1. One</h1><p>a - b. <b>bold</b></p><script>alert(1)</script>
    <h2>Two</h2><pre># x</pre></body></html>"""
    found = extract("a.html", page)
    assert found.title == "The page"
    assert [section.heading for section in found.sections if section.heading] == [
        ("1. One",),
        ("1. One", "Two"),
    ]
    assert "a - b. bold" in found.text
    assert not any(word in found.text for word in ("Menu", "alert", "p{}", "\\"))


def test_pdf_text_comes_page_by_page() -> None:
    found = extract("a.pdf", pdf("First page", "", "Third page"))
    shown = [(found.text[s.start : s.end].strip(), s.page) for s in found.sections]
    assert shown == [("First page", 1), ("", 2), ("Third page", 3)]


def test_docx_headings_become_sections() -> None:
    found = extract(
        "a.docx", docx(("H1", "Start"), ("", "alpha"), ("H2", "Deeper"), ("", "beta &amp; gamma"))
    )
    assert found.title == "Start"
    assert [s.heading for s in found.sections] == [("Start",), ("Start", "Deeper")]
    assert found.text[found.sections[1].start :].split() == ["Deeper", "beta", "&", "gamma"]


def test_pptx_slides_are_pages_with_their_titles_and_notes() -> None:
    found = extract("a.pptx", pptx())
    assert [(s.heading, s.page) for s in found.sections] == [(("Plans",), 1), (("Costs",), 2)]
    assert "Ship it in May" in found.text and "Say this slowly" in found.text


def test_xlsx_sheets_are_pages_of_rows_with_the_header() -> None:
    found = extract("a.xlsx", xlsx())
    assert "Item\tPrice\nBolt\t3" in found.text
    assert [(s.heading, s.page) for s in found.sections] == [
        (("Prices",), 1),
        (("Empty",), 2),
        (("Stock",), 3),
    ]


def test_epub_rtf_csv_and_notebook_like_json_are_read(tmp_path: Path) -> None:
    assert "Call me Ishmael." in extract("a.epub", epub(tmp_path)).text
    assert extract("a.rtf", rb"{\rtf1\ansi caf\'e9 {\b bold}}").text.strip() == "café bold"
    assert extract("a.csv", b"name,age\nBob,3\n").text == "name,age\nBob,3\n"
    assert extract("a.json", b'{"a": [1]}').text == '{"a": [1]}'


@pytest.mark.parametrize(
    "text", ['\ufeff{"a": 1}', '{"a": 1}\n\n{"b": 2}\n', '{"a": ' + "9" * 5000 + "}", "[NaN]"]
)
def test_json_that_parses_is_kept_as_it_is(text: str) -> None:
    assert extract("a.json", text.encode()).text == text.removeprefix("\ufeff")


def test_rtf_with_a_stray_mark_keeps_the_words_after_it() -> None:
    assert extract("a.rtf", rb"{\rtf1 One {\b\*\cs7 two} {\*\generator no}three}").text == "One two three"


def test_rtf_that_has_only_a_header_gives_its_words() -> None:
    header = rb"{\header\pard Animal Hospital}"
    assert extract("a.rtf", rb"{\rtf1 " + header + b"}").text.strip() == "Animal Hospital"
    assert extract("a.rtf", rb"{\rtf1 " + header + b"Body}").text.strip() == "Body"


def test_a_mail_is_its_headers_and_its_words_without_attachments() -> None:
    mail = b"""Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nFrom: a@b.c\nMIME-Version: 1.0
Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html; charset=latin-1\n
<p>caf\xe9</p>\n--x\nContent-Type: application/zip\nContent-Disposition: attachment; filename=a.zip
Content-Transfer-Encoding: base64\n\nUEsDBBQAAAAA\n--x--\n"""
    found = extract("a.eml", mail)
    assert found.title == "Grüße"
    assert "From: a@b.c" in found.text and "café" in found.text and "UEsDB" not in found.text


# -- what cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.pdf", lambda: pdf("Secret", password="x"), "encrypted"),
        ("a.pdf", lambda: pdf(""), "run OCR first"),
        ("a.pdf", lambda: b"%PDF-1.4 cut", "damaged"),
        ("a.docx", lambda: b"PK\x03\x04cut", "damaged"),
        ("a.docx", lambda: readers._OLE + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
        ("a.docx", lambda: readers._OLE + "WordDocument".encode("utf-16-le"), "save it as .docx"),
        ("a", lambda: readers._OLE + "__substg1.0_".encode("utf-16-le"), "Outlook"),
        ("a.ppt", lambda: readers._OLE + b"\0" * 600, "save it as .pptx"),
        ("a.odt", lambda: packed({"mimetype": "x"}), "OpenDocument"),
        ("a.docx", lambda: packed({"word/a.txt": "x"}), "archive"),
        ("a.xlsb", lambda: packed({"[Content_Types].xml": "x", "xl/workbook.bin": "x"}), "save it as .xlsx"),
        ("a.txt", lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "picture"),
        ("a.txt", lambda: bytes(range(256)) * 40, "binary"),
        ("a.txt", lambda: b"words " * 40_000 + bytes(range(32)) * 400, "binary"),
        ("a.docx", lambda: packed({"[Content_Types].xml": "x", "word/x": bytes(60_000_000)}), "60 MB"),
        ("a.json", lambda: b'{"a": ', "damaged: not JSON (Expecting value: line 1 column 7"),
        ("a.json", lambda: b'{"a": 1}\n{"a": ', "damaged: not JSON"),
        ("a.docx", lambda: docx(("", "")), "no text found in the parts of it that are read"),
        ("a.eml", lambda: b"X-Mailer: none\n\n", "no text found in the parts of it that are read"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, make: Callable[[], bytes], words: str) -> None:
    assert words in reason(name, make())


def test_content_counts_for_more_than_the_name() -> None:
    assert extract("a.docx", pdf("Really a PDF")).text.strip() == "Really a PDF"
    assert extract("a.pdf", docx(("", "Really Word"))).text.strip() == "Really Word"
    assert (
        extract("a.doc", b"<html><body><h1>Saved as web page</h1></body></html>").title == "Saved as web page"
    )
    assert extract("a.doc", rb"{\rtf1 Really RTF}").text.strip() == "Really RTF"
    assert extract("a.docx", b"only text").text == "only text"


def test_entities_that_grow_or_read_files_are_refused() -> None:
    doors = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    bombs = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    for head, name in ((doors, "x"), (bombs + "]>", "j")):
        body = f'{head}<w:document xmlns:w="{WORD}"><w:p><w:r><w:t>&{name};</w:t></w:r></w:p></w:document>'
        assert "damaged" in reason("a.docx", packed({"[Content_Types].xml": "x", "word/document.xml": body}))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs POSIX signals")
def test_a_parser_that_loops_is_stopped_even_when_it_catches_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pypdf import PageObject

    def loop(page: object) -> str:
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 - that is what is tested
                continue

    monkeypatch.setattr(PageObject, "extract_text", loop)
    assert reason("a.pdf", pdf("x"), timeout_seconds=0.2) == "took longer than 0.2 seconds to read"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), KeyError("x"), ValueError("a\nb")])
def test_whatever_a_parser_raises_becomes_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(path: str, content: bytes) -> Extracted:
        raise error

    monkeypatch.setattr(readers, "read_text", fail)
    assert type(error).__name__ in reason("a.txt", b"x")


def test_text_needs_no_heavy_import() -> None:
    code = (
        "import sys; from ingestion.readers import extract; extract('a.md', b'# x'); "
        "print([m for m in ('llama_index', 'pandas', 'bs4', 'torch', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# -- real awkward files ------------------------------------------------------------------------


def awkward(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set PLUMBLINE_DATA")
    return folder


def read_all(files: list[Path]) -> dict[str, str | None]:
    """Text of each file, None where there is a reason instead; anything else raised fails the test."""
    texts: dict[str, str | None] = {}
    for file in files:
        try:
            texts[file.name] = extract(file.name, file.read_bytes()).text
        except DocumentError as error:
            texts[file.name] = None
            assert error.message and "\n" not in error.message and len(error.message) < 300
    return texts


def test_every_awkward_tika_file_gives_text_or_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    folder = awkward("awkward_docs_tika")
    texts = read_all(sorted((folder / "files").iterdir()))
    assert capfd.readouterr() == ("", "")
    found = wanted = 0
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = " ".join((texts[row["file"]] or "").split())
        if Path(row["file"]).suffix in READ:
            wanted += len(row["must_contain"])
            found += sum(" ".join(words.split()) in text for words in row["must_contain"])
    print(f"{found} of {wanted} strings found, {sum(t is not None for t in texts.values())} files read")
    assert found / wanted >= FOUND_AT_LEAST


def test_every_awkward_pdf_gives_text_or_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    texts = read_all(sorted((awkward("awkward_docs_pypdf") / "files").iterdir()))
    assert capfd.readouterr() == ("", "")
    unread = sorted(name[:3] for name, text in texts.items() if text is None)
    # One needs a password, the others are pictures.
    assert unread == ["005", "007", "007", "007", "019", "023"]


def test_naughty_strings_survive_as_text_files() -> None:
    strings = json.loads((awkward("naughty_strings") / "blns.json").read_text(encoding="utf-8"))
    for text in strings:
        for name in ("a.txt", "a.md"):
            try:
                found = extract(name, text.encode("utf-8", "surrogatepass")).text
            except DocumentError:
                assert readers._INVISIBLE.fullmatch(text) or len(readers_text._CONTROL.findall(text)) > 8
            else:
                assert found == clean(text.removeprefix("\ufeff"))
