"""How long the whole nightly report takes: 20,000 chunks, 2,000 logged questions, 200 golden questions.

Real documents with pseudorandom vectors, as in benchmarks.versions, and the real embedder for questions. Half
of the logged questions are the reference's, half the day's; 200 distinct ones are asked and logged again
and again, since asking is no part of the report. Two reports are timed: one against the reference itself,
and one after a hundredth of the documents changed.
"""

import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import models_folder, parser, scratch, show
from benchmarks.versions import Bench, Corpus, Prepared, editions, open_bench
from eval.golden import format_rows
from eval.golden_generate import from_corpus
from eval.report import write_report
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder
from knowledge_base.lifecycle import Judgement
from rag.answer_log import AnswerLog
from rag.engine import Engine

DAY = date(2026, 11, 20)
DISTINCT = 200


class Asked(Prepared):
    """Pseudorandom vectors for documents, the model's own for questions."""

    def embed_query(self, question: str) -> NDArray[np.float32]:
        """The model's vector of a question."""
        found: NDArray[np.float32] = self._real.embed_query(question)
        return found


def passed(candidate: str, live: str) -> Judgement:
    return Judgement("PASS", True)


def publish(kb: Bench, corpus: Corpus) -> None:
    ingest(kb, list_sources([str(corpus.folder)]), IngestOptions(), gate=passed)


def log_answers(kb: Bench, log: AnswerLog, questions: list[str], number: int) -> None:
    """Half of them in the four weeks before, half on the day, one after the other."""
    engine = Engine.open(kb)
    answers = [engine.ask(question) for question in questions]
    engine.close()
    begin = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    for place in range(number):
        late = place >= number // 2
        step = place - number // 2 if late else place
        span = timedelta(days=1 if late else 27) / (number // 2)
        asked_at = (begin if late else begin - timedelta(days=28)) + step * span
        log.append(answers[place % len(answers)].model_copy(update={"id": str(place)}), asked_at)


def main() -> None:
    """Print the seconds of each report."""
    made = parser(__doc__ or "")
    made.add_argument("--chunks", type=int, default=20_000)
    made.add_argument("--questions", type=int, default=2_000)
    made.add_argument("--golden", type=int, default=200)
    arguments = made.parse_args()
    rows = []
    with scratch() as folder:
        root = Path(folder)
        embedder = Asked(load_embedder(EmbedderSettings(), models_folder()), [])
        kb = open_bench(root / "kb", embedder)
        corpus = Corpus(root / "documents", editions(), arguments.chunks, embedder)
        publish(kb, corpus)
        golden = from_corpus(kb.snapshot(), arguments.golden)
        approved = [row.model_copy(update={"state": "approved"}) for row in golden]
        (kb.root / "golden" / "made.jsonl").write_text(format_rows(approved))
        publish(kb, corpus)
        log = AnswerLog(f"sqlite:///{root / 'answers.sqlite'}")
        log_answers(kb, log, [row.question for row in golden[:DISTINCT]], arguments.questions)
        for place, title in enumerate(("against the reference itself", "after a change of 1 %")):
            if place:
                corpus.change(1)
                publish(kb, corpus)
            started = time.perf_counter()
            report = write_report(kb, log, root / "out", day=DAY + timedelta(days=place))
            seconds = round(time.perf_counter() - started, 1)
            size = (root / "out" / "report.html").stat().st_size
            chunks = int(report.values["chunks"])
            rows.append((title, chunks, int(report.values["questions"]), report.verdict, size, seconds))
        log.close()
    names = ("report", "chunks", "questions", "verdict", "bytes of the page", "seconds")
    if arguments.json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    else:
        show("The nightly report", names, rows)


if __name__ == "__main__":
    main()
