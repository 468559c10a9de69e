"""Who may read which document: what documents and plumbline.toml say, and what is then left of a release."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ingestion.pipeline import IngestOptions, ingest
from ingestion.readers import read_document
from ingestion.sources import list_sources
from knowledge_base.access import Access, declared_groups
from knowledge_base.configuration import parse_settings
from knowledge_base.errors import NotFoundError, SettingsError
from knowledge_base.history import Restrictions
from knowledge_base.home import KnowledgeBase
from knowledge_base.version_store import Commit
from rag.engine import Engine
from tests.releases import Write, kb, ranking, write

__all__ = ["kb", "write"]

SALARIES = "---\nallow: [hr]\n---\n# Salaries\n\nThe salary of Astrid Lund is ninety thousand crowns.\n"
QUESTION = "What is the salary of Astrid Lund?"


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("# Title\n\nallow: hr\n", None),
        ("---\ntitle: x\n---\nallow: hr\n", None),
        ("---\nallow: hr\n---\nText", ("hr",)),
        ("---\nallow: [hr, board]\n---\nText", ("hr", "board")),
        ("---\nAllow:\n  - hr\n...\nText", ("hr",)),
        ("\ufeff\n---\nallow: hr\n---", ("hr",)),
        ("---\nallow:\n---\nText", ()),
        ("---\nallow: []\n---\nText", ()),
        ("---\nallow: hr, board\n---\nText", ()),
        ("---\nallow: [no]\n---\nText", ()),
        ("---\nallow: {hr: yes}\n---\nText", ()),
        ("---\nallow: [hr\n---\nText", ()),
        ("---\nallow: hr\nALLOW: everyone\n---\nText", ()),
        ("---\nallow: hr\nText without an end", ()),
        ("--- title: x allow: [hr] --- \n\n# Text", ()),
        ("---\n- allow: hr\n---\nText", ()),
        ("---\nallow: hr\nwhen: 2024-99-99\n---\nText", ()),
        ("---\nrobots:\n  allow: hr\n---\nText", None),
        ("---\n\nA rule, then text.\n", None),
        ("---\n? allow\n: [hr]\n---\nText", ("hr",)),
        ('---\n"all\\u006fw": hr\n---\nText', ("hr",)),
        ('---\n? "al\\\n  low"\n: hr\n---\nText', ("hr",)),
        ("---\n!!set {allow}\n---\nText", ()),
        ("---\nallow: !!timestamp x\n---\nText", ()),
        ("---\n{title: x, 'allow' : [hr]}\n---\nText", ("hr",)),
        ("---\nbase: &b {allow: hr}\n<<: *b\n---\nText", ("hr",)),
        ("---\nkey: &k allow\n*k : hr\n---\nText", ("hr",)),
        (f"---\ntitle: {'x' * 5000}\nallow: hr\n---\nText", ("hr",)),
        (f"---\ntitle: {'x' * 5000}\nallow: hr\nText without an end", ()),
        (f"---\ntitle: {'x' * 5000}\n? allow\n: hr\nText without an end", ()),
        ('---\n"all\\x6fw": hr\nText without an end', ()),
        ("---\nallow: hr\nallow: everyone\n---\nText", ()),
        ("---\n? [allow]\n: hr\n---\nText", ()),
        ("---\nallow: hr\nx: " + "[" * 5000 + "\n---\nText", ()),
        ("---\ntitle: how: to allow\n---\nText", ()),
        ("---\ntitle: how: to do it\n---\nText", None),
        ("---\ntitle: What we allow\n---\nText", None),
        ("---\nWe allow dogs.\n---\nText", None),
        ("-----\nRules\n-----\nWe allow dogs.\n", None),
    ],
)
def test_what_a_document_allows_is_read_and_what_cannot_be_read_lets_nobody_in(
    text: str, groups: tuple[str, ...] | None
) -> None:
    assert declared_groups(text) == groups


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=5),
    st.sampled_from([None, "'", '"', "|", ">"]),
    st.booleans(),
)
def test_a_rule_is_found_however_yaml_writes_it(
    others: dict[str, str], style: str | None, flow: bool
) -> None:
    keys = {key: value for key, value in others.items() if key.strip().lower() != "allow"} | {"allow": ["hr"]}
    front = yaml.safe_dump(keys, default_style=style, default_flow_style=flow, allow_unicode=flow, width=30)
    assert declared_groups(f"---\n{front}---\nText") == ("hr",)


@given(st.text(alphabet="allow: -?[]{}|>&*!'\"\\\n\tx61.", max_size=80))
def test_no_front_matter_is_an_error(front: str) -> None:
    assert declared_groups(f"---\nallow: hr\n{front}\n---\nText") is not None


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.md", b"---\r\nallow: hr\r\n---\r\nText"),
        ("a.txt", "---\nallow: hr\n---\nText".encode("utf-16")),
        ("a.html", b"---\nallow: hr\n---\n<html><body><p>Text</p></body></html>"),
        ("a.md", b"---\rallow: hr\r---\rText"),
    ],
)
def test_every_reader_hands_the_groups_on(path: str, content: bytes) -> None:
    assert read_document(path, content).allow == ("hr",)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("hr/*", "hr/a/b.md", True),
        ("hr", "hr/a.md", True),
        ("/hr/", "HR/a.md", True),
        ("hr/**", "hr/a.md", True),
        ("hr", "hr.md", False),
        ("hr/*", "other/hr/a.md", False),
        ("*.pdf", "a/B.PDF", True),
        ("re\u0301sume\u0301/*", "r\u00e9sum\u00e9/a.md", True),
    ],
)
def test_patterns_name_paths_and_folders(pattern: str, path: str, matches: bool) -> None:
    assert Access({pattern: ["x"]}).allows(path, frozenset()) != matches


def test_every_rule_must_let_a_caller_in() -> None:
    access = Access({"hr/*": ["hr", "board"], "*/pay/*": ["pay"], "closed": []}, {"hr/a.md": ["board"]})
    assert access.allows("open.md", frozenset())
    assert not access.allows("hr/a.md", frozenset({"hr"}))
    assert access.allows("hr/a.md", frozenset({"board"}))
    assert not access.allows("hr/pay/b.md", frozenset({"hr"}))
    assert access.allows("hr/pay/b.md", frozenset({"hr", "pay"}))
    assert not access.allows("closed/c.md", frozenset({"hr", "board", "pay"}))


@pytest.mark.parametrize("table", ['"hr/*" = "hr"', '"hr/*" = ["h r"]', '"" = ["hr"]', '"hr/*" = [1]'])
def test_a_pattern_that_is_not_valid_is_refused(table: str) -> None:
    with pytest.raises(SettingsError, match="access"):
        parse_settings(f"[access]\n{table}\n")


def test_a_closed_document_is_not_there_for_those_it_is_closed_to(kb: KnowledgeBase, write: Write) -> None:
    write(salaries=SALARIES)
    engine = Engine.open(kb)
    closed, staff = engine.seen_by(frozenset({"sales"})), engine.seen_by(frozenset({"hr"}))
    assert "salaries.md" in [found.path for found in engine.search(QUESTION)]
    assert "salaries.md" in [found.path for found in staff.search(QUESTION)]
    assert "salaries.md" not in [found.path for found in closed.search(QUESTION, 100)]
    assert "ninety" in staff.ask(QUESTION).answer and "ninety" not in closed.ask(QUESTION).answer
    assert "salaries.md" not in closed.snapshot and len(closed.snapshot.hashes()) == 6
    assert closed.release.manifest.documents == 6 and engine.release.manifest.documents == 7
    told = []
    for path in ("salaries.md", "nowhere.md"):
        with pytest.raises(NotFoundError) as refused:
            closed.snapshot.document_text(path)
        told.append(str(refused.value).replace(path, "PATH") + refused.value.hint)
    assert told[0] == told[1]


def test_what_is_hidden_weighs_nothing_in_the_ranking_of_the_rest(kb: KnowledgeBase, write: Write) -> None:
    before = ranking(kb, "What does the server reply with status 429?")
    # Many texts with the question's own words: they would change every weight of BM25.
    write(**{f"s{n}": f"---\nallow: hr\n---\nServer reply status 429, case {n}.\n" for n in range(20)})
    assert ranking(kb, "What does the server reply with status 429?") != before
    seen = Engine.open(kb).seen_by(frozenset())
    found = seen.search("What does the server reply with status 429?", 20)
    assert [(result.path, result.score) for result in found] == before


def test_a_text_that_also_stands_in_an_open_document_is_found_there_alone(
    kb: KnowledgeBase, write: Write
) -> None:
    text = "The board meets on the second Tuesday of March.\n"
    write(a_closed=f"---\nallow: board\n---\n\n# Board\n\n{text}", open=f"# Board\n\n{text}")
    seen = Engine.open(kb).seen_by(frozenset())
    found = seen.search("When does the board meet?", 20)
    assert found[0].path == "open.md"
    assert not any("a_closed.md" in (result.path, *result.also_in) for result in found)


def test_patterns_change_without_embedding_anew(kb: KnowledgeBase, write: Write, sources: Path) -> None:
    toml = kb.root / "plumbline.toml"
    toml.write_text(toml.read_text() + '\n[access]\n"api" = ["developers"]\n')
    result = ingest(kb, list_sources([str(sources)]), IngestOptions())
    assert (result.embedded, result.changed) == (0, ("access",))
    engine = Engine.open(kb)
    assert "api/limits.md" not in engine.seen_by(frozenset()).snapshot
    assert "api/limits.md" in engine.seen_by(frozenset({"developers"})).snapshot


def test_a_document_that_is_closed_today_is_closed_in_older_releases(kb: KnowledgeBase, write: Write) -> None:
    open_release = write(salaries=SALARIES.replace("allow: [hr]", "title: x")).commit
    write(salaries=SALARIES)
    old, current = Engine.open(kb, open_release), kb.snapshot().access
    assert "salaries.md" in old.seen_by(frozenset()).snapshot  # by that release's own word
    assert "salaries.md" not in old.seen_by(frozenset(), current).snapshot
    assert "salaries.md" in old.seen_by(frozenset({"hr"}), current).snapshot
    write(salaries=SALARIES.replace("allow: [hr]", "title: x"))
    closed_release = Engine.open(kb, "main~1")
    assert "salaries.md" not in closed_release.seen_by(frozenset(), kb.snapshot().access).snapshot


def test_groups_survive_compaction(kb: KnowledgeBase, write: Write) -> None:
    write(salaries=SALARIES)
    for number in range(9):
        write(**{f"more{number}": f"# More\n\nParagraph number {number} of the handbook.\n"})
    snapshot = kb.snapshot()
    assert len(snapshot.segments) < 8
    assert snapshot.document("salaries.md").allow == ("hr",)
    assert not snapshot.access.allows("salaries.md", frozenset())


def test_segments_from_before_groups_are_read_all_the_same(kb: KnowledgeBase, write: Write) -> None:
    import pyarrow

    write(salaries=SALARIES)
    segment = next(s for s in kb.snapshot().segments if "salaries.md" in s.documents["path"])
    whole = segment.table
    columns: list[str] = []

    def old(name: str, wanted: list[str]) -> pyarrow.Table:
        columns.extend(wanted)
        return whole(name, [column for column in wanted if column != "allow"])

    segment.__dict__.pop("documents")
    segment.table = old  # type: ignore[method-assign, assignment]
    assert segment.documents["allow"][segment.documents["path"].index("salaries.md")] == ("hr",)
    assert "allow" in columns


def test_views_are_made_once_for_groups_that_make_no_difference(kb: KnowledgeBase, write: Write) -> None:
    engine = Engine.open(kb)
    assert engine.seen_by(frozenset({"any"})) is engine
    write(salaries=SALARIES)
    engine = Engine.open(kb)
    view = engine.seen_by(frozenset({"sales"}))
    assert engine.seen_by(frozenset({"press"})) is view is not engine
    assert engine.seen_by(frozenset({"hr", "press"})) is engine
    assert engine.named("v1").seen_by(frozenset()).release_ref.ref == "v1"


def test_whether_documents_were_ever_closed_is_looked_up_once_for_each_commit(
    kb: KnowledgeBase, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    log = kb.repository.log

    def counted(ref: str, **asked: Any) -> Iterator[Commit]:
        for commit in log(ref, **asked):
            looked.append(commit.id)
            yield commit

    monkeypatch.setattr(kb.repository, "log", counted)
    before = Restrictions(kb.repository)
    first = kb.repository.resolve("main")
    assert not before.were(first)
    second = write(more="# More\n\nAnother page.\n").commit
    looked.clear()
    assert not before.were(second) and not before.were(second) and not before.were(first)
    assert looked == [second, first]
    closed = write(salaries=SALARIES).commit
    opened = write(salaries=SALARIES.replace("allow: [hr]", "title: x")).commit
    assert before.were(closed) and before.were(opened) and Restrictions(kb.repository).were(opened)
    assert not before.were(second)
