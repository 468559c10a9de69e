"""Where sentences begin and end: one rule for splitting, answering and judging."""

import re

_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n\s*\n|\n(?=\s*(?:[-*+#>|]|\d+[.)])\s)")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences, list items and lines of a table in `text`, without outer white space."""
    edges = [0, *(match.end() for match in _BOUNDARY.finditer(text)), len(text)]
    spans = []
    for start, end in zip(edges, edges[1:], strict=False):
        piece = text[start:end]
        stripped = piece.strip()
        if stripped:
            lead = len(piece) - len(piece.lstrip())
            spans.append((start + lead, start + lead + len(stripped)))
    return spans
