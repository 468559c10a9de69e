"""Questions that point back, and several in one, without a language model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.home import KnowledgeBase
from rag.answer import Turn
from rag.conversation import asked_apart, split_question
from rag.engine import Engine


def test_a_follow_up_without_a_model_is_searched_with_the_question_before(
    knowledge_base: KnowledgeBase,
) -> None:
    engine = Engine.open(knowledge_base)
    history = [Turn(question="How many requests may a key send?", answer="600.")]
    answer = engine.ask("What happens above that?", history=history)
    assert answer.queries == ("How many requests may a key send? What happens above that?",)
    assert any(citation.path == "api/limits.md" for citation in answer.citations)
    assert engine.ask("Who founded the company in Gothenburg?", history=history).queries == (
        "Who founded the company in Gothenburg?",
    )


def test_two_questions_in_one_are_both_answered(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    answer = engine.ask("What is the default port of the server, and who founded the company?")
    assert {citation.path for citation in answer.citations} == {"install.md", "history.md"}
    assert not answer.unanswered
    assert answer.queries[1:] == ("What is the default port of the server", "who founded the company?")
    assert answer.answer.count("[1]") == answer.answer.count("[2]") == 1


def test_the_half_of_a_question_that_has_no_answer_is_named(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    answer = engine.ask("Who founded the company and how far away is the moon?")
    assert {citation.path for citation in answer.citations} == {"history.md"}
    assert answer.unanswered == ("how far away is the moon?",)
    nothing = engine.ask("How far away is the moon and how do whales sleep?")
    assert nothing.abstained and not nothing.unanswered


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("What is the port, and how do I change it?", ("What is the port", "how do I change it?")),
        ("What is the port? Is it open?", ("What is the port", "Is it open?")),
        ("Is it free and can I cancel it?", ("Is it free", "can I cancel it?")),
        ("What is the limit and in which file is it set?", ("What is the limit", "in which file is it set?")),
        ("When and where was it founded?", None),
        ("The Rhine forms the border between Austria and what other country?", None),
        ("How many people visited and were rewarded?", None),
        ("What are the names of kings and queens who ruled England?", None),
        ("Rock and what matters", None),
        ("What is the difference between what is billed and what is used?", None),
        (
            "What is the border between A and B and how long is it?",
            ("What is the border between A and B", "how long is it?"),
        ),
        ("The Rhine is the border of Austria and what  other country?", None),
    ],
)
def test_only_a_question_that_plainly_holds_several_is_taken_apart(
    question: str, parts: tuple[str, ...] | None
) -> None:
    assert split_question(question) == (parts or (question,))


def test_blanks_do_not_take_the_square_of_their_number() -> None:
    started = time.process_time()
    for blank in (" ", "\n", "? ", " and "):
        split_question(f"What is the port{blank * 100_000}x")
    assert time.process_time() - started < 5


def test_a_part_that_points_back_is_searched_for_with_what_it_points_to() -> None:
    question = "What is the port, and how do I change it?"
    history = [Turn(question="What runs there?", answer="A server.")]
    (_, first), (query, second) = asked_apart(question, question, history)
    assert (first, second) == ("What is the port", "how do I change it?")
    assert query == "What is the port how do I change it?"


@given(st.text())
def test_parts_of_a_question_stand_in_it(question: str) -> None:
    asked = f"What is {question} and how does {question} work?"
    place, parts = 0, split_question(asked)
    assert len(parts) <= 4
    for part in parts:
        place = asked.index(part, place) + len(part)
