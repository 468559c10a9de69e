"""Thirty nights on a documentation that moves from Dapr 1.10 to 1.12, with four faults on known nights.

The documents move in five steps, through the gate; after each the team accepts the new normal. Where the gate
refuses because golden questions lost what they rest on, the team retires those in the same ingest. On four
nights something else happens: the embedder is swapped, a poisoned document is published, the prompt loses its
rules, half of the questions are about something else. The report should name each on its night, and page on
no other. The answers come from a model that reads its prompt: a double at a real socket, which quotes a
passage when the prompt says so and chats when it does not.
"""

import json
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.common import data_folder, models_folder, parser, scratch, show
from eval.evaluate import evaluate_release
from eval.gate import Verdict
from eval.golden import format_rows, parse_rows
from eval.golden_generate import from_corpus
from eval.nights import Nights
from eval.report import Report
from eval.simulate import RELEASE_DRIFTS, WARM_UP_DAYS, Drift, Rehearsal
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import Judgement, override_gate
from knowledge_base.sentences import split_sentences
from rag.answer_log import AnswerLog
from tests.openai_server import Reply, Request, scripted_server

NIGHTS, PER_DAY, GOLDEN, POOL = 30, 100, 60, 120
FAULTS = (
    Drift(7, "embedder"), Drift(13, "documents"), Drift(19, "prompt"), Drift(25, "topic"),
)  # fmt: skip
EXPECTED = {"embedder": "embedder", "documents": "corpus", "prompt": "prompt", "topic": "queries"}
MOVES = {4: ("v1.11", 0.5), 10: ("v1.11", 1.0), 16: ("v1.12", 0.3), 22: ("v1.12", 0.7), 28: ("v1.12", 1.0)}
"""On which morning how much of a version's documents is published."""
SETTINGS = """
[answer]
model = "openai:double"
base_url = "{url}"
retries = 0

[gate]
repetitions = 1
escalated = 1
"""
_PASSAGE = re.compile(r"<passage number=\"(\d+)\"[^>]*>\n?(.*?)</passage [^>]*>", re.DOTALL)
_WORD = re.compile(r"\w{3,}")


def reply(request: Request) -> Reply:
    """What a model would say that does what its prompt asks for, and nothing more."""
    messages = request["messages"]
    system = " ".join(m["content"] for m in messages if m["role"] == "system")
    user = str(messages[-1]["content"])
    if "from nothing else" not in system:
        return Reply("It is generally a good idea to follow the advice of the vendor and to test everything.")
    question = set(_WORD.findall(user.rsplit("Question:", 1)[-1].lower()))
    best, said = 0, "NO ANSWER"
    passages = _PASSAGE.findall(user)
    assert passages, f"no passage is read in {user[:400]!r}"
    for number, text in passages:
        for start, end in split_sentences(text):
            sentence = " ".join(text[start:end].split())
            shared = len(question & set(_WORD.findall(sentence.lower())))
            if shared > best and 20 < len(sentence) < 300:
                best, said = shared, f"{sentence} [{number}]"
    return Reply(said)


def documents(version: str, part: str) -> dict[str, bytes]:
    """A version's files by path, those whose path holds `part`."""
    root = data_folder() / "docs_dapr_A" / version
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*.md"))
        if part in p.as_posix()
    }


def publish(kb: KnowledgeBase, files: dict[str, bytes]) -> str:
    """Ingest through the gate; when it refuses, retire the questions that lost, and try again.

    What it refuses twice is published past it. Returns what it said each time.
    """
    verdicts: list[Verdict] = []

    def gate(candidate: str, live: str) -> Judgement:
        verdicts.append(evaluate_release(kb, candidate, live))
        return Judgement(verdicts[-1].label, verdicts[-1].publishable, verdicts[-1].as_json())

    sources = Sources(tuple(SourceFile(path, content=content) for path, content in files.items()))
    result = ingest(kb, sources, IngestOptions(prune=True), gate=gate)
    if not result.published:
        lost = {loss.id for loss in verdicts[0].losses}
        path = kb.root / "golden" / "dapr.jsonl"
        rows = parse_rows(path.name, path.read_text())
        path.write_text(
            format_rows(r.model_copy(update={"state": "retired"}) if r.id in lost else r for r in rows)
        )
        result = ingest(kb, sources, IngestOptions(prune=True), gate=gate)
    if not result.published:
        ingest(kb, sources, IngestOptions(prune=True), gate=override_gate("the documentation moved"))
    return ", then ".join(verdict.label for verdict in verdicts)


def moved(now: dict[str, bytes], target: dict[str, bytes], share: float) -> dict[str, bytes]:
    """`now`, with a share of what differs from `target` as `target` has it."""
    differing = sorted(path for path in now.keys() | target.keys() if now.get(path) != target.get(path))
    chosen = set(differing[: round(share * len(differing))])
    kept = {path: content for path, content in now.items() if path not in chosen}
    return kept | {path: target[path] for path in chosen if path in target}


def start(folder: Path, url: str, part: str) -> tuple[Rehearsal, dict[str, bytes]]:
    """Version 1.10 with golden questions, made from its own sentences."""
    kb = KnowledgeBase.create(folder / "kb", models_folder())
    path = kb.root / "plumbline.toml"
    text = re.sub(r"\[answer\].*?(?=\n\[|\Z)", "", path.read_text(), flags=re.DOTALL)
    path.write_text(text + SETTINGS.format(url=url))
    files = documents("v1.10", part)
    sources = Sources(tuple(SourceFile(name, content=content) for name, content in files.items()))
    ingest(kb, sources, IngestOptions(), gate=lambda candidate, live: Judgement("PASS", True))
    lasting = documents("v1.12", part)
    with_answers = [
        row
        for row in from_corpus(kb.snapshot(), 6 * POOL)
        if row.quote and row.document in lasting and row.quote.encode() in lasting[row.document]
    ][:POOL]
    golden = [row.model_copy(update={"state": "approved"}) for row in with_answers[:: POOL // GOLDEN]]
    (kb.root / "golden" / "dapr.jsonl").write_text(format_rows(golden))
    ingest(kb, sources, IngestOptions(), gate=lambda candidate, live: Judgement("PASS", True))
    log = AnswerLog(f"sqlite:///{folder / 'answers.sqlite'}")
    asked = [row.question for row in sorted(with_answers, key=lambda row: row.document or "")]
    return Rehearsal(kb, log, asked, date(2026, 10, 1), PER_DAY), files


def run(folder: Path, url: str, output: Path, nights: int, part: str) -> list[dict[str, Any]]:
    """One row for each night."""
    rehearsal, files = start(folder, url, part)
    kb, faults, rows = rehearsal.knowledge_base, {fault.day: fault for fault in FAULTS}, []
    for number in range(1 - WARM_UP_DAYS, 1):
        rehearsal.serve(number)
    for night in range(1, nights + 1):
        started = time.perf_counter()
        fault, said = faults.get(night), ""
        if night in MOVES:
            files = moved(files, documents(MOVES[night][0], part), MOVES[night][1])
            said = publish(kb, files)
        if fault and fault.kind in RELEASE_DRIFTS:
            rehearsal.spoil(fault)
        rehearsal.serve(night, fault)
        report = rehearsal.report(night, output / f"night-{night:02}")
        rows.append(_row(night, fault, report, said) | {"seconds": round(time.perf_counter() - started, 1)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if fault and fault.kind in RELEASE_DRIFTS:
            rehearsal.mend()
        if night in MOVES:
            Nights(kb).accept("main", rehearsal.day(night), f"{MOVES[night][0]} is published", 28)
    return rows


def _row(night: int, fault: Drift | None, report: Report, gate: str) -> dict[str, Any]:
    return {
        "night": night,
        "fault": fault.kind if fault else "",
        "moved": " ".join(map(str, MOVES[night])) if night in MOVES else "",
        "gate": gate,
        "verdict": report.verdict,
        "causes": report.causes,
        "reasons": list(report.reasons),
        "values": report.values,
    }


def judged(row: dict[str, Any]) -> str:
    """Whether a night was reported as it should be."""
    if row["fault"]:
        named = row["verdict"] == "PAGE" and row["causes"][:1] == [EXPECTED[row["fault"]]]
        return "named" if named else "MISSED"
    return "FALSE PAGE" if row["verdict"] in ("PAGE", "BLIND") else "quiet"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The summary chart: verdicts over four figures of the thirty nights."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    curves = {
        "embedder's canary": ("canary_cosine_reference", "canary_cosine_served"),
        "golden rank": ("golden_reciprocal_rank",), "golden recall": ("golden_context_recall",),
        "abstained": ("abstention_rate",), "questions outside": ("query_outside_share",),
    }  # fmt: skip
    with matplotlib.rc_context({"svg.hashsalt": "plumbline", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 7.5))
        axes = figure.subplots(len(curves) + 1, 1, sharex=True, height_ratios=[0.5, *[1] * len(curves)])
        colours = {"OK": "#2a8a4a", "WARN": "#d99a2b", "PAGE": "#b3261e", "BLIND": "#7a3fb3"}
        for row in rows:
            axes[0].bar(row["night"], 1, color=colours[row["verdict"]], width=0.9)
            if row["fault"]:
                axes[0].text(row["night"], 1.15, row["fault"], ha="center")
        axes[0].set_yticks([])
        axes[0].set_title(
            "Verdicts of thirty nights (green OK, amber WARN, red PAGE); what was put in is named", pad=18
        )
        for place, (label, names) in enumerate(curves.items(), 1):
            values = [[row["values"][name] for name in names if name in row["values"]] for row in rows]
            points = [(row["night"], min(found)) for row, found in zip(rows, values, strict=True) if found]
            axes[place].plot(*zip(*points, strict=True), marker=".", color="#2f6fde")
            axes[place].set_ylabel(label, rotation=0, ha="right", va="center")
            for move in MOVES:
                axes[place].axvline(move, color="#8888", linestyle=":")
        axes[-1].set_xlabel("night (dotted: documents moved)")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print a line for each night, and what was right."""
    made = parser(__doc__ or "")
    made.add_argument("--nights", type=int, default=NIGHTS)
    made.add_argument("--part", default="", help="only documents whose path holds this, for a quick look")
    made.add_argument("--output", type=Path, help="folder to keep the reports in")
    made.add_argument("--chart", type=Path, help="SVG to draw")
    arguments = made.parse_args()
    with scratch() as folder, scripted_server() as server:
        server.script = reply
        rows = run(
            Path(folder),
            server.url,
            arguments.output or Path(folder) / "out",
            arguments.nights,
            arguments.part,
        )
    if arguments.chart:
        draw(rows, arguments.chart)
    if arguments.json:
        print(json.dumps({"nights": [row | {"judged": judged(row)} for row in rows]}))
        return
    cells = [
        (row["night"], row["fault"], row["moved"], row["verdict"], ", ".join(row["causes"]), judged(row))
        for row in rows
    ]
    show("Thirty nights", ("night", "put in", "moved", "verdict", "causes", ""), cells)


if __name__ == "__main__":
    main()
