"""Rehearsals: what is put in on a day is what that day's report finds, and the original stays as it was."""

import random
from datetime import date
from pathlib import Path

import pytest

from eval.question_changes import CHANGES
from eval.simulate import Drift, Rehearsal, copy_of, rehearse, usual_questions
from knowledge_base.errors import UsageError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog


def test_a_rehearsal_names_what_was_put_in_and_leaves_the_original_alone(
    knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    before = knowledge_base.repository.resolve("main")
    copy = copy_of(knowledge_base, tmp_path / "copy")
    log = AnswerLog(f"sqlite:///{tmp_path / 'log.sqlite'}")
    rehearsal = Rehearsal(copy, log, usual_questions(copy), date(2026, 11, 1))
    drifts = [Drift.parse("2:topic:0.6"), Drift.parse("3:embedder")]
    reports = rehearse(rehearsal, 4, drifts, tmp_path / "out")
    log.close()
    # The fixture's release was published without a gate, of which every night warns.
    assert [report.verdict for report in reports] == ["WARN", "PAGE", "PAGE", "WARN"]
    assert reports[1].causes[0] == "queries" and reports[2].causes[0] == "embedder"
    assert knowledge_base.repository.resolve("main") == before
    assert (tmp_path / "out" / "day-04" / "report.html").exists()


def test_a_prompt_is_not_rehearsed_where_none_is_read(knowledge_base: KnowledgeBase, tmp_path: Path) -> None:
    log = AnswerLog(f"sqlite:///{tmp_path / 'log.sqlite'}")
    rehearsal = Rehearsal(knowledge_base, log, ["Which port?"], date(2026, 11, 1))
    with pytest.raises(UsageError, match="reads no prompt"):
        rehearsal.spoil(Drift(1, "prompt"))
    log.close()


@pytest.mark.parametrize("text", ["topic", "0x:topic", "3:weather", "3:topic:2", "3:topic:"])
def test_a_drift_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Drift.parse(text)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_questions_differ_and_are_repeatable(name: str) -> None:
    text = "What is the default port of the server?"
    changed = CHANGES[name](text, random.Random(1))
    assert changed != text and changed == CHANGES[name](text, random.Random(1))
