"""Chunks: spans that are right, nothing lost, nothing too long, the same every time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.chunking import Chunker
from ingestion.readers import extract
from knowledge_base.configuration import ChunkerSettings
from knowledge_base.documents import Chunk, Document, Section
from knowledge_base.errors import DocumentError
from knowledge_base.sentences import split_units

SPLITTERS = ["sentence", "token", "markdown"]
_TOKENS = re.compile(r"\w{1,4}|[^\w\s]")
_PIECES = [
    *(
        "# One\n",
        "## Two\n",
        "words and words. ",
        "Same sentence. ",
        "same ",
        "\n",
        "\n\n",
        "\n\n\n\n",
        "```\n",
    ),
    *(
        "x" * 90,
        "日本語のテキスト。",
        "e\u0301",
        "\u200b",
        "\x0b",
        "\u2028",
        "😀",
        "a,b,c;d\n",
        "   ",
        "\t",
        "...",
    ),
    *("- item\n", "\ufffd", "| a | b |\n"),
]


def tokenize(text: str) -> list[int]:
    """Pieces of words of up to four letters: like WordPiece, and without a model."""
    return [len(token) for token in _TOKENS.findall(text)]


def chunker(splitter: str = "markdown", size: int = 16, overlap: int = 0) -> Chunker:
    chosen = ChunkerSettings.model_validate({"splitter": splitter, "size": size, "overlap": overlap})
    return Chunker(chosen, tokenize)


def markdown(text: str) -> Document:
    try:
        found = extract("a.md", text.encode())
    except DocumentError:  # nothing to see in it; chunks of it must be right all the same
        return Document("a.md", "", 0, "a", text)
    return Document("a.md", "", 0, found.title, found.text, found.sections)


def check(document: Document, chunks: list[Chunk], size: int) -> None:
    text = document.text
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)
    assert all(chunk.text.strip() == chunk.text != "" for chunk in chunks)
    assert all(len(tokenize(chunk.text)) <= size or len(chunk.text) == 1 for chunk in chunks)
    spans = [(chunk.start, chunk.end) for chunk in chunks]
    assert spans == sorted(set(spans))
    covered = bytearray(len(text))
    for start, end in spans:
        covered[start:end] = b"\1" * (end - start)
    assert not [i for i, hit in enumerate(covered) if not hit and not text[i].isspace()]


@settings(max_examples=150)
@given(
    text=st.one_of(st.text(max_size=400), st.lists(st.sampled_from(_PIECES), max_size=60).map("".join)),
    splitter=st.sampled_from(SPLITTERS),
    size=st.sampled_from([16, 17, 40]),
    overlap=st.sampled_from([0, 5, 8, 20]),
)
def test_chunks_are_exact_complete_and_small_enough(
    text: str, splitter: str, size: int, overlap: int
) -> None:
    document = markdown(text)
    overlap = min(overlap, size // 2)
    split = chunker(splitter, size, overlap)
    chunks = split.split(document)
    check(document, chunks, size)
    assert chunks == chunker(splitter, size, overlap).split(document)


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_repeated_text_keeps_its_own_spans(splitter: str) -> None:
    document = Document("a.txt", "", 0, "a", "The same sentence again. " * 100)
    chunks = chunker(splitter, 20).split(document)
    check(document, chunks, 20)
    assert len({chunk.start for chunk in chunks}) == len(chunks) > 20


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("overlap", [0, 8])
def test_text_without_any_space_is_cut(splitter: str, overlap: int) -> None:
    document = Document("a.txt", "", 0, "a", "x" * 5000)
    check(document, chunker(splitter, 32, overlap).split(document), 32)


def test_a_word_that_the_tokenizer_takes_for_one_token_is_cut_too() -> None:
    document = Document("a.txt", "", 0, "a", "x" * 100_000)
    chunks = Chunker(ChunkerSettings(size=16), lambda text: [0] * len(text.split())).split(document)
    assert max(len(chunk.text) for chunk in chunks) <= 16 * 33
    assert sum(len(chunk.text) for chunk in chunks) == 100_000


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = " ".join(f"Sentence number {number} says something new." for number in range(60))
    chunks = chunker("sentence", 40, 20).split(Document("a.txt", "", 0, "a", text))
    assert all(after.start < before.end for before, after in zip(chunks, chunks[1:], strict=False))


def test_markdown_chunks_stay_in_their_section_and_know_it() -> None:
    document = markdown("Intro.\n\n# A\n\nalpha\n\n## B\n\nbeta beta\n\n# C\n\n" + "gamma gamma. " * 30)
    chunks = chunker("markdown", 20).split(document)
    headings = [chunk.heading for chunk in chunks]
    assert headings[:4] == [(), ("A",), ("A", "B"), ("C",)]
    assert set(headings[3:]) == {("C",)}
    for chunk in chunks:
        assert sum(s.start <= chunk.start < s.end for s in document.sections) == 1
        assert sum(s.start < chunk.end <= s.end for s in document.sections) == 1


def test_sentence_chunks_may_span_sections_and_carry_the_first() -> None:
    chunks = chunker("sentence", 40).split(markdown("# A\n\none\n\n# B\n\ntwo\n"))
    assert [(chunk.text, chunk.heading) for chunk in chunks] == [("# A\n\none\n\n# B\n\ntwo", ("A",))]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_no_chunk_crosses_a_page(splitter: str) -> None:
    pages = (Section(0, 10, page=1), Section(10, 20, page=2))
    chunks = chunker(splitter).split(Document("a.pdf", "", 0, "a", "page one\n\npage two\n\n", pages))
    assert [(chunk.text, chunk.page) for chunk in chunks] == [("page one", 1), ("page two", 2)]


@pytest.mark.parametrize("text", ["", " \n\t ", "\n\n\n"])
def test_nothing_to_split_gives_no_chunks(text: str) -> None:
    assert chunker().split(Document("a.txt", "", 0, "a", text)) == []


def test_the_limit_of_the_embedder_wins_over_the_size_and_is_in_the_fingerprint() -> None:
    small = Chunker(ChunkerSettings(size=400), tokenize, limit=20)
    chunks = small.split(Document("a.txt", "", 0, "a", "some words here. " * 100))
    assert max(len(tokenize(chunk.text)) for chunk in chunks) <= 20
    assert small.fingerprint["size"] == 20


def test_the_fingerprint_tells_what_moves_borders() -> None:
    one, other = chunker("markdown", 40).fingerprint, chunker("sentence", 40).fingerprint
    assert set(one) == {"splitter", "size", "overlap", "rules", "library"}
    assert str(one["library"]).startswith("llama-index-core ")
    assert one != other and one == chunker("markdown", 40).fingerprint


def test_a_change_at_the_end_leaves_the_chunks_before_it() -> None:
    text = "".join(f"# Part {n}\n\n" + "Some words of it. " * 12 + "\n\n" for n in range(10))
    before = {chunk.id for chunk in chunker("markdown", 30).split(markdown(text))}
    after = {chunk.id for chunk in chunker("markdown", 30).split(markdown(text + "One more sentence.\n"))}
    assert len(before - after) <= 1


def test_a_thousand_sections_take_no_more_than_seconds() -> None:
    text = "".join(
        f"## Heading {n}\n\n" + "Words that say something, more or less. " * 40 for n in range(1000)
    )
    started = time.perf_counter()
    chunks = chunker("markdown", 200).split(markdown(text))
    assert len(chunks) > 2000
    assert time.perf_counter() - started < 20


def texts(text: str, size: int = 40) -> list[str]:
    document = markdown(text)
    chunks = chunker("markdown", size).split(document)
    check(document, chunks, size)
    return [chunk.text for chunk in chunks]


def test_headings_alone_go_with_the_text_that_follows_them() -> None:
    assert texts("# Refund policy\n\n## Timing\n\nA refund takes a week.\n\n## Cards\n\nVisa.\n") == [
        "# Refund policy\n\n## Timing\n\nA refund takes a week.",
        "## Cards\n\nVisa.",
    ]


def test_headings_that_end_a_document_go_with_the_text_before_them() -> None:
    assert texts("# A\n\nSome text.\n\n# See also\n\n## Links\n") == [
        "# A\n\nSome text.\n\n# See also\n\n## Links"
    ]
    assert texts("# Only\n\n## Headings\n") == ["# Only\n\n## Headings"]


def test_a_chunk_that_begins_with_headings_stands_under_the_last_of_them() -> None:
    chunks = chunker("markdown", 40).split(markdown("# A\n\n## B\n\n### C\n\ntext\n\n## D\n\nmore\n"))
    assert [chunk.heading for chunk in chunks] == [("A", "B", "C"), ("A", "D")]


def test_headings_without_marks_are_joined_too() -> None:
    sections = (Section(0, 9, ("Refunds",)), Section(9, 32, ("Refunds", "Timing")))
    document = Document("a.docx", "", 0, "a", "Refunds\n\nTiming\n\nIt takes a week", sections)
    chunks = chunker("markdown", 40).split(document)
    assert [(chunk.text, chunk.heading) for chunk in chunks] == [(document.text, ("Refunds", "Timing"))]


def test_headings_are_not_joined_across_pages() -> None:
    sections = (Section(0, 8, ("Refunds",), 1), Section(8, 23, ("Timing",), 2))
    document = Document("a.pptx", "", 0, "a", "Refunds\nIt takes a week", sections)
    assert [chunk.page for chunk in chunker("markdown", 40).split(document)] == [1, 2]


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(["# One\n", "## Two\n", "words and words.\n\n", "- item\n", "```\n# x\n```\n"]))
)
def test_no_chunk_of_headings_stands_next_to_text_it_has_room_for(pieces: list[str]) -> None:
    document = markdown("".join(pieces))
    chunks = chunker("markdown", 40).split(document)
    bare = [all(unit.kind == "heading" for unit in split_units(chunk.text)) for chunk in chunks]
    for alone, chunk, after in zip(bare, chunks, chunks[1:], strict=False):
        assert not alone or len(tokenize(chunk.text + after.text.split("\n")[0])) > 40
