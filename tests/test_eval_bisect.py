"""The search for the release that broke something, on a real history."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from api.cli import app
from eval.bisect import Bisection, Symptom, bisect
from eval.evaluations import Evaluations
from eval.nights import Nights
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import ExpiredError, NotFoundError, PlumblineError, UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import Judgement
from knowledge_base.retention import Retention, gc
from tests.conftest import DOCUMENTS

GOLDEN = [
    {"id": "port", "question": "What is the default port?", "document": "install.md", "quote": "8420"},
    {"id": "founder", "question": "Who founded the company?", "document": "history.md"},
    {"id": "hash", "question": "How are passwords hashed?", "document": "security.md"},
]


FILES = ("billing.md", "history.md", "install.md", "security.md")


class History(NamedTuple):
    """A knowledge base whose third release of six changed the port, and whose fifth lost a document."""

    knowledge_base: KnowledgeBase
    releases: list[str]

    def search(self, symptom: Symptom, good: str | None = None, **further: Any) -> Bisection:
        return bisect(self.knowledge_base, symptom, good or self.releases[0], **further)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, models: Path) -> History:
    """The history that every test works on a copy of."""
    folder, releases = tmp_path_factory.mktemp("bisect"), list[str]()
    made, sources = KnowledgeBase.create(folder / "kb", models), folder / "sources"

    def release(judged: str = "PASS", **files: str | None) -> None:
        for name, text in files.items():
            path = sources / f"{name}.md"
            path.unlink() if text is None else path.write_text(text)
        options = IngestOptions(prune=True, message=f"release {len(releases) + 1}")
        found = list_sources([str(sources)])
        ingest(made, found, options, gate=lambda candidate, live: Judgement(judged, True))
        releases.append(made.repository.resolve("main"))

    golden = made.root / "golden" / "main.jsonl"
    golden.write_text("\n".join(map(json.dumps, GOLDEN[:2])))
    sources.mkdir()
    release(**{path.removesuffix(".md"): DOCUMENTS[path] for path in FILES})
    release(ferries="# Ferries\n\nFerries leave at dawn.\n")
    release(install="# Installation\n\nThe default port of the server is 9000.\n", bread="# Bread\n\nRye.\n")
    release(trains="# Trains\n\nTrains leave at noon.\n")
    golden.write_text("\n".join(map(json.dumps, GOLDEN)))
    release("not gated", security=None)
    release("not gated", planes="# Planes\n\nPlanes leave at night.\n")
    return History(made, releases)


@pytest.fixture
def history(template: History, models: Path, tmp_path: Path) -> History:
    root = shutil.copytree(template.knowledge_base.root, tmp_path / "kb")
    return History(KnowledgeBase.open(root, models), template.releases)


def test_a_question_leads_to_the_release_that_broke_it_and_what_it_changed(history: History) -> None:
    found = history.search(Symptom("port"))
    assert found.first_bad["commit"] == history.releases[2] and found.before == history.releases[1]
    assert found.first_bad["message"] == "release 3" and found.author
    assert found.changed == ("corpus",) and found.settings == {}
    assert (found.documents.changed, found.documents.added) == (("install.md",), ("bread.md",))
    assert (found.metric, found.below) == ("context_recall", 0.5)
    before, first = found.before[:12], history.releases[2][:12]
    assert found.commands == (f"rag diff {before} {first}", f"rag rollback {before}")
    assert len(found.steps) < len(history.releases)
    assert [step.bad for step in found.steps if step.commit == history.releases[2]] == [True]


def test_a_question_is_asked_of_releases_older_than_itself(history: History) -> None:
    found = history.search(Symptom("hash"))
    assert found.first_bad["commit"] == history.releases[4]
    assert found.documents.deleted == ("security.md",)


def test_a_search_that_is_repeated_evaluates_nothing(history: History) -> None:
    first = history.search(Symptom("port"))
    kept = Evaluations(history.knowledge_base.repository)
    before = kept.history(None, 100)
    assert history.search(Symptom("port")) == first
    assert kept.history(None, 100) == before


def test_a_metric_is_followed_to_where_it_falls_below_a_limit(history: History) -> None:
    def culprit(below: float | None) -> str:
        found = history.search(Symptom(metric="context_recall", below=below))
        return str(found.first_bad["commit"])

    assert culprit(0.9) == history.releases[2]
    assert culprit(None) == culprit(0.5) == history.releases[4]


def test_without_a_symptom_the_gate_decides(history: History) -> None:
    found = history.search(Symptom())
    assert found.first_bad["commit"] == history.releases[2] and found.metric is None
    assert [step.verdict for step in found.steps if not step.bad] == ["PASS"] * 2


def test_the_search_begins_at_the_accepted_reference_or_the_last_release_that_passed(
    history: History,
) -> None:
    kb = history.knowledge_base
    assert bisect(kb, Symptom("hash")).good == history.releases[3]
    nights = Nights(kb)
    nights.accept(history.releases[1], date(2026, 11, 20), "as it should be")
    found = bisect(kb, Symptom("port"))
    assert found.good == history.releases[1] and found.first_bad["commit"] == history.releases[2]


def test_a_release_whose_content_is_gone_is_passed_over_and_named(history: History) -> None:
    kb = history.knowledge_base
    kb.repository.create_tag("good", history.releases[0])
    gc(kb, Retention(keep_last=1), dry_run=False)
    found = history.search(Symptom("port"), "good")
    assert found.first_bad["commit"] == history.releases[5] and found.before == history.releases[0]
    assert found.perhaps == tuple(history.releases[1:5])
    with pytest.raises(ExpiredError, match="removed by gc"):
        history.search(Symptom("port"), history.releases[1])


@pytest.mark.parametrize(
    ("symptom", "good", "error", "said"),
    [
        (Symptom("founder"), 0, UsageError, "scores no lower"),
        (Symptom("port"), 2, UsageError, "broken before"),
        (Symptom("port"), 5, UsageError, "is no release before"),
        (Symptom("moon"), 0, NotFoundError, "golden question: 'moon'"),
        (Symptom(metric="recall@5"), 0, UsageError, "no metric 'recall@5'"),
        (Symptom(below=0.5), 0, UsageError, "--below needs --metric"),
        (Symptom(metric="schema"), 0, UsageError, "does not fall"),
        (Symptom(metric="bleu"), 0, UsageError, "on no golden question"),
        (Symptom(metric="context_recall", below=0.1), 0, UsageError, "'main' is not bad: context_recall is"),
        (Symptom(metric="context_recall", below=1.1), 2, UsageError, "is not good: context_recall is"),
        (Symptom(), 4, UsageError, "is not bad: the gate says"),
    ],
)
def test_ends_that_are_not_what_they_are_said_to_be(
    history: History, symptom: Symptom, good: int, error: type[PlumblineError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        history.search(symptom, history.releases[good])
    assert raised.value.exit_code == 2 and raised.value.hint or raised.value.message.startswith("--below")


def test_the_command_says_who_what_and_what_next(history: History) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["bisect", *words, "--kb", str(history.knowledge_base.root)])
        assert done.exit_code == 0, done.output
        return done.stdout

    said = run("port", "--good", history.releases[0])
    first, before = history.releases[2][:12], history.releases[1][:12]
    assert f"The first bad release is {first}" in said and "release 3" in said
    assert (
        " changed  install.md" in said and f"Next: rag diff {before} {first}; rag rollback {before}" in said
    )
    assert "bad is context_recall below 0.500 of golden question port" in said
    value = json.loads(run("--metric", "context_recall", "--good", history.releases[0], "--json"))
    assert value["first_bad"]["commit"] == history.releases[4]
    assert value["documents"]["deleted"] == ["security.md"] and value["steps"][0]["bad"] is True
