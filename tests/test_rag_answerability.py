"""The trained score behind quoting and abstaining."""

import hashlib
import json
import math
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.answerability import FEATURES, Candidate, answering, features, quoting

PASSAGE = (
    "The castle of Arden was built in 1204 by Duke Otto. It was never destroyed in the war. "
    "The old bridge was finished in 1310."
)
SENTENCES = [s if s.endswith(".") else f"{s}." for s in PASSAGE.split(". ")]


def candidates(*overlaps: float) -> list[Candidate]:
    return [
        Candidate(text, 0, overlap, overlap, 1.0) for text, overlap in zip(SENTENCES, overlaps, strict=False)
    ]


def row(question: str, sentence: int = 0) -> dict[str, float]:
    found = features(question, candidates(0.8, 0.6, 0.4), [PASSAGE])
    return dict(zip(FEATURES, found[sentence].tolist(), strict=True))


def test_the_sentence_that_answers_is_the_surest() -> None:
    scores = answering("Who built the castle of Arden?", candidates(0.9, 0.3, 0.1), [PASSAGE])
    assert scores.index(max(scores)) == 0


@pytest.mark.parametrize(
    "changed",
    ["Who did not build the castle of Arden?", "Who built the castle of Lindow?"],
    ids=["negated", "other name"],
)
def test_a_question_turned_into_another_is_less_answerable(changed: str) -> None:
    asked = "Who built the castle of Arden?"
    before, after = (max(answering(q, candidates(0.9, 0.3, 0.1), [PASSAGE])) for q in (asked, changed))
    assert after < before


def test_a_foreign_question_is_hardly_answerable() -> None:
    found = candidates(0.05, 0.02, 0.0)
    assert max(answering("Which vitamins do oranges contain?", found, [PASSAGE])) < 0.25


def test_names_and_numbers_that_stand_nowhere_are_counted() -> None:
    counted = row("Did Duke Rupert build the castle in 1399?")
    assert (counted["names_missing_here"], counted["names_missing_in_passage"]) == (1, 1)
    assert counted["numbers_missing_in_passage"] == 1
    assert row("Did Duke Otto build the castle in 1204?")["names_missing_in_passage"] == 0


def test_opposites_and_negations_are_seen() -> None:
    assert row("Which is the new bridge?", sentence=2)["opposites"] == 1
    assert row("Which is the old bridge?", sentence=2)["opposites"] == 0
    assert row("What was not destroyed in the war?", sentence=1)["negation_differs"] == 0
    assert row("What was destroyed in the war?", sentence=1)["negation_differs"] == 1


@pytest.mark.parametrize(
    ("question", "sentence", "right"),
    [
        ("When was the castle built?", 0, 1),
        ("When was the castle spared?", 1, 0),
        ("Who built the castle of Arden?", 0, 1),
        ("Who destroyed it in the war?", 1, 0),
    ],
)
def test_an_answer_of_the_kind_asked_for_must_be_new(question: str, sentence: int, right: int) -> None:
    assert row(question, sentence)["right_kind"] == right


def test_without_sentences_there_are_no_scores() -> None:
    assert answering("Who?", [], []) == []


@given(
    question=st.text(min_size=1, max_size=80),
    texts=st.lists(st.text(max_size=80), min_size=1, max_size=8),
    overlap=st.floats(0, 1),
)
def test_any_text_gets_scores_between_0_and_1(question: str, texts: list[str], overlap: float) -> None:
    found = [Candidate(text, 0, overlap, 0.5, 1.0) for text in texts]
    scores = answering(question, found, [" ".join(texts)])
    assert len(scores) == len(texts)
    assert all(0 <= score <= 1 and math.isfinite(score) for score in scores)
    assert np.isfinite(features(question, found, [" ".join(texts)])).all()


def test_the_trees_that_are_shipped_are_those_that_were_measured() -> None:
    models = resources.files("rag") / "models"
    facts = json.loads((models / "answerability.json").read_text())
    for kind in ("sentences", "question"):
        trees = (models / f"answerability_{kind}.onnx").read_bytes()
        assert facts[kind] == hashlib.sha256(trees).hexdigest()


def test_the_rule_that_quotes_is_named_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    known = quoting(reads=False)
    assert quoting(reads=True) != known
    monkeypatch.setattr("rag.answer_reader.facts", lambda: {"adapter": "another"})
    assert quoting(reads=False) == known
    monkeypatch.setattr("rag.answerability._facts", lambda: {"trees": 1.0})
    assert quoting(reads=False) != known
