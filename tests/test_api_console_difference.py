"""Texts compared in parts: what the console shows of a document that two releases hold otherwise."""

from hypothesis import given
from hypothesis import strategies as st

from api.console.text_difference import Part, compare


def parts(old: str, new: str, size: int) -> list[Part]:
    """Every part, as somebody goes through them."""
    found = [compare(old, new, size=size)]
    while found[-1].more:
        found.append(compare(old, new, found[-1].end, size))
    return found


def told(found: list[Part], tone: str) -> list[str]:
    return [line[1:] for part in found for mark, line in part.lines if mark == tone]


TEXTS = st.lists(st.sampled_from("abcdef"), max_size=60).map("\n".join)


@given(TEXTS, TEXTS, st.integers(1, 20))
def test_the_parts_follow_each_other_and_say_all_that_differs(old: str, new: str, size: int) -> None:
    found = parts(old, new, size)
    assert found[0].start == (0, 0)
    for before, after in zip(found, found[1:], strict=False):
        assert before.end == after.start and sum(after.end) > sum(after.start)
    assert all(part.end[side] - part.start[side] <= size for part in found for side in (0, 1))
    removed, added = told(found, "removed"), told(found, "added")
    lines = old.split("\n"), new.split("\n")
    assert found[-1].end == found[-1].total == (len(lines[0]), len(lines[1]))
    assert len(lines[0]) - len(removed) == len(lines[1]) - len(added)
    # What is left of the one without what went is what is left of the other without what came.
    assert sorted([*lines[0], *added]) == sorted([*lines[1], *removed])


def test_an_insertion_does_not_make_the_parts_behind_it_differ() -> None:
    old = [f"line {number}" for number in range(500)]
    new = [*old[:10], *(f"new {number}" for number in range(30)), *old[10:]]
    found = parts("\n".join(old), "\n".join(new), 100)
    assert len(found) > 4
    assert told(found, "removed") == [] and told(found, "added") == new[10:40]


def test_equal_lines_are_left_out_but_for_some_around_a_change() -> None:
    old = [f"line {number}" for number in range(1, 31)]
    new = [*old[:19], "other", *old[20:]]
    part = compare("\n".join(old), "\n".join(new))
    assert part.whole
    assert part.lines == (
        ("where", "line 17"),
        ("same", " line 17"),
        ("same", " line 18"),
        ("same", " line 19"),
        ("removed", "-line 20"),
        ("added", "+other"),
        ("same", " line 21"),
        ("same", " line 22"),
        ("same", " line 23"),
    )
    assert compare("\n".join(old), "\n".join(old)).lines == ()


def test_a_place_behind_the_end_shows_nothing_more() -> None:
    part = compare("a\nb", "a\nc", (9, 9))
    assert part.lines == () and not part.more
