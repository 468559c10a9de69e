"""The answer log on real databases: answers, feedback, what was made by an earlier version."""

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import NotFoundError, StorageError
from knowledge_base.home import KnowledgeBase
from rag.answer import Answer
from rag.answer_export import SCHEMA, export_parquet
from rag.answer_log import AnswerLog, Feedback
from rag.engine import Engine
from tests.conftest import DOCUMENTS
from tests.postgres import Cluster, missing

# What the first version of the log made, in its own words; `record` was as it is today.
OLDEST = """
create table answers (id varchar(32) not null primary key, asked_at {moment} not null,
    ref varchar(200) not null, release_commit varchar(64) not null, abstained boolean not null,
    record text not null);
create index ix_answers_asked_at on answers (asked_at);
create index ix_answers_release_commit on answers (release_commit);
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    made = Cluster()
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'answers.sqlite'}"
    made: Cluster = request.getfixturevalue("cluster")
    return made.new_database()


@pytest.fixture
def log(url: str) -> Iterator[AnswerLog]:
    opened = AnswerLog(url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Answer:
    """A real answer, to log."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "install.md").write_text(DOCUMENTS["install.md"])
    knowledge_base = KnowledgeBase.create(folder / "kb", models)
    ingest(knowledge_base, list_sources([str(folder / "install.md")]), IngestOptions())
    with closing(Engine.open(knowledge_base)) as engine:
        return engine.ask("What is the default port of the server?")


@pytest.fixture
def answer(given: Answer, log: AnswerLog) -> Answer:
    """The same, logged."""
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
    with pytest.raises(NotFoundError, match="citation"):
        log.rate(answer.id, Feedback(rating="up", citation=9))
    assert log.feedback(10) == []


def test_what_is_forgotten_takes_its_feedback_with_it(log: AnswerLog, answer: Answer) -> None:
    log.rate(answer.id, Feedback(rating="up"))
    assert log.forget(datetime.now(UTC) - timedelta(days=1)) == 0
    assert log.forget(datetime.now(UTC) + timedelta(days=1)) == 1
    assert log.recent(5) == [] and log.feedback(5) == []


def test_the_oldest_database_is_brought_up_to_date(url: str, answer: Answer, tmp_path: Path) -> None:
    old = _oldest(url, answer, tmp_path)
    again = AnswerLog(old, "guides")
    assert again.recent(5) == [answer]
    again.rate(answer.id, Feedback(rating="up"))
    assert len(again.feedback(5)) == 1
    again.append(answer.model_copy(update={"id": "later"}))
    again.close()
    once_more = AnswerLog(old, "guides")
    assert {kept.id for kept in once_more.recent(5)} == {answer.id, "later"}
    once_more.close()


def _oldest(url: str, answer: Answer, tmp_path: Path) -> str:
    """A database as the first version left it, with one answer."""
    postgres = url.startswith("postgresql")
    statements = OLDEST.format(moment="timestamp with time zone" if postgres else "datetime").split(";")
    row = (
        "2026-01-02 03:04:05",
        "main",
        answer.release.commit,
        answer.abstained,
        json.dumps(answer.as_json()),
    )
    insert = "insert into answers values (?, ?, ?, ?, ?, ?)"
    if postgres:
        import psycopg

        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            for table in ("feedback", "answers", "migrations"):
                connection.execute(f"drop table if exists {table}")
            for statement in filter(str.strip, statements):
                connection.execute(statement)
            connection.execute(insert.replace("?", "%s"), (answer.id, *row))
        connection.close()
        return url
    file = sqlite3.connect(tmp_path / "oldest.sqlite")
    for statement in statements:
        file.execute(statement)
    file.execute(insert, (answer.id, *row))
    file.commit()
    file.close()
    return f"sqlite:///{tmp_path / 'oldest.sqlite'}"


def test_knowledge_bases_that_share_a_database_see_their_own_answers(
    url: str, log: AnswerLog, answer: Answer
) -> None:
    other = AnswerLog(url, "other")
    other.append(answer.model_copy(update={"id": "theirs"}))
    other.rate("theirs", Feedback(rating="down"))
    assert [kept.id for kept in log.recent(5)] == [answer.id] and log.feedback(5) == []
    assert [entry.answer.id for entry in log.entries()] == [answer.id]
    with pytest.raises(NotFoundError):
        log.answer("theirs")
    with pytest.raises(NotFoundError):
        log.rate("theirs", Feedback(rating="up"))
    assert log.forget(datetime.now(UTC) + timedelta(days=1)) == 1
    assert [kept.id for kept in other.recent(5)] == ["theirs"]
    other.close()


def test_answers_of_sixteen_threads_are_all_kept(log: AnswerLog, answer: Answer) -> None:
    failures: list[Exception] = []

    def append(thread: int) -> None:
        try:
            for number in range(25):
                log.append(answer.model_copy(update={"id": f"{thread}-{number}"}))
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({kept.id for kept in log.recent(1000)}) == 16 * 25 + 1


def test_the_export_holds_every_answer_with_what_was_said(
    log: AnswerLog, answer: Answer, tmp_path: Path
) -> None:
    log.rate(answer.id, Feedback(rating="down", correction="It is 8421."))
    for _ in range(1100):
        log.append(answer.model_copy(update={"id": uuid.uuid4().hex}))
    assert export_parquet(log, tmp_path / "answers.parquet") == 1101
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.schema.equals(SCHEMA) and table.num_rows == 1101
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["id"], first["cited"]) == (answer.id, ["install.md"])
    assert [said["correction"] for said in first["feedback"]] == ["It is 8421."]
    assert Answer.model_validate_json(first["record"]) == answer
    assert abs(first["asked_at"] - datetime.now(UTC)) < timedelta(minutes=10)
    assert [file.name for file in tmp_path.glob("*parquet*")] == ["answers.parquet"]


def test_an_export_that_fails_leaves_the_last_one(log: AnswerLog, answer: Answer, tmp_path: Path) -> None:
    kept = tmp_path / "answers.parquet"
    export_parquet(log, kept)
    before = kept.read_bytes()
    broken = AnswerLog(f"sqlite:///{tmp_path / 'broken.sqlite'}")
    broken.append(answer)
    with sqlite3.connect(tmp_path / "broken.sqlite") as file:
        file.execute("update answers set record = '{}'")
    file.close()
    with pytest.raises(StorageError):
        export_parquet(broken, kept)
    broken.close()
    assert kept.read_bytes() == before and not list(tmp_path.glob(".*unfinished"))


def test_a_database_server_that_was_restarted_is_used_again(cluster: Cluster, given: Answer) -> None:
    log = AnswerLog(cluster.new_database())
    log.append(given)
    cluster.stop()
    with pytest.raises(StorageError, match="answer log"):
        log.append(given.model_copy(update={"id": "lost"}))
    cluster.start()
    log.append(given.model_copy(update={"id": "kept"}))
    assert {kept.id for kept in log.recent(5)} == {given.id, "kept"}
    log.close()


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
