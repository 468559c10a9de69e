"""Documents to chunks by LlamaIndex's splitters, with spans that are right by construction."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any, Protocol

from knowledge_base.configuration import ChunkerSettings
from knowledge_base.documents import Chunk, Document, Section
from knowledge_base.sentences import split_sentences, split_units
from knowledge_base.values import Fingerprint

Tokenize = Callable[[str], Sequence[int]]
"""Token ids of a text, without special tokens and without truncation."""

# Part of the fingerprint: raise it when the code below, or the sentences it uses, would split differently.
_RULES = 3
# Beyond this many characters a token is not a word: WordPiece takes a megabyte without a space for one.
_TOKEN_CHARACTERS = 32


class _Splitter(Protocol):
    def split_text(self, text: str) -> list[str]: ...


class Chunker:
    """Splits documents the same way every time; sizes count the embedder's own tokens.

    `limit` is how many tokens the embedder reads: no chunk is longer, whatever the settings say.
    """

    def __init__(self, settings: ChunkerSettings, tokenize: Tokenize, *, limit: int | None = None) -> None:
        self._settings = settings
        self._size = min(settings.size, limit or settings.size)
        self._tokenize = tokenize
        self._count = lru_cache(maxsize=1 << 15)(self._count_afresh)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides where chunks begin and end."""
        return {
            "splitter": self._settings.splitter,
            "size": self._size,
            "overlap": self._settings.overlap,
            "rules": _RULES,
            "library": f"llama-index-core {version('llama-index-core')}",
        }

    @cached_property
    def _splitter(self) -> _Splitter:
        from llama_index.core.node_parser import SentenceSplitter, TokenTextSplitter

        sizes: dict[str, Any] = {
            "chunk_size": self._size,
            "chunk_overlap": min(self._settings.overlap, self._size - 1),
            "tokenizer": lambda text: range(self._count(text.strip())),
        }
        splitter: _Splitter
        if self._settings.splitter == "token":
            splitter = TokenTextSplitter(**sizes)
        else:
            # Our own sentences: the library's come from nltk, which refuses to read its data from an
            # environment that uv installed, because uv links files.
            splitter = SentenceSplitter(**sizes, chunking_tokenizer_fn=_sentences)
        return splitter

    def _count_afresh(self, text: str) -> int:
        """Tokens of a text; of one that is too long in any case, not exactly."""
        # The splitter asks for whole documents first: their words are counted a hundred times faster,
        # and no tokenizer makes fewer tokens than words.
        words = len(text.split())
        if words > self._size:
            return words
        return max(len(self._tokenize(text)), len(text) // _TOKEN_CHARACTERS)

    def split(self, document: Document) -> list[Chunk]:
        """Chunks of one document in order; every visible character is in at least one of them."""
        text = document.text
        spans: set[tuple[int, int]] = set()
        for start, end in self._regions(document):
            spans.update(self._spans(text, start, end))
        outline = _Outline(document)
        return [outline.chunk(start, end) for start, end in sorted(spans)]

    def _regions(self, document: Document) -> list[tuple[int, int]]:
        """Stretches that no chunk may leave: pages always, sections for the markdown splitter."""
        text = document.text
        bounded = self._settings.splitter == "markdown" or any(s.page for s in document.sections)
        edges = [section.start for section in document.sections if section.start] if bounded else []
        regions = list(zip([0, *edges], [*edges, len(text)], strict=True))
        return _Outline(document).joined([(start, end) for start, end in regions if text[start:end].strip()])

    def _spans(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Spans of the pieces that the splitter makes of text[start:end].

        The splitter drops white space between pieces and gives no offsets worth trusting (it searches
        for the text, which finds the first of equal pieces), so each piece is looked for where the one
        before ended, or inside it where pieces overlap.
        """
        position, covered = start, start
        for piece in self._splitter.split_text(text[start:end]):
            piece = piece.strip()
            if not piece:
                continue
            at = text.find(piece, position, end)
            if at < 0 or text[covered:at].strip():
                # Not found as it stands, or something was left out before it: take what lies there.
                at = _skip_space(text, covered, end)
            stop = min(max(at + len(piece), covered), end)
            yield from self._within_size(text, at, stop)
            covered = stop
            position = max(at + 1, start) if self._settings.overlap else stop
        if text[covered:end].strip():
            yield from self._within_size(text, _skip_space(text, covered, end), end)

    def _within_size(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The span itself, or halves of it while it has more tokens than a chunk may have."""
        end = start + len(text[start:end].rstrip())
        if end <= start:
            return
        if end - start == 1 or self._count(text[start:end]) <= self._size:
            yield start, end
            return
        middle = _cut(text, start, end)
        yield from self._within_size(text, start, middle)
        yield from self._within_size(text, _skip_space(text, middle, end), end)


def _sentences(text: str) -> list[str]:
    """Sentences with the white space after them, so that joined they are the text again."""
    starts = [0, *(start for start, _ in split_sentences(text)[1:]), len(text)]
    return [text[start:end] for start, end in zip(starts, starts[1:], strict=False)]


def _cut(text: str, start: int, end: int) -> int:
    """Where to cut a span in two: at the white space nearest its middle, or in the middle."""
    middle = (start + end) // 2
    for distance in range((end - start) // 4):
        for at in (middle + distance, middle - distance):
            if start < at < end and text[at].isspace():
                return at
    return middle


def _skip_space(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return start


class _Outline:
    """Where the headings and pages of a document are."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._starts = [section.start for section in document.sections]

    def chunk(self, start: int, end: int) -> Chunk:
        """The chunk of a span, under the headings of its first words that are no heading themselves."""
        first = self._after_headings(start, end)
        section = self._section(first if first < end else start)
        text = self._document.text[start:end]
        return Chunk(self._document.path, start, end, text, section.heading, section.page)

    def joined(self, regions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The regions, those of headings alone joined to what follows or, at the end, to what is before.

        A chunk that only says "# Refunds" is the nearest passage to every question about refunds, and
        answers none. Nothing is joined to what is on another page.
        """
        joined: list[tuple[int, int]] = []
        bare = False
        for start, end in regions:
            alone = self._after_headings(start, end) >= end
            if bare and self._same_page(joined[-1][0], start):
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
            bare = alone
        if bare and len(joined) > 1 and self._same_page(joined[-2][0], joined[-1][0]):
            joined[-2:] = [(joined[-2][0], joined[-1][1])]
        return joined

    def _section(self, at: int) -> Section:
        number = bisect.bisect_right(self._starts, at) - 1
        section = self._document.sections[number] if number >= 0 else Section(0, 0)
        return section if at < section.end else Section(at, at)

    def _same_page(self, one: int, other: int) -> bool:
        return self._section(one).page == self._section(other).page

    def _after_headings(self, start: int, end: int) -> int:
        """Where the headings that a span begins with are over: its end when it holds nothing else."""
        text = self._document.text[start:end]
        for unit in split_units(text):
            # Those of an office document have no marks: they are lines like any other.
            known = self._section(start + unit.start).heading[-1:]
            if unit.kind != "heading" and known != (text[unit.start : unit.end],):
                return start + unit.start
        return end
