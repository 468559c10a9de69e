"""Personal data: found by form and checksum, taken out of the log before anything is written."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.configuration import LogSettings
from knowledge_base.home import KnowledgeBase
from rag.answer import Answer
from rag.answer_log import AnswerLog, Feedback
from rag.engine import Engine
from rag.privacy import find_personal_data, redact, redact_record

MAIL, CARD, IBAN = "Ada.Holm+x@mail.example.org", "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (f"Write to {MAIL}.", "Write to [e-mail]."),
        (f"Charge {CARD} now.", "Charge [card] now."),
        (f"Pay {IBAN} TODAY.", "Pay [IBAN] TODAY."),
        ("pay gb82west12345698765432", "pay [IBAN]"),
        ("SSN 460-89-9847", "SSN [SSN]"),
        ("From 106.31.73.20 and 2a00:1450:4001:81b::200e", "From [IP address] and [IP address]"),
        ("Ring +46 (0)8 928 571 38 or (602) 272-9781 x12.", "Ring [phone] or [phone]."),
        ("Phone: 21 284 698 2548, tel. (99) 645-791", "Phone: [phone], tel. [phone]"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(said: str, kept: str) -> None:
    assert redact(said) == kept


@pytest.mark.parametrize(
    "said",
    [
        "Card 4111 1111 1111 1112 fails its check, and so does GB82 WEST 1234 5698 7654 33.",
        "Version 1.14.16 of 2026-11-21 10:30:00 listens on 127.0.0.1:8420, 10.0.0.7 and ::1.",
        "SSNs never begin with 666-12-3456 or 900-12-3456.",
        "Build 20261121 has 600 requests per minute, 330 000 in all; see order-processor@1.0.0.",
        "The commit is 9bf00c365072 and the id 4f1e2d3c4b5a69788796a5b4c3d2e1f0.",
    ],
)
def test_other_numbers_stay(said: str) -> None:
    assert redact(said) == said


@given(st.text(alphabet="0123456789 +-().@:aGB", max_size=60))
def test_finds_never_overlap_and_nothing_else_changes(text: str) -> None:
    finds = find_personal_data(text)
    assert all(a.end <= b.start for a, b in zip(finds, finds[1:], strict=False))
    outside, end = [], 0
    for find in finds:
        outside += [text[end : find.start], f"[{find.kind}]"]
        end = find.end
    assert redact(text) == "".join(outside) + text[end:]


def test_ids_hashes_and_spans_of_a_record_stay() -> None:
    record = {
        "id": MAIL,
        "queries": [MAIL],
        "citations": [{"quote": MAIL, "sha256": CARD, "start": 4}],
        "cost": 0.5,
    }
    assert redact_record(record) == {
        "id": MAIL,
        "queries": ["[e-mail]"],
        "citations": [{"quote": "[e-mail]", "sha256": CARD, "start": 4}],
        "cost": 0.5,
    }


@pytest.mark.skipif("PLUMBLINE_DATA" not in os.environ, reason="PLUMBLINE_DATA is not set")
def test_marked_texts_are_redacted_as_well_as_the_documentation_says() -> None:
    from benchmarks.common import data_folder, read_jsonl
    from benchmarks.privacy import KINDS, score

    rows = score(read_jsonl(data_folder() / "pii_presidio" / "synth_dataset_v2.jsonl"))
    for row in rows[: len(KINDS)]:
        assert row["precision"] >= 0.98
        assert row["recall"] >= (0.8 if row["kind"] == "phone" else 0.99)


# -- the answer log ----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def answer(knowledge_base: KnowledgeBase) -> Iterator[Answer]:
    engine = Engine.open(knowledge_base)
    yield engine.ask(f"What is the default port of the server? Tell {MAIL}")
    engine.close()


def bytes_on_disk(file: Path) -> bytes:
    return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))


def test_the_log_holds_no_personal_data(file: Path, answer: Answer) -> None:
    log = AnswerLog(f"sqlite:///{file}")
    log.append(answer)
    log.rate(answer.id, Feedback(rating="down", comment=f"Ask {MAIL}.", correction=f"Charge {CARD}."))
    kept = log.answer(answer.id)
    assert kept.question == "What is the default port of the server? Tell [e-mail]"
    assert (kept.citations, kept.answer) == (answer.citations, answer.answer)
    assert log.feedback(1)[0][1].comment == "Ask [e-mail]."
    assert MAIL.encode() not in bytes_on_disk(file) and CARD.encode() not in bytes_on_disk(file)
    log.close()


def test_redaction_can_be_switched_off(file: Path, answer: Answer) -> None:
    log = AnswerLog(f"sqlite:///{file}", settings=LogSettings(redact=False))
    log.append(answer)
    assert log.answer(answer.id) == answer
    log.close()


def test_what_mentions_somebody_is_gone_from_the_disk(file: Path, answer: Answer) -> None:
    log = AnswerLog(f"sqlite:///{file}", settings=LogSettings(redact=False))
    log.append(answer)
    log.append(answer.model_copy(update={"id": "other", "question": "What else?", "queries": ()}))
    log.rate("other", Feedback(rating="up", comment='Said "Ada Holm".'))
    assert log.forget_mentioning("100%") == 0
    assert log.forget_mentioning(MAIL.upper()) == 1
    assert MAIL.encode() not in bytes_on_disk(file)
    assert log.forget_mentioning('"ada holm"') == 1
    assert b"Ada Holm" not in bytes_on_disk(file) and log.recent(9) == []
    log.close()


def test_answers_expire_when_others_are_logged(file: Path, answer: Answer) -> None:
    import sqlite3

    log = AnswerLog(f"sqlite:///{file}", settings=LogSettings(keep_days=30))
    log.append(answer)
    log.close()
    with sqlite3.connect(file) as database:
        database.execute("update answers set asked_at = ?", (datetime.now(UTC) - timedelta(days=31),))
    database.close()
    log = AnswerLog(f"sqlite:///{file}", settings=LogSettings(keep_days=30))
    log.append(answer.model_copy(update={"id": "new"}))
    assert [kept.id for kept in log.recent(9)] == ["new"]
    log.close()
