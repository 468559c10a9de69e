"""The answer log on real databases: answers, feedback, what was made by an earlier version."""

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from knowledge_base.errors import NotFoundError, UsageError
from knowledge_base.home import KnowledgeBase
from rag.answer import Answer
from rag.answer_log import AnswerLog, Feedback
from rag.engine import Engine


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'answers.sqlite'}"


@pytest.fixture
def log(url: str) -> Iterator[AnswerLog]:
    opened = AnswerLog(url)
    yield opened
    opened.close()


@pytest.fixture
def answer(knowledge_base: KnowledgeBase, log: AnswerLog) -> Answer:
    given = Engine.open(knowledge_base).ask("What is the default port of the server?")
    log.append(given)
    return given


def test_feedback_is_kept_with_its_answer(log: AnswerLog, answer: Answer) -> None:
    said = [
        Feedback(rating="down", comment="Wrong port.", correction="It is 8421.", citation=1),
        Feedback(rating="up"),
    ]
    for one in said:
        log.rate(answer.id, one)
    assert log.feedback(10) == [(answer, said[1]), (answer, said[0])]
    assert log.feedback(1) == [(answer, said[1])]
    assert log.answer(answer.id) == answer


def test_feedback_on_nothing_is_refused(log: AnswerLog, answer: Answer) -> None:
    with pytest.raises(NotFoundError):
        log.rate("nothing", Feedback(rating="up"))
    with pytest.raises(UsageError, match="citation"):
        log.rate(answer.id, Feedback(rating="up", citation=9))
    assert log.feedback(10) == []


def test_what_is_forgotten_takes_its_feedback_with_it(log: AnswerLog, answer: Answer) -> None:
    log.rate(answer.id, Feedback(rating="up"))
    assert log.forget(datetime.now(UTC) - timedelta(days=1)) == 0
    assert log.forget(datetime.now(UTC) + timedelta(days=1)) == 1
    assert log.recent(5) == [] and log.feedback(5) == []


def test_a_database_of_before_feedback_is_brought_up_to_date(
    url: str, log: AnswerLog, answer: Answer, tmp_path: Path
) -> None:
    log.close()
    with sqlite3.connect(tmp_path / "answers.sqlite") as old:
        old.execute("drop table feedback")
        old.execute("drop table migrations")
    old.close()
    again = AnswerLog(url)
    assert again.recent(5) == [answer]
    again.rate(answer.id, Feedback(rating="up"))
    assert len(again.feedback(5)) == 1
    again.close()


def test_processes_that_start_together_all_find_a_database(url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            AnswerLog(url).close()
        except Exception as error:  # noqa: BLE001 - a thread's error must reach the test
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
