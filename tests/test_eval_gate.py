"""The gate alone: scores in, verdict out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.bootstrap import estimate
from eval.gate import judge
from eval.scores import Row, Score, Scores
from knowledge_base.configuration import GateSettings, parse_settings
from knowledge_base.errors import SettingsError


def scores(release: str = "a", **values: list[float]) -> Scores:
    length = max(map(len, values.values()))
    rows = tuple(
        Row(
            id=str(i),
            group=f"document {i}",
            scores=tuple(Score(metric=name, value=column[i]) for name, column in values.items()),
        )
        for i in range(length)
    )
    return Scores(commit=release * 40, digest=release * 64, rows=rows)


def lost(count: int, of: int) -> list[float]:
    return [0.0] * count + [1.0] * (of - count)


def test_what_is_worse_beyond_the_margin_fails() -> None:
    verdict = judge(
        scores(context_recall=lost(20, of=200)), scores(context_recall=lost(0, of=200)), golden="g"
    )
    assert verdict.status == "FAIL" and not verdict.publishable
    assert "context_recall fell by 0.100" in verdict.reasons[0]


def test_what_did_not_change_passes() -> None:
    same = scores(context_recall=[1.0, 0.0] * 10, faithfulness=[0.9] * 20)
    assert judge(same, same, golden="g").status == "PASS"


def test_a_loss_well_inside_the_margin_passes_and_is_named() -> None:
    before, after = scores(context_recall=lost(0, of=200)), scores(context_recall=lost(1, of=200))
    verdict = judge(after, before, golden="g")
    assert verdict.status == "PASS"
    assert [(loss.id, loss.metric) for loss in verdict.losses] == [("0", "context_recall")]
    assert verdict.reasons == ("1 question(s) score lower than before: 0",)


def test_too_few_questions_to_tell_is_inconclusive_and_blocks() -> None:
    before, after = scores(context_recall=lost(0, of=20)), scores(context_recall=lost(1, of=20))
    verdict = judge(after, before, golden="g")
    assert verdict.status == "INCONCLUSIVE" and not verdict.publishable
    assert "may have fallen" in verdict.reasons[0]
    assert any("too few golden questions" in reason for reason in verdict.reasons)
    verdict = judge(scores(context_recall=[1.0]), scores(context_recall=[1.0]), golden="g")
    assert verdict.reasons[-1].endswith("detectable: context_recall: cannot tell")


def test_a_violation_that_the_release_before_did_not_have_is_a_loss() -> None:
    before, after = scores(canary=[1.0, 1.0]), scores(canary=[0.0, 1.0])
    assert [(loss.id, loss.metric) for loss in judge(after, before, golden="g").losses] == [("0", "canary")]


def test_one_metric_that_is_worse_outweighs_three_that_are_better() -> None:
    before = scores(faithfulness=[0.5] * 100, context_recall=lost(0, of=100), abstention=[0.0] * 100)
    after = scores(faithfulness=[1.0] * 100, context_recall=lost(15, of=100), abstention=[1.0] * 100)
    assert judge(after, before, golden="g").status == "FAIL"


def test_a_metric_without_a_margin_is_shown_and_never_blocks() -> None:
    verdict = judge(scores(rouge_l=[0.0] * 50), scores(rouge_l=[1.0] * 50), golden="g")
    assert verdict.status == "PASS"
    assert [m.delta for m in verdict.metrics] == [-1.0]


def test_questions_of_one_document_do_not_count_as_independent() -> None:
    differences = {str(i): -1.0 if i < 20 else 0.0 for i in range(200)}
    alone = estimate(differences, {}, "seed")
    together = estimate(differences, {key: str(int(key) // 20) for key in differences}, "seed")
    assert alone and together
    assert alone.mean == together.mean == -0.1
    assert (alone.groups, together.groups) == (200, 10)
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("metric", ["citation_validity", "schema", "canary"])
def test_a_single_violation_of_the_zero_tolerance_tier_fails(metric: str) -> None:
    verdict = judge(scores("a", **{metric: [*[1.0] * 199, 0.5]}), None, golden="g")
    assert verdict.status == "FAIL" and "199" in verdict.reasons[0]


def test_a_fault_found_elsewhere_fails() -> None:
    same = scores(context_recall=[1.0] * 10)
    assert judge(same, same, golden="g", faults=["the index is empty"]).status == "FAIL"


def test_what_could_not_be_scored_makes_it_incomplete_and_never_a_score() -> None:
    rows = (
        Row(id="a", scores=(Score(metric="faithfulness", value=None, reason="judge timed out"),)),
        Row(id="b", scores=(Score(metric="faithfulness", value=1.0),)),
    )
    verdict = judge(Scores(commit="c", rows=rows), None, golden="g")
    assert verdict.status == "INCOMPLETE" and not verdict.publishable
    assert verdict.reasons[:2] == ("1 of 2 questions could not be scored", "a: faithfulness: judge timed out")


def test_two_failures_in_a_hundred_are_tolerated_and_three_are_not() -> None:
    def some(failed: int) -> Scores:
        good = scores(context_recall=[1.0] * 100).rows
        return Scores(
            commit="c", rows=(*(Row(id=r.id, failure="crashed") for r in good[:failed]), *good[failed:])
        )

    assert judge(some(2), some(2), golden="g").status == "PASS"
    assert judge(some(3), some(0), golden="g").status == "INCOMPLETE"
    assert "of the release before" in judge(some(0), some(3), golden="g").reasons[0]


def test_scores_of_two_judges_are_not_compared() -> None:
    one = scores(faithfulness=[1.0] * 10).model_copy(update={"judge": "one"})
    verdict = judge(one, one.model_copy(update={"judge": "two"}), golden="g")
    assert verdict.status == "INCOMPLETE" and "different judges" in verdict.reasons[0]


def test_a_difference_is_of_the_questions_that_both_releases_answered() -> None:
    before = scores(rouge_l=[0.5, 0.5])
    more = Row(id="new", scores=(Score(metric="rouge_l", value=1.0),))
    after = Scores(commit="c", rows=(*scores(rouge_l=[0.4, 0.4]).rows, more))
    (found,) = judge(after, before, golden="g").metrics
    assert (found.candidate, found.baseline, found.delta) == (0.4, 0.5, -0.1)
    assert (found.n, found.unpaired) == (2, 1)


def test_repetitions_of_a_question_count_as_their_mean() -> None:
    rows = tuple(
        Row(id="q", repetition=i, scores=(Score(metric="faithfulness", value=v),))
        for i, v in enumerate((1.0, 0.5, 0.0))
    )
    assert Scores(commit="c", rows=rows).values("faithfulness") == {"q": 0.5}
    assert Scores(commit="c", rows=rows).questions == 1


def test_more_questions_detect_a_smaller_loss() -> None:
    found = [estimate({str(i): float(i % 10 == 0) for i in range(n)}, {}, "s") for n in (20, 200, 2000)]
    sizes = [e.detectable for e in found if e]
    assert sizes[0] > 3 * sizes[1] > 9 * sizes[2] > 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_candidate_that_is_nowhere_worse_is_never_refused(one: list[float], two: list[float]) -> None:
    pairs = list(zip(one, two, strict=False))
    better = scores(faithfulness=[max(pair) for pair in pairs])
    assert judge(better, scores("b", faithfulness=[min(pair) for pair in pairs]), golden="g").publishable


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=30))
def test_the_interval_holds_the_mean(differences: list[float]) -> None:
    found = estimate({str(i): d for i, d in enumerate(differences)}, {}, "seed")
    assert found is not None
    assert found.low - 1e-6 <= sum(differences) / len(differences) <= found.high + 1e-6


def test_the_same_two_releases_get_the_same_interval_wherever_they_are_committed() -> None:
    drawn = random.Random(1)
    after = scores("x", faithfulness=[drawn.random() for _ in range(50)])
    before = scores("y", faithfulness=[drawn.random() for _ in range(50)])
    moved = after.model_copy(update={"commit": "elsewhere"})
    assert judge(after, before, golden="g").metrics == judge(moved, before, golden="g").metrics


def test_margins_are_at_most_four_and_positive() -> None:
    assert parse_settings("[gate.margins]\nfaithfulness = 0.1\n").gate.margins == {"faithfulness": 0.1}
    for text in ("faithfulness = 0", "a=0.1\nb=0.1\nc=0.1\nd=0.1\ne=0.1"):
        with pytest.raises(SettingsError, match="gate.margins"):
            parse_settings(f"[gate.margins]\n{text}\n")
    assert len(GateSettings().margins) == 4
