"""Does the gate block what is worse, and let through what is not?

A knowledge base of SQuAD 2.0 paragraphs with 200 golden questions is live. Mutants of it, each worse in a way
that happens in practice, are judged by the gate as `rag promote` would: at least 95 % should be blocked. Then
releases that are no worse are judged: the same documents laid out anew (A/A), and with unrelated documents
added. At least 98 % of the A/A runs should pass. Ranges are 95 % Clopper-Pearson intervals.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, scratch, show
from eval.evaluate import evaluate_release
from eval.gate import Verdict, judge
from eval.golden import GoldenQuestion, format_rows
from eval.scores import Row, Score, Scores
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.configuration import SETTINGS_PATH, GateSettings
from knowledge_base.documents import Chunk, Document, sha256_hex
from knowledge_base.errors import PlumblineError
from knowledge_base.home import KnowledgeBase
from knowledge_base.index import IndexDraft, write_index
from knowledge_base.release import DOCUMENTS_PREFIX
from knowledge_base.segment_tables import write_segment

DOCUMENTS, ANSWERABLE, FOREIGN = 400, 170, 30


@dataclass(frozen=True)
class Layout:
    """What a release is made of: documents with their chunks, vectors by text hash, source bytes by path."""

    documents: dict[str, Document]
    chunks: dict[str, list[Chunk]]
    vectors: dict[str, Any]
    sources: dict[str, bytes]
    settings: str
    segments: int = 1

    def without(self, paths: set[str]) -> "Layout":
        """The same without some documents."""
        return replace(
            self,
            documents={path: d for path, d in self.documents.items() if path not in paths},
            chunks={path: c for path, c in self.chunks.items() if path not in paths},
            sources={path: s for path, s in self.sources.items() if path not in paths},
        )

    def some(self, drawn: random.Random, share: float) -> list[str]:
        """A share of the paths, at random."""
        return drawn.sample(sorted(self.documents), round(share * len(self.documents)))


class Bench:
    """A knowledge base that is live, and the way to commit variants of it."""

    def __init__(self, folder: Path) -> None:
        data = data_folder() / "squad"
        rows = read_jsonl(data / "dev-v2.0.paragraphs.jsonl")[:DOCUMENTS]
        self.paths = {row["id"]: f"{number:04d}.md" for number, row in enumerate(rows)}
        self.knowledge_base = KnowledgeBase.create(folder, models_folder())
        (folder / "golden" / "squad.jsonl").write_text(format_rows(self._golden(data)))
        files = tuple(SourceFile(self.paths[row["id"]], content=row["text"].encode()) for row in rows)
        ingest(self.knowledge_base, Sources(files), IngestOptions())
        snapshot = self.knowledge_base.snapshot()
        chunks = {path: snapshot.chunks_in({path}) for path in snapshot.paths}
        hashes = {chunk.text_hash for found in chunks.values() for chunk in found}
        self.base = Layout(
            documents={path: snapshot.document(path) for path in snapshot.paths},
            chunks=chunks,
            vectors=snapshot.vectors_by_hash(hashes),
            sources={self.paths[row["id"]]: row["text"].encode() for row in rows},
            settings=(folder / SETTINGS_PATH).read_text(),
        )

    def _golden(self, data: Path) -> list[GoldenQuestion]:
        asked = [
            row
            for row in read_jsonl(data / "dev-v2.0.questions.jsonl")
            if row["answers"] and row["paragraph"] in self.paths
        ]
        foreign = read_jsonl(data_folder() / "clapnq" / "dev_A.jsonl")
        drawn = random.Random(1)
        rows = [
            GoldenQuestion(
                id=row["id"],
                question=row["question"],
                answer=row["answers"][0],
                document=self.paths[row["paragraph"]],
                quote=row["answers"][0],
            )
            for row in drawn.sample(asked, ANSWERABLE)
        ]
        rows += [
            GoldenQuestion(id=f"foreign-{number}", question=row["question"], unanswerable=True)
            for number, row in enumerate(drawn.sample(foreign, FOREIGN))
        ]
        return rows

    def commit(self, name: str, layout: Layout, **overrides: bytes) -> str:
        """Commit a layout on a new branch from main, with files of the tree replaced as `overrides` say."""
        kb = self.knowledge_base
        kb.repository.create_branch(name, "main")
        release = kb.release("main")
        draft = IndexDraft(kb, release, [])
        paths = list(layout.documents)  # in the layout's order: another order is another index
        for part in range(layout.segments):
            chosen = paths[part :: layout.segments]
            chunks = [chunk for path in chosen for chunk in layout.chunks[path]]
            if chosen:
                draft.add(write_segment([layout.documents[path] for path in chosen], chunks, layout.vectors))
        with kb.repository.transact(name, message=name) as transaction:
            live = set(self.base.sources)
            for path in sorted(live - set(layout.sources)):
                transaction.delete(DOCUMENTS_PREFIX + path)
            for path, content in layout.sources.items():
                if self.base.sources.get(path) != content:
                    transaction.upload(DOCUMENTS_PREFIX + path, content)
            write_index(draft, transaction)
            transaction.upload(SETTINGS_PATH, layout.settings.encode())
            # A branch may have to differ from main in something, even in an A/A run.
            transaction.upload(f"golden/{name}.txt", b"variant\n")
        return name

    def judge(self, name: str) -> str:
        """The gate's status for a branch; REFUSED when it could not even be opened."""
        try:
            return evaluate_release(self.knowledge_base, name, "main").status
        except PlumblineError as error:
            return f"REFUSED ({type(error).__name__})"


Mutation = Callable[[Layout, random.Random], Layout]


def drop_documents(base: Layout, drawn: random.Random) -> Layout:
    return base.without(set(base.some(drawn, 0.1)))


def shuffle_texts(base: Layout, drawn: random.Random) -> Layout:
    """A tenth of the documents have each other's texts in the index."""
    chosen = base.some(drawn, 0.1)
    turned = dict(zip(chosen, chosen[1:] + chosen[:1], strict=True))
    documents = {path: replace(base.documents[turned.get(path, path)], path=path) for path in base.documents}
    documents = {
        path: replace(document, sha256=base.documents[path].sha256) for path, document in documents.items()
    }
    chunks = {
        path: [replace(chunk, path=path) for chunk in base.chunks[turned.get(path, path)]]
        for path in documents
    }
    return replace(base, documents=documents, chunks=chunks)


def shuffle_vectors(base: Layout, drawn: random.Random) -> Layout:
    """Every passage has the vector of another one."""
    keys = sorted(base.vectors)
    others = keys[:]
    drawn.shuffle(others)
    return replace(base, vectors={key: base.vectors[other] for key, other in zip(keys, others, strict=True)})


def shift_spans(base: Layout, drawn: random.Random) -> Layout:
    """The spans of a tenth of the documents are off by one, their vectors are not."""
    chosen = set(base.some(drawn, 0.1))
    chunks = {
        path: [_shifted(chunk) if path in chosen else chunk for chunk in found]
        for path, found in base.chunks.items()
    }
    return replace(base, chunks=chunks)


def _shifted(chunk: Chunk) -> Chunk:
    moved = replace(chunk, start=chunk.start + 1, end=chunk.end + 1)
    moved.__dict__["text_hash"] = chunk.text_hash  # what the segment is told, as a careless splitter would
    return moved


def other_embedder(base: Layout, drawn: random.Random) -> Layout:
    """The settings name another precision than the vectors have."""
    return replace(base, settings=base.settings.replace('precision = "int8"', 'precision = "fp32"'))


def random_embedder(base: Layout, drawn: random.Random) -> Layout:
    """The vectors are noise of the right shape, as from a model whose weights were not loaded."""
    random_ = np.random.default_rng(drawn.randrange(2**32))
    vectors = {key: random_.standard_normal(len(vector)) for key, vector in base.vectors.items()}
    noise = {key: (v / np.linalg.norm(v)).astype(np.float16) for key, v in vectors.items()}
    settings = base.settings.replace('mode = "hybrid"', 'mode = "dense"')
    return replace(base, vectors=noise, settings=settings)


def top_k_one(base: Layout, drawn: random.Random) -> Layout:
    return replace(base, settings=base.settings.replace("top_k = 5", "top_k = 1"))


def empty_index(base: Layout, drawn: random.Random) -> Layout:
    """The documents are there, the index is not."""
    return replace(base, documents={}, chunks={})


def duplicate_flood(base: Layout, drawn: random.Random) -> Layout:
    """A tenth of the documents come ten times more, each copy with another first word."""
    documents, chunks, sources = dict(base.documents), dict(base.chunks), dict(base.sources)
    vectors = dict(base.vectors)
    for path in base.some(drawn, 0.1):
        for number in range(10):
            text = f"{number} {base.documents[path].text}"
            copy = f"copy-{number}-{path}"
            documents[copy] = replace(
                base.documents[path], path=copy, text=text, sha256=sha256_hex(text.encode())
            )
            sources[copy] = text.encode()
            chunks[copy] = []
            for old in base.chunks[path]:
                new = Chunk(
                    copy, old.start, old.end + 2, text[old.start : old.end + 2], old.heading, old.page
                )
                vectors[new.text_hash] = base.vectors[old.text_hash]  # near enough: one word differs
                chunks[copy].append(new)
    return replace(base, documents=documents, chunks=chunks, sources=sources, vectors=vectors)


def stale_segments(base: Layout, drawn: random.Random) -> Layout:
    """A tenth of the documents were rewritten, the index was not."""
    sources = dict(base.sources)
    for path in base.some(drawn, 0.1):
        sources[path] = b"This page has moved. " + sources[path][::-1].decode("utf-8", "replace").encode()
    return replace(base, sources=sources)


MUTATIONS: Mapping[str, Mutation] = {
    "drop 10 % of the documents": drop_documents,
    "shuffle texts of 10 %": shuffle_texts,
    "shuffle all vectors": shuffle_vectors,
    "spans off by one in 10 %": shift_spans,
    "embedder of another precision": other_embedder,
    "embedder that is noise, dense": random_embedder,
    "top_k = 1": top_k_one,
    "empty index": empty_index,
    "flood of near duplicates": duplicate_flood,
    "stale index of 10 %": stale_segments,
}
_ONE_WAY = {"embedder of another precision", "top_k = 1", "empty index"}
"""Mutations that leave nothing to chance: one run says all."""


def mutants(bench: Bench, runs: int) -> Iterator[tuple[str, str]]:
    """(kind, status) of every mutant."""
    for kind, mutation in MUTATIONS.items():
        for seed in range(1 if kind in _ONE_WAY else runs):
            layout = mutation(bench.base, random.Random(seed))
            name = bench.commit(f"mutant-{list(MUTATIONS).index(kind)}-{seed}", layout)
            yield kind, bench.judge(name)
    yield "prompt without context", _prompt_without_context(bench)


def _prompt_without_context(bench: Bench) -> str:
    path = bench.knowledge_base.root / "prompts" / "answer.md"
    before = path.read_text()
    path.write_text(before.replace("{contexts}", ""))
    try:
        return ingest(bench.knowledge_base, Sources(()), IngestOptions(branch="prompt")).verdict
    except PlumblineError as error:
        return f"REFUSED ({type(error).__name__})"
    finally:
        path.write_text(before)


def laid_out_anew(bench: Bench, runs: int) -> Iterator[str]:
    """Status of releases with main's documents in another order and other segments: nothing that matters."""
    for seed in range(runs):
        drawn = random.Random(seed)
        paths = sorted(bench.base.documents)
        drawn.shuffle(paths)
        layout = replace(
            bench.base,
            documents={path: bench.base.documents[path] for path in paths},
            segments=drawn.randint(1, 5),
        )
        yield bench.judge(bench.commit(f"aa-{seed}", layout))


def unrelated_added(bench: Bench, runs: int) -> Iterator[str]:
    """Status of releases with eight documents more, of articles that no golden question is about."""
    rows = read_jsonl(data_folder() / "squad" / "dev-v1.1.paragraphs.jsonl")
    known = {path.split("#")[0] for path in bench.paths}
    rows = [row for row in rows if row["id"].split("#")[0] not in known]
    embedder = bench.knowledge_base.embedder(bench.knowledge_base.settings().embedder)
    for seed in range(runs):
        base = bench.base
        documents, chunks = dict(base.documents), dict(base.chunks)
        sources, vectors = dict(base.sources), dict(base.vectors)
        for row in random.Random(seed).sample(rows, 8):
            path, text = f"new/{row['id'].replace('#', '-')}.md", row["text"]
            chunk = Chunk(path, 0, len(text), text)
            documents[path] = Document(path, sha256_hex(text.encode()), len(text.encode()), "", text)
            chunks[path], sources[path] = [chunk], text.encode()
            vectors[chunk.text_hash] = embedder.embed_documents([text])[0]
        layout = replace(base, documents=documents, chunks=chunks, sources=sources, vectors=vectors)
        yield bench.judge(bench.commit(f"added-{seed}", layout))


def noisy(scores: Scores, runs: int, flips: float, repetitions: int) -> Iterator[str]:
    """Status of A/A runs in which a judge errs: each claim of three is flipped with probability `flips`."""
    random_ = np.random.default_rng(0)
    rules = GateSettings()

    def judged(label: str) -> Scores:
        rows = []
        for row in scores.rows:
            for turn in range(repetitions):
                kept = [s for s in row.scores if s.metric in rules.margins and s.metric != "faithfulness"]
                value = 1 - random_.binomial(3, flips) / 3
                kept.append(Score(metric="faithfulness", value=value))
                rows.append(Row(id=row.id, group=row.group, repetition=turn, scores=tuple(kept)))
        return Scores(commit=label, digest=label, rows=tuple(rows), judge=scores.judge)

    for run in range(runs):
        yield judge(judged(f"new {run}"), judged(f"old {run}"), golden="g", rules=rules).status


def interval(hits: int, runs: int) -> str:
    """Exact 95 % interval of a share."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, runs).proportion_ci(method="exact")
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def main() -> None:
    """Print both tables."""
    made = parser(__doc__ or "")
    made.add_argument("--mutants", type=int, default=10, help="runs of each kind of mutant")
    made.add_argument("--aa", type=int, default=200, help="A/A runs")
    made.add_argument("--added", type=int, default=20, help="runs with unrelated documents")
    arguments = made.parse_args()
    with scratch() as folder:
        bench = Bench(Path(folder))
        timing = time_gate(bench)
        told: list[tuple[str, str]] = []
        for kind, status in mutants(bench, arguments.mutants):
            told.append((kind, status))
            print(f"{kind}: {status}", flush=True)
        harmless = {
            "laid out anew (A/A)": counted("A/A", laid_out_anew(bench, arguments.aa)),
            "8 unrelated documents added": counted("added", unrelated_added(bench, arguments.added)),
        }
        scores = last_scores(bench)
    for turns in (1, 3):
        title = f"A/A, simulated judge that errs in 3 % of claims, {turns} repetition(s)"
        harmless[title] = list(noisy(scores, arguments.aa, 0.03, turns))
    report(timing, told, harmless, as_json=arguments.json)


def counted(label: str, statuses: Iterator[str]) -> list[str]:
    """The statuses, told as they come."""
    found: list[str] = []
    for status in statuses:
        found.append(status)
        print(f"{label} {len(found)}: {status}, {found.count('PASS')} passed so far", flush=True)
    return found


def time_gate(bench: Bench) -> dict[str, float]:
    """Seconds of a full gate on 200 questions from nothing, with the baseline known, and again unchanged."""
    layout = drop_documents(bench.base, random.Random("time"))
    bench.commit("timed", layout)
    bench.commit("timed-too", drop_documents(bench.base, random.Random("time too")))
    found = {}
    for label, ref, again in (
        ("both sides asked anew", "timed", False),
        ("baseline known", "timed-too", False),
        ("unchanged, asked to look again", "timed", True),
        ("unchanged", "timed", False),
    ):
        started = time.perf_counter()
        verdict: Verdict = evaluate_release(bench.knowledge_base, ref, "main", again=again)
        found[label] = round(time.perf_counter() - started, 2)
        print(f"{label}: {found[label]} s, {verdict.status}, {verdict.reused} known", flush=True)
    return found


def last_scores(bench: Bench) -> Scores:
    """The stored rows of main."""
    from eval.evaluations import Evaluations

    digest = bench.knowledge_base.release("main").answers_digest
    return Scores(commit="main", rows=Evaluations(bench.knowledge_base.repository).rows(digest))


def report(
    timing: dict[str, float],
    told: list[tuple[str, str]],
    harmless: dict[str, list[str]],
    *,
    as_json: bool,
) -> None:
    """Print tables, or one JSON object."""
    if as_json:
        print(json.dumps({"seconds": timing, "mutants": told, "harmless": harmless}))
        return
    show("Seconds of a gate on 200 golden questions", ("run", "seconds"), timing.items())
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in told):
        statuses = [status for name, status in told if name == kind]
        blocked = sum(status != "PASS" for status in statuses)
        counts = ", ".join(f"{name} {count}" for name, count in Counter(statuses).most_common())
        rows.append((kind, f"{blocked} of {len(statuses)}", counts))
    total, blocked = len(told), sum(status != "PASS" for _, status in told)
    rows.append(("all mutants", f"{blocked} of {total}", f"blocked: {interval(blocked, total)}"))
    show("Mutants", ("mutant", "blocked", "verdicts"), rows)
    passed = []
    for label, statuses in harmless.items():
        good = statuses.count("PASS")
        if statuses:
            passed.append((label, f"{good} of {len(statuses)}", interval(good, len(statuses))))
    show("No worse", ("release", "passed", "95 %"), passed)


if __name__ == "__main__":
    main()
