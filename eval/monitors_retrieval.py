"""Monitor of retrieval: the golden questions asked of both releases, and the index against every vector."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from eval.drift_statistics import paired_loss
from eval.findings import Chart, Finding, Level, Section, Table, insufficient, table
from eval.gate import ZERO_TOLERANCE, Verdict
from eval.golden import GoldenQuestion, load_golden
from eval.monitors_release import documents_changed_by
from eval.night_inputs import Night
from eval.scores import Row, Scores

_DEPTH = 10
_EXACT_RECALL = 0.95
_PERSISTENCE = 0.9
_CAPTURE, _GRAVE_CAPTURE = 0.1, 0.2
"""Share of the golden questions at whose top one new document may stand, unasked for."""
_FEWEST = 10
_SHOWN = 30
_STALE_NAMED = 5
_RANKING = ("context_recall", "reciprocal_rank", "ndcg")
_ANSWERING = ("faithfulness", "abstention", "factual_correctness")
_FLOOR, _PAGE_FLOOR = 0.02, 0.05


def retrieval(night: Night) -> Section:
    """The golden questions asked of the served release and of the reference's; the index against itself."""
    rows = load_golden(night.knowledge_base.repository, night.served.commit)
    asked = {row.id: row for row in rows if row.state == "approved"}
    index = _index_recall(night, list(asked.values()))
    values = {f"{finding.check}_recall": 1 - (finding.effect or 0.0) for finding in index}
    if not asked:
        why = "there are no golden questions: put some into golden/*.jsonl, then ingest"
        return Section(
            monitor="retrieval",
            title="Golden questions",
            findings=(
                insufficient("retrieval", "golden", why),
                *([_stale(night, rows)] if rows else ()),
                *index,
            ),
            values=values,
        )
    new, old = night.golden
    findings = [_gate(night), _stale(night, rows), *index]
    tables, charts = [], []
    values |= {f"golden_{m.name}": m.candidate for m in night.verdict.metrics if m.candidate is not None}
    if night.at_reference:
        old = None  # what the verdict compares with then is the release before
    tables.append(_metrics(night.verdict, alone=old is None))
    if old is not None:
        findings += _paired(night, new, old)
        changed_by = documents_changed_by(night, night.reference.release)
        changed = _changed_questions(new, old, changed_by, night.served.commit)
        values["golden_mean_jaccard"] = float(np.mean([row[1] for row in changed]))
        values["golden_mean_rbo"] = float(np.mean([row[2] for row in changed]))
        findings += _captured(new, old, asked, changed_by)
        shown = [row for row in changed if row[1] < 1][:_SHOWN]
        head = ("question", "Jaccard", "RBO", "was first", "is first", "changed by")
        tables.append(table(f"Questions whose passages changed (the {_SHOWN} most)", head, shown))
    names = [m.name for m in night.verdict.metrics if m.name in (*_RANKING, *_ANSWERING)]
    by_name = {m.name: m for m in night.verdict.metrics}
    series = {"served": tuple(by_name[n].candidate for n in names)}
    if old is not None:
        series = {"reference": tuple(by_name[n].baseline for n in names)} | series
    charts.append(Chart(title="Golden questions", kind="bars", labels=tuple(names), series=series))
    return Section(
        monitor="retrieval",
        title="Golden questions",
        findings=tuple(findings),
        tables=tuple(tables),
        charts=tuple(charts),
        values=values,
    )


def _stale(night: Night, rows: Sequence[GoldenQuestion]) -> Finding:
    """Golden questions that somebody set aside, or whose document or quote the served release lacks.

    What the accepted release lacks too is told, and is no alarm any more.
    """
    text = night.engine.snapshot.document_text
    aside = [row.id for row in rows if row.state == "stale"]
    lost = [row.id for row in rows if row.state == "approved" and not row.is_held_by(text)]
    stale = sorted([*aside, *lost])
    named = ", ".join(stale[:_STALE_NAMED]) + (" ..." if len(stale) > _STALE_NAMED else "")
    return Finding(
        monitor="golden_rows",
        check="stale",
        level="warn" if aside or (lost and not night.at_reference) else "ok",
        said=f"{len(stale)} golden question(s) are stale: {named}: `rag golden review`"
        if stale
        else "the served release holds what every golden question requires",
        effect=float(len(stale)),
        n=len(rows),
    )


def _gate(night: Night) -> Finding:
    """The gate's own verdict against the reference."""
    verdict = night.verdict
    if night.at_reference:
        return _alone(verdict)
    level = {"FAIL": "page", "INCONCLUSIVE": "warn", "INCOMPLETE": "blind"}.get(verdict.status, "ok")
    told = "; ".join(verdict.reasons[:3])
    said = f"{verdict.status} on {verdict.questions} questions" + (f": {told}" if told else "")
    return Finding.model_validate(
        {"monitor": "retrieval", "check": "gate", "level": level, "said": said, "n": verdict.questions}
    )


def _metrics(verdict: Verdict, *, alone: bool) -> Table:
    rows = [
        (m.name, m.candidate, None if alone else m.baseline, None if alone else m.delta, m.n)
        for m in verdict.metrics
    ]
    return table("Metrics", ("metric", "served", "reference", "change", "questions"), rows)


def _alone(verdict: Verdict) -> Finding:
    """What the gate finds without comparing: the served release answers as the reference does.

    The verdict may still say how either compares with the release before; that is not this night's news.
    """
    broken = [m.name for m in verdict.metrics if m.name in ZERO_TOLERANCE and (m.candidate or 0.0) < 1]
    said = f"{verdict.questions} questions; the served release answers as the reference"
    level: Level = "page" if broken else "blind" if verdict.status == "INCOMPLETE" else "ok"
    if broken:
        said += "; " + "; ".join(ZERO_TOLERANCE[name] for name in broken)
    elif level == "blind":
        said += "; " + "; ".join(verdict.reasons[:3])
    return Finding(monitor="retrieval", check="gate", level=level, said=said, n=verdict.questions)


def _index_recall(night: Night, rows: Sequence[GoldenQuestion]) -> list[Finding]:
    """Whether the index finds what comparing every vector finds."""
    engine = night.engine
    if len(night.passages) <= _DEPTH:
        return []
    if rows:
        queries = [engine.embedder.embed_query(row.question) for row in rows[:200]]
    else:
        drawn = np.random.default_rng(night.seed("index")).permutation(len(night.passages))[:64]
        queries = list(night.vectors[drawn])
    hits = 0.0
    for query in queries:
        scores = night.vectors @ query
        edge = np.partition(scores, -_DEPTH)[-_DEPTH] - 1e-5
        exact = set(night.passages[scores >= edge].tolist())
        hits += len(exact & set(engine.snapshot.nearest(query, _DEPTH).tolist())) / _DEPTH
    recall = min(1.0, hits / len(queries))
    return [
        Finding(
            monitor="retrieval",
            check="index",
            level="ok" if recall >= _EXACT_RECALL else "page",
            said=f"the index finds {recall:.1%} of the {_DEPTH} nearest passages",
            effect=round(1 - recall, 6),
            floor=1 - _EXACT_RECALL,
            n=len(queries),
        )
    ]


def _paired(night: Night, new: Scores, old: Scores) -> list[Finding]:
    """Each metric, question by question: whether the losses are more than chance."""
    findings = []
    for metric in (*_RANKING, *_ANSWERING):
        now, before = new.values(metric), old.values(metric)
        both = sorted(now.keys() & before.keys())
        if len(both) < _FEWEST:
            continue
        names = [new.groups.get(key) or key for key in both]
        groups = np.unique(names, return_inverse=True)[1]
        differences = np.array([now[key] - before[key] for key in both])
        test = paired_loss(differences, groups, night.seed(metric))
        findings.append(
            Finding(
                monitor="retrieval" if metric in _RANKING else "golden_answers",
                check=metric,
                said=f"{metric} of golden questions fell by {test.statistic:.3f}"
                if test.statistic > 0
                else f"{metric} of golden questions did not fall",
                effect=round(test.statistic, 6),
                floor=_FLOOR,
                page_floor=_PAGE_FLOOR,
                p=test.p,
                n=len(both),
                reference_n=len(both),
            )
        )
    return findings


def _changed_questions(
    new: Scores, old: Scores, changed_by: Mapping[str, str], served: str
) -> list[tuple[str, float, float, str, str, str]]:
    """(id, Jaccard, RBO, first before, first now, commit) of each question, the most changed first."""
    before = {row.id: row for row in old.rows if row.repetition == 0}
    found = []
    for row in (row for row in new.rows if row.repetition == 0 and row.id in before):
        was, now = _spans(before[row.id]), _spans(row)
        moved = [span[0] for span in (*now, *was) if (span in now) != (span in was)]
        commits = Counter(changed_by[path] for path in moved if path in changed_by)
        commit = commits.most_common(1)[0][0][:12] if commits else served[:12]
        found.append(
            (
                row.id,
                _jaccard(was, now),
                overlap(was, now),
                was[0][0] if was else "–",
                now[0][0] if now else "–",
                commit if was != now else "",
            )
        )
    return sorted(found, key=lambda one: (one[1], one[2], one[0]))


def _spans(row: Row) -> list[tuple[str, str]]:
    return [(passage.path, passage.chunk_id) for passage in row.passages]


def _jaccard(left: Sequence[object], right: Sequence[object]) -> float:
    union = set(left) | set(right)
    return round(len(set(left) & set(right)) / len(union), 6) if union else 1.0


def overlap(left: Sequence[object], right: Sequence[object], persistence: float = _PERSISTENCE) -> float:
    """Rank-biased overlap of two rankings, 0 to 1, extrapolated from their depth (Webber et al., 2010)."""
    depth = max(len(left), len(right))
    if not depth:
        return 1.0
    total = agreement = 0.0
    for rank in range(1, depth + 1):
        agreement = len(set(left[:rank]) & set(right[:rank])) / rank
        total += persistence ** (rank - 1) * agreement
    return round((1 - persistence) * total + persistence**depth * agreement, 6)


def _captured(
    new: Scores, old: Scores, asked: Mapping[str, GoldenQuestion], changed_by: Mapping[str, str]
) -> list[Finding]:
    """A document that came, and now stands first for questions that are not about it."""
    if len(new.rows) < _FEWEST:
        return []

    def first(scores: Scores) -> dict[str, str]:
        return {row.id: row.passages[0].path for row in scores.rows if row.passages and not row.repetition}

    before, now = first(old), first(new)
    taken = Counter(
        path
        for key, path in now.items()
        if before.get(key, path) != path and key in asked and asked[key].document != path
    )
    suspects = [(count, path) for path, count in taken.items() if path in changed_by]
    count, path = max(suspects, default=(0, ""))
    share = count / len(now)
    said = "no changed document took the first place of other questions"
    if count:
        said = f"{path!r} now stands first for {count} of {len(now)} golden questions that are not about it"
    return [
        Finding(
            monitor="retrieval",
            check="capture",
            level="page" if share >= _GRAVE_CAPTURE else "warn" if share >= _CAPTURE else "ok",
            said=said,
            effect=round(share, 6),
            floor=_CAPTURE,
            page_floor=_GRAVE_CAPTURE,
            n=len(now),
        )
    ]
