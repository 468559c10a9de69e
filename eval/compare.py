"""Which golden questions two releases answer differently, and why."""

from typing import Any

from eval.evaluations import Evaluations
from eval.golden import load_golden
from eval.scores import Row
from knowledge_base.difference import diff_documents, diff_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.release import DocumentChanges, changed_parts

_RANKING = ("chunker", "embedder", "retrieval")
_WRITING = ("prompt", "model")


def compare_releases(knowledge_base: KnowledgeBase, left: str, right: str) -> dict[str, Any]:
    """What changed from ref `left` to ref `right`: documents, chunks, settings, golden answers.

    Raises:
        NotFoundError: There is no such ref.
        DamagedError: One of the two cannot be opened.
    """
    found = diff_releases(knowledge_base, left, right)
    return {
        "documents": found.documents.as_json(),
        "chunks": found.chunks,
        "settings": found.settings,
        "golden": compare_answers(knowledge_base, left, right),
    }


def compare_answers(knowledge_base: KnowledgeBase, left: str, right: str) -> dict[str, Any]:
    """The golden answers of two refs held side by side, from their last evaluations.

    Returns `{"compared", "changed": [{"id", "question", "old", "new", "scores", "why"}], "not_evaluated"}`;
    `why` names the documents and the settings that made the difference.

    Raises:
        NotFoundError: There is no such ref.
    """
    before, after = knowledge_base.release(left), knowledge_base.release(right)
    kept = Evaluations(knowledge_base.repository)
    old = {row.id: row for row in kept.rows(before.answers_digest) if not row.repetition}
    new = {row.id: row for row in kept.rows(after.answers_digest) if not row.repetition}
    missing = [ref for ref, rows in ((left, old), (right, new)) if not rows]
    if not old and not new and not any(load_golden(knowledge_base.repository, ref) for ref in (left, right)):
        missing = []  # an evaluation would ask nothing
    both = sorted(old.keys() & new.keys()) if not missing else []
    documents = diff_documents(knowledge_base.repository, before.commit, after.commit) if both else None
    parts = changed_parts(before, after, corpus=bool(documents)) if both else []
    changed = [
        _change(old[key], new[key], documents or DocumentChanges(), parts)
        for key in both
        if _said(old[key]) != _said(new[key]) or _values(old[key]) != _values(new[key])
    ]
    return {"compared": len(both), "changed": changed, "not_evaluated": missing}


def _change(old: Row, new: Row, documents: DocumentChanges, parts: list[str]) -> dict[str, Any]:
    before, after = _values(old), _values(new)
    return {
        "id": new.id,
        "question": new.answer.question if new.answer else "",
        "old": _said(old),
        "new": _said(new),
        "scores": {
            name: {"from": before.get(name), "to": after.get(name)}
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        },
        "why": _why(old, new, documents, parts),
    }


def _why(old: Row, new: Row, documents: DocumentChanges, parts: list[str]) -> list[str]:
    """The documents and settings by which an answer became another."""
    if old.key == new.key:
        return ["the judge or the golden question"]
    given, found = {p.path for p in old.passages}, {p.path for p in new.passages}
    reasons = [f"{path} was changed" for path in documents.changed if path in given | found]
    reasons += [f"{path} was deleted" for path in documents.deleted if path in given]
    reasons += [f"{path} was added" for path in documents.added if path in found]
    reasons += [f"{a} became {b}" for a, b in documents.renamed if a in given or b in found]
    if old.passages != new.passages:
        reasons += [f"other {part}" for part in parts if part in _RANKING]
        if not reasons:
            reasons = ["other documents changed how passages rank"]
    reasons += [f"other {part}" for part in parts if part in _WRITING]
    return reasons or ["the model said something else"]


def _said(row: Row) -> dict[str, Any]:
    if row.answer is None:
        return {"answer": "", "abstained": True, "cited": []}
    cited = [citation.path for citation in row.answer.citations]
    return {"answer": row.answer.answer, "abstained": row.answer.abstained, "cited": cited}


def _values(row: Row) -> dict[str, float | None]:
    return {score.metric: score.value for score in row.scores}
