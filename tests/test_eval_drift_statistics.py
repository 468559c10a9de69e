"""Drift tests: no alarms on nothing, sight of what is there, and invariance to what must not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from eval.drift_statistics import (
    ITEMS_A_BLOCK,
    Sample,
    block_mean,
    block_mmd,
    domain_classifier,
    paired_loss,
)
from eval.family import BASELINE_NIGHTS, benjamini_hochberg, holm, trend

RUNS = 300


def vectors(
    seed: int, blocks: int, each: int = 5, shifted: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors whose blocks are alike; a share of the blocks lies elsewhere."""
    drawn = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), each)
    found = drawn.normal(size=(blocks, 8))[block] + 0.5 * drawn.normal(size=(len(block), 8))
    found[(drawn.random(blocks) < shifted)[block]] += 2.0
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), block


def sample(seed: int, shifted: float = 0.0) -> Sample:
    return Sample.of(*vectors(2 * seed, 30), *vectors(2 * seed + 1, 30, shifted=shifted))


def in_band(alarms: int) -> bool:
    low, high = binom.ppf([0.0005, 0.9995], RUNS, 0.05)
    return bool(low <= alarms <= high)


def test_tests_on_whole_blocks_alarm_on_nothing_as_often_as_they_say() -> None:
    tests = [sample(seed) for seed in range(RUNS)]
    assert in_band(sum(block_mmd(one, 0, 99).p <= 0.05 for one in tests))
    assert in_band(sum(domain_classifier(one, 0, 99).p <= 0.05 for one in tests))
    means = [Sample(one.items[:, 0].astype(float), one.blocks, one.newer) for one in tests]
    assert in_band(sum(block_mean(one, 0, 99).p <= 0.05 for one in means))


def test_the_same_test_without_blocks_alarms_nearly_always() -> None:
    found = [sample(seed) for seed in range(20)]
    single = [Sample(one.items, np.arange(len(one.items)), one.newer) for one in found]
    assert sum(block_mmd(one, 0, 99).p <= 0.05 for one in single) >= 15


def test_a_drift_is_seen() -> None:
    found = sample(1, shifted=0.5)
    assert block_mmd(found, 0).p < 0.001
    told_apart = domain_classifier(found, 0)
    assert told_apart.p < 0.01 and told_apart.statistic > 0.65
    assert told_apart.interval[0] < told_apart.statistic < told_apart.interval[1]


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_order_and_rotation_do_not_matter(seed: int) -> None:
    found, drawn = sample(3, shifted=0.2), np.random.default_rng(seed)
    rotation = np.linalg.qr(drawn.normal(size=(8, 8)))[0]
    turned = Sample((found.items @ rotation).astype(np.float32), found.blocks, found.newer)
    inside = np.lexsort((drawn.random(len(found.blocks)), found.blocks))
    expected = block_mmd(found, 0, 99)
    for other in (turned, found.take(inside)):
        assert block_mmd(other, 0, 99).statistic == pytest.approx(expected.statistic, abs=1e-5)
        assert block_mmd(other, 0, 99).p == expected.p


def test_the_same_arrays_give_the_same_result() -> None:
    assert block_mmd(sample(5), 7) == block_mmd(sample(5), 7)
    assert domain_classifier(sample(5), 7).p == domain_classifier(sample(5), 7).p


@settings(max_examples=30)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=200), st.integers(1, 50))
def test_thinning_keeps_few_of_each_block_and_whole_sides(blocks: list[int], per_side: int) -> None:
    values, numbers = np.zeros(len(blocks)), np.array(blocks)
    both = Sample.of(values, numbers, values, numbers)
    assert set(both.blocks[both.newer]).isdisjoint(both.blocks[~both.newer])
    rows = both.thinned(3, per_side)
    kept = both.take(rows)
    assert max(np.bincount(kept.blocks)) <= ITEMS_A_BLOCK
    old, new, _, _ = kept.counts
    enough = sum(min(int(count), ITEMS_A_BLOCK) for count in np.bincount(numbers))
    assert old == new == min(per_side, enough)


def test_paired_losses_are_flipped_by_group() -> None:
    drawn = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    worse = np.where(drawn.random(100) < 0.3, -1.0, 0.0)
    assert paired_loss(worse, groups, 0).p < 0.001
    assert paired_loss(-worse, groups, 0).p == 1.0
    assert paired_loss(np.zeros(100), groups, 0).p == 1.0
    # One document that lost all its questions is one loss, however many questions it has.
    assert paired_loss(np.where(groups == 0, -1.0, 0.0), groups, 0).p == pytest.approx(0.5, abs=0.02)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=12))
def test_holm_finds_no_more_than_benjamini_and_hochberg(p_values: dict[str, float]) -> None:
    strict, loose = holm(p_values, 0.05), benjamini_hochberg(p_values, 0.05)
    assert strict <= loose
    assert all(p_values[a] <= p_values[b] for a in strict for b in p_values.keys() - strict)
    assert all(p_values[name] <= 0.05 / len(p_values) or len(strict) > 1 for name in strict)


def test_holm_divides_the_level_by_what_is_left() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.03}, 0.05) == {"a", "b", "c"}
    assert holm({"a": 0.01, "b": 0.026, "c": 0.03}, 0.05) == {"a"}


def test_a_trend_needs_a_baseline_and_keeps_to_its_level() -> None:
    assert trend([0.9] * BASELINE_NIGHTS, 0.01) is None
    drawn = np.random.default_rng(0)
    alarms = 0
    for _ in range(RUNS):
        found = trend(drawn.normal(0.9, 0.02, BASELINE_NIGHTS + 15).tolist(), 0.0, 0.05)
        assert found is not None
        alarms += found.outside
    assert in_band(alarms)
    sunk = trend([*drawn.normal(0.9, 0.02, BASELINE_NIGHTS).tolist(), *[0.7] * 5], 0.01)
    assert sunk is not None and sunk.outside and sunk.expected_run == 365
