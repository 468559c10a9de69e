"""Personal data found by `rag.privacy`: precision and recall by kind on 1,500 marked texts.

A find counts when it overlaps a marked span of its kind; a span counts as found when a find of its kind
covers all of it. Kinds that are marked but not looked for are listed without figures. The patterns were
written with these texts at hand. Finds in real documents may be real: a company's address in its manual.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import data_folder, parser, read_jsonl, show
from rag.privacy import find_personal_data

KINDS = {
    "EMAIL_ADDRESS": "e-mail",
    "IBAN_CODE": "IBAN",
    "CREDIT_CARD": "card",
    "US_SSN": "SSN",
    "IP_ADDRESS": "IP address",
    "PHONE_NUMBER": "phone",
}


def score(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind, and one for each marked kind that is not looked for."""
    marked, covered, right, found = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        finds = find_personal_data(row["text"])
        spans = [(KINDS.get(span["type"], span["type"]), span["start"], span["end"]) for span in row["spans"]]
        for kind, start, end in spans:
            marked[kind] += 1
            covered[kind] += any(f.kind == kind and f.start <= start and end <= f.end for f in finds)
        for find in finds:
            found[find.kind] += 1
            right[find.kind] += any(
                kind == find.kind and start < find.end and find.start < end for kind, start, end in spans
            )
    return [
        {
            "kind": kind,
            "marked": marked[kind],
            "found": found[kind],
            "precision": right[kind] / found[kind] if found[kind] else None,
            "recall": covered[kind] / marked[kind] if kind in KINDS.values() else None,
        }
        for kind in [*KINDS.values(), *sorted(set(marked) - set(KINDS.values()))]
    ]


def documents(data: Path) -> dict[str, list[str]]:
    """Texts of real documents by data set."""
    pages = sorted((data / "docs_dapr_A" / "v1.12").rglob("*.md"))
    return {
        "documentation": [page.read_text(encoding="utf-8", errors="replace") for page in pages],
        "SQuAD": [row["text"] for row in read_jsonl(data / "squad" / "dev-v2.0.paragraphs.jsonl")],
        "SciFact": [row["text"] for row in read_jsonl(data / "scifact" / "corpus.jsonl")],
    }


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__ or "").parse_args()
    data = data_folder()
    rows = read_jsonl(data / "pii_presidio" / "synth_dataset_v2.jsonl")
    started = perf_counter()
    table = score(rows)
    milliseconds = 1000 * (perf_counter() - started) / len(rows)
    alarms: dict[str, dict[str, int]] = defaultdict(dict)
    for name, texts in documents(data).items():
        kinds = Counter(str(find.kind) for text in texts for find in find_personal_data(text))
        alarms[name] = {"documents": len(texts), **{kind: kinds[kind] for kind in KINDS.values()}}
    if arguments.json:
        print(json.dumps({"kinds": table, "documents": alarms, "milliseconds": milliseconds}))
        return
    show(
        f"Personal data in {len(rows)} texts, {milliseconds:.2f} ms each",
        tuple(table[0]),
        [["-" if value is None else value for value in row.values()] for row in table],
    )
    show(
        "Finds in real documents",
        ("documents of", "documents", *KINDS.values()),
        [(name, *counts.values()) for name, counts in alarms.items()],
    )


if __name__ == "__main__":
    main()
