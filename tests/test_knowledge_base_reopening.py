"""Going back: what was closed since stays closed, unless somebody says that it may be open again."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.access import Access
from knowledge_base.errors import ReopensError
from knowledge_base.home import KnowledgeBase
from knowledge_base.republishing import rollback
from tests.releases import Write, documents, kb, write

__all__ = ["kb", "write"]

PAY = "# Pay\n\nThe pay is ninety thousand crowns.\n"
CLOSED = f"---\nallow: [hr]\n---\n{PAY}"


def patterns(kb: KnowledgeBase, *lines: str) -> None:
    """Write `[access]` into plumbline.toml, in place of what stood there."""
    toml = kb.root / "plumbline.toml"
    before = toml.read_text().partition("\n[access]\n")[0]
    toml.write_text("\n".join([before, "[access]", *lines, ""]) if lines else before)


def test_a_document_that_was_closed_since_is_not_opened_without_consent(
    kb: KnowledgeBase, write: Write
) -> None:
    opened = write(pay=PAY).commit
    write(pay=CLOSED)
    head = write(team="Somebody answers.\n").commit
    with pytest.raises(ReopensError, match=r"pay\.md"):
        rollback(kb, opened)
    assert kb.repository.resolve("main") == head
    rollback(kb, opened, reopen=True)
    assert kb.snapshot().access.open and "pay.md" in documents(kb)
    rollback(kb, head)  # that closes it again
    assert not kb.snapshot().access.allows("pay.md", frozenset())


def test_what_is_as_closed_as_now_needs_no_consent(kb: KnowledgeBase, write: Write) -> None:
    patterns(kb, '"pay*" = ["hr", "board"]')
    first = write(pay=CLOSED).commit
    patterns(kb, '"pay*" = ["board", "hr", "sales"]')
    write(pay=CLOSED.replace("[hr]", "[hr, board]"), more="# More\n\nAnother page.\n")
    rollback(kb, first)


def test_a_pattern_that_came_since_holds_also_where_it_closes_nothing_now(
    kb: KnowledgeBase, write: Write
) -> None:
    """Older releases may hold documents that today's patterns alone close."""
    first = write(more="# More\n\nAnother page.\n").commit
    patterns(kb, '"secret" = ["board"]')
    write(more="# More\n\nYet another page.\n")
    with pytest.raises(ReopensError, match='"secret"'):
        rollback(kb, first)
    patterns(kb, '"secret" = ["board", "hr"]')
    wider = write().commit
    rollback(kb, f"{wider}~1")
    with pytest.raises(ReopensError, match='"secret"'):
        rollback(kb, wider)


@pytest.mark.parametrize("closed", [True, False])
def test_a_document_that_was_closed_and_then_deleted_stays_so(
    kb: KnowledgeBase, write: Write, closed: bool
) -> None:
    first = write(pay=PAY).commit
    write(other="---\nallow: [hr]\n---\n# Other\n\nAnother matter.\n", pay=CLOSED if closed else PAY)
    write(other=None, pay=None)
    write(more="# More\n\nAnother page.\n")
    if closed:
        with pytest.raises(ReopensError, match=r"open what was closed since: pay\.md\."):
            rollback(kb, first)
    rollback(kb, first, reopen=closed)
    assert "pay.md" in documents(kb)


GROUPS = ("hr", "board", "sales")
rule = st.frozensets(st.sampled_from(GROUPS))
rules = st.dictionaries(st.sampled_from(["a*", "*.md", "b"]), rule, max_size=3)


@given(rules, rules, st.none() | rule, st.none() | rule)
def test_what_opens_a_document_is_what_lets_somebody_in_who_was_kept_out(
    old: dict[str, Sequence[str]],
    new: dict[str, Sequence[str]],
    old_allow: frozenset[str] | None,
    new_allow: frozenset[str] | None,
) -> None:
    def access(patterns: dict[str, Sequence[str]], allow: frozenset[str] | None) -> Access:
        return Access(patterns, {} if allow is None else {"a.md": sorted(allow)})

    before, after = access(old, old_allow), access(new, new_allow)
    callers = [
        frozenset(group for bit, group in enumerate(GROUPS) if number >> bit & 1) for number in range(8)
    ]
    let_in = any(after.allows("a.md", groups) and not before.allows("a.md", groups) for groups in callers)
    assert after.opens("a.md", before) == let_in
    if not after.loosened(before):
        assert not any(after.allows("b/x", groups) and not before.allows("b/x", groups) for groups in callers)
