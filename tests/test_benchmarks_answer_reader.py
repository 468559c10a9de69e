import random
import re

from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.training.answer_reader_changes import Changed, Changes

_CHANGES = Changes(
    like={"treaty": ["pact"], "signed": ["sealed"], "river": ["stream"], "bridge": ["crossing"]},
    unlike={"treaty": ["letter"], "signed": ["painted"], "river": ["road"], "bridge": ["tower"]},
    opposites={"before": frozenset({"after"}), "after": frozenset({"before"}), "first": frozenset({"last"})},
)
_PASSAGE = (
    "In 1803 France and Spain signed the treaty, after the bridge over the river Seine was sealed by Monroe."
)
_QUESTIONS = (
    "When did France and Spain sign the treaty of 1803?",
    "which bridge was first built before the treaty was signed by France in 1803?",
    "What river has the bridge over Seine that Monroe crossed 3 times?",
    "who can't cross the river?",
)


@given(st.sampled_from(_QUESTIONS), st.integers())
def test_a_spoiled_question_differs_and_all_that_differs_is_marked(question: str, seed: int) -> None:
    made = _CHANGES.spoil(question, _PASSAGE, random.Random(seed))
    assume(made is not None)
    assert made
    assert made.text != question
    # The parts between the marked ones stand in the question in the same order.
    kept = "(.*)".join(re.escape(part) for part in _unmarked(made))
    assert re.fullmatch(kept, question)


def test_every_kind_of_change_is_made() -> None:
    made = {_CHANGES.spoil(_QUESTIONS[1], _PASSAGE, random.Random(seed)) for seed in range(200)}
    texts = [one.text for one in made if one]
    # Name, opposite, word, word of the passage, negations.
    for changed in ("by Spain in", "built after the", "which tower", "n't first", "was not first"):
        assert any(changed in text for text in texts), changed
    assert not any("by 1803" in text for text in texts), "a name and a number never change places"


def test_names_that_change_places_are_both_marked() -> None:
    question = "When did the army of France leave Spain?"
    tried = [_CHANGES._roles(question, "", random.Random(seed)) for seed in range(20)]
    made = [one for one in tried if one]
    assert made
    for one in made:
        assert one.text == "When did the army of Spain leave France?"
        assert [one.text[a:b] for a, b in one.wrong] == ["Spain", "France"]


def _unmarked(made: Changed) -> list[str]:
    bounds = [0, *(place for span in made.wrong for place in span), len(made.text)]
    return [made.text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
