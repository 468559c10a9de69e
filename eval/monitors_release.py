"""Monitors of what is served: what changed, the documents, the store they lie in. Nothing here is sampled."""

from collections import Counter
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from eval.case import release_before
from eval.evaluate import evaluate_release
from eval.findings import Chart, Finding, Section, Table, table
from eval.night_inputs import Night
from knowledge_base.difference import diff_documents, diff_releases
from knowledge_base.documents import Chunk
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import NO_GATE
from knowledge_base.release import DOCUMENTS_PREFIX, DocumentChanges, changed_parts
from knowledge_base.retention import Retention, gc
from knowledge_base.snapshot import Snapshot

_SHOWN = 50
_NEAR = 0.98
"""Cosine from which on two different texts say the same."""
_SAMPLED = 1_000
_LOSS, _GRAVE_LOSS = 0.2, 0.5
"""Share of the documents that may vanish in one night before somebody is told, or woken."""
_TWINS = 0.3
"""Share of new passages that may be near copies of others before somebody is told."""
_AGES = ((1, "today"), (7, "7 days"), (30, "30 days"), (90, "90 days"), (10**6, "older"))
_LOG = 200


def changes(night: Night) -> Section:
    """What changed since the last report, release by release, and whether the gate let it through."""
    kb, last, served = night.knowledge_base, night.last_release, night.served.commit
    findings, rows = [], []
    if last != served:
        found = diff_releases(kb, last, served)
        rows = [("setting", f"{key}: {c['from']} → {c['to']}") for key, c in found.settings.items()]
        corpus = bool(found.documents)
        parts = changed_parts(kb.release(last), night.served, corpus=corpus)
        said = f"since the last report: {', '.join(parts) or 'nothing that decides an answer'}"
        rows += [("part", part) for part in parts]
    else:
        said = "nothing since the last report" if night.history else "this is the first report here"
    findings.append(Finding(monitor="changes", check="parts", said=said))
    if told := _ungated(night):
        findings.append(Finding(monitor="changes", check="gate", level="warn", said=told))
    return Section(
        monitor="changes",
        title="What changed",
        findings=tuple(findings),
        tables=(table("Changes since the last report", ("what", ""), rows),) if rows else (),
    )


def _ungated(night: Night) -> str:
    """What to say of a release that was published past the gate."""
    kb, release = night.knowledge_base, night.served.commit
    if kb.repository.get_commit(release).metadata.get("verdict") != NO_GATE:
        return ""
    if night.reference.until is not None and night.reference.release == release:
        return ""  # somebody has said since then, with a reason, that it is the normal
    told = f"{release[:12]} was published without the gate ({NO_GATE})"
    before = release_before(kb, release)
    if not before or not night.verdict.golden:
        return f"{told}, and there is nothing to judge it by"
    verdict = night.verdict
    if verdict.baseline != before:
        verdict = evaluate_release(kb, release, before)
    compared = f"{told}; against {before[:12]}, the release before, it is a {verdict.status}"
    return f"{compared}: {'; '.join(verdict.reasons)}" if verdict.reasons else compared


def corpus(night: Night) -> Section:
    """The documents and chunks against last night's: all of them, so no test and no p-value."""
    kb, last = night.knowledge_base, night.last_release
    found = diff_releases(kb, last, night.served.commit)
    new = night.engine.snapshot
    old = kb.snapshot(last)
    before = len(old.paths)
    added = _added(old, new)
    values = {
        "documents": float(len(new.paths)),
        "chunks": float(new.chunk_count),
        "documents_lost_share": len(found.documents.deleted) / before if before else 0.0,
        "duplicate_chunk_share": 1 - len(night.passages) / new.chunk_count if new.chunk_count else 0.0,
    }
    values |= _weigh(added, night) | _novelty(old, added, night)
    old.close()
    findings = _judge_documents(found.documents, values, before)
    if added:
        findings += _judge_added(values, len(added))
    ages = _ages(night)
    return Section(
        monitor="corpus",
        title="Corpus",
        findings=tuple(findings),
        tables=(
            table("Figures", ("figure", "value"), sorted(values.items())),
            _list_documents(found.documents),
        ),
        charts=(
            Chart(
                title="Documents by the age of their last change",
                kind="bars",
                labels=tuple(ages),
                series={"documents": tuple(map(float, ages.values()))},
            ),
        ),
        values=values,
    )


def _judge_documents(changes: DocumentChanges, values: dict[str, float], before: int) -> list[Finding]:
    lost = values["documents_lost_share"]
    counted = ", ".join(f"{count} {verb}" for verb, count in changes.counts().items())
    return [
        Finding(
            monitor="corpus",
            check="documents",
            said=f"{values['documents']:.0f} documents, {values['chunks']:.0f} chunks; {counted}",
            n=int(values["documents"]),
            reference_n=before,
        ),
        Finding(
            monitor="corpus",
            check="loss",
            level="page" if lost >= _GRAVE_LOSS else "warn" if lost >= _LOSS else "ok",
            said=f"{lost:.0%} of the documents are gone",
            effect=lost,
            floor=_LOSS,
            page_floor=_GRAVE_LOSS,
        ),
    ]


def _list_documents(changes: DocumentChanges) -> Table:
    rows = [
        (verb, f"{row['from']} → {row['to']}" if isinstance(row, dict) else row)
        for verb, paths in changes.as_json().items()
        for row in paths[:_SHOWN]
    ]
    return table(f"Documents that changed (up to {_SHOWN} of a kind)", ("change", "document"), rows)


def _judge_added(values: dict[str, float], number: int) -> list[Finding]:
    empty, long = values["added_empty_chunks"], values["added_oversized_chunks"]
    twins = values["added_near_duplicate_share"]
    return [
        Finding(
            monitor="corpus",
            check="chunks",
            level="warn" if empty or long else "ok",
            said=f"of {number} new passages {empty:g} hold no word and {long:g} exceed the embedder's length",
            effect=empty + long,
            n=number,
        ),
        Finding(
            monitor="corpus",
            check="duplicates",
            level="warn" if twins >= _TWINS and number >= 20 else "ok",
            said=f"{twins:.0%} of the new passages are near copies of another one",
            effect=twins,
            floor=_TWINS,
            n=number,
        ),
    ]


def _added(old: Snapshot, new: Snapshot) -> list[Chunk]:
    """One chunk of every text that the older release does not hold."""
    moved = {path for path, _ in new.placed() - old.placed()}
    known = {chunk.text_hash for chunk in old.chunks_in({path for path, _ in old.placed() - new.placed()})}
    elsewhere = {chunk.text_hash: chunk for chunk in new.chunks_in(moved)}
    return [chunk for digest, chunk in elsewhere.items() if digest not in known]


def _weigh(added: list[Chunk], night: Night) -> dict[str, float]:
    embedder = night.engine.embedder
    sizes = [len(embedder.tokenize(chunk.text)) for chunk in added]
    return {
        "added_passages": float(len(added)),
        "added_empty_chunks": float(sum(not any(map(str.isalnum, chunk.text)) for chunk in added)),
        "added_oversized_chunks": float(sum(size > embedder.max_tokens - 2 for size in sizes)),
    }


def _novelty(old: Snapshot, added: list[Chunk], night: Night) -> dict[str, float]:
    """How far new passages are from the older release's, in its own measure, and how many are near copies.

    A passage is novel when its nearest older neighbour is farther than 95 % of the older passages are
    from theirs.
    """
    same = old.release.manifest.embedder == night.served.manifest.embedder
    live = np.flatnonzero(old.live)
    if not added or not same or len(live) < 2:
        return {"added_near_duplicate_share": 0.0}
    stored = night.engine.snapshot.vectors_by_hash({chunk.text_hash for chunk in added})
    vectors = np.array([stored[chunk.text_hash] for chunk in added], np.float32)
    before = old.passage_vectors(live)
    drawn = np.random.default_rng(night.seed("novelty")).permutation(len(live))[:_SAMPLED]
    inside = _nearest(before[drawn], before, own=drawn)
    to_old = _nearest(vectors, before)
    to_new = _nearest(vectors, vectors, own=np.arange(len(vectors))) if len(vectors) > 1 else to_old
    return {
        "added_novel_share": float((to_old < np.quantile(inside, 0.05)).mean()),
        "added_near_duplicate_share": float((np.maximum(to_old, to_new) >= _NEAR).mean()),
        "added_mean_nearest_cosine": float(to_old.mean()),
    }


def _nearest(
    vectors: NDArray[np.float32], others: NDArray[np.float32], own: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Cosine of each vector's nearest among `others`; `own` is its own row there, which does not count."""
    best = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 512):
        part = vectors[start : start + 512] @ others.T
        if own is not None:
            part[np.arange(len(part)), own[start : start + 512]] = -1
        best[start : start + 512] = part.max(1)
    return best


def _ages(night: Night) -> dict[str, int]:
    """How many documents last changed how long ago, by the commits of the last 200 releases."""
    repository = night.knowledge_base.repository
    left = {f"{DOCUMENTS_PREFIX}{path}" for path in night.engine.snapshot.paths}
    found: Counter[str] = Counter()
    for commit in repository.log(night.served.commit, first_parent=True, amount=_LOG):
        if not commit.parents or not left:
            break
        made = datetime.fromtimestamp(commit.creation_date, UTC).date()
        label = next(name for limit, name in _AGES if (night.day - made).days < limit)
        changed = {c.path for c in repository.diff(commit.parents[0], commit.id, type="two_dot")}
        found[label] += len(left & changed)
        left -= changed
    found["older"] += len(left)
    return {name: found[name] for _, name in _AGES}


def documents_changed_by(night: Night, since: str) -> dict[str, str]:
    """The newest release that changed each document after `since`, by path."""
    repository = night.knowledge_base.repository
    found: dict[str, str] = {}
    for commit in repository.log(night.served.commit, first_parent=True, amount=_LOG):
        if commit.id == since or not commit.parents:
            break
        changed = diff_documents(repository, commit.parents[0], commit.id)
        paths = (*changed.added, *changed.changed, *changed.gone, *(new for _, new in changed.renamed))
        for path in paths:
            found.setdefault(path, commit.id)
    return found


def housekeeping(night: Night) -> Section:
    """Bytes that could be freed, and whether everything stored is still what it was."""
    free = night.figure_of_today("reclaimable_bytes")
    if free is None:
        free = float(gc(night.knowledge_base, Retention(), dry_run=True).bytes)
    problems = list(fsck(night.knowledge_base))
    findings = [
        Finding(
            monitor="housekeeping",
            check="fsck",
            level="page" if problems else "ok",
            said=f"fsck found {len(problems)} problem(s): {problems[0].where}: {problems[0].what}"
            if problems
            else "everything stored is what it was",
            effect=float(len(problems)),
        ),
        Finding(
            monitor="housekeeping",
            check="space",
            said=f"`rag gc` would free {free / 1e6:.1f} MB",
            effect=free,
        ),
    ]
    return Section(
        monitor="housekeeping",
        title="Housekeeping",
        findings=tuple(findings),
        values={"reclaimable_bytes": free, "fsck_problems": float(len(problems))},
    )
