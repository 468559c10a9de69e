"""Promotion in the console: the gate's verdict is shown, its refusal can be read, past it takes an admin."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from eval.evaluate import evaluate_release
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from rag.answer_log import AnswerLog
from tests.console_site import Site, ended
from tests.console_site import site as site
from tests.running import running


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=60, follow_redirects=True) as made:
        yield made


def candidate(site: Site, name: str, folder: Path, *, without: str = "") -> str:
    """A branch from what main serves, with one more document or without one; its commit."""
    made = site.knowledge_base
    made.repository.create_branch(name, "main")
    (folder / f"{name}.md").write_text(f"# {name}\n\nThe {name} stands in room twelve.\n")
    options = IngestOptions(branch=name, message=f"About the {name}", delete=(without,) if without else ())
    ingest(made, list_sources([] if without else [str(folder)]), options)
    return made.repository.resolve(name)


def decided(page: httpx.Response, way: str) -> dict[str, str]:
    """What the form for a way of promoting sends."""
    forms = [form for form in page.text.split("<form")[1:] if f'name="way" value="{way}"' in form]
    assert len(forms) == 1, page.text
    return dict(re.findall(r'<input[^>]* name="(\w+)" value="([^"]*)"', forms[0]))


def test_what_the_gate_lets_through_is_promoted(client: httpx.Client, site: Site, tmp_path: Path) -> None:
    commit = candidate(site, "printer", tmp_path)
    assert "/promote?ref=printer" in client.get("/releases").text
    page = client.get("/promote", params={"ref": "printer"})
    assert "The gate has not judged it" in page.text
    evaluate_release(site.knowledge_base, "printer")
    page = client.get("/promote", params={"ref": "printer"})
    assert "It may be promoted." in page.text and "past the gate" not in page.text
    sent = decided(page, "gate")
    assert sent["expected"] == commit and sent["message"] == "About the printer"
    job = ended(client, client.post("/promote", data={**sent, "message": "The printer's room"}))
    assert "Published as" in job.text
    head = site.knowledge_base.repository.get_commit("main")
    assert head.message == "The printer's room" and commit in head.parents
    again = client.get("/promote", params={"ref": "printer"})
    assert "It cannot be promoted." in again.text and 'action="/promote' not in again.text


def test_a_refusal_says_every_reason_and_moves_nothing(
    client: httpx.Client, site: Site, tmp_path: Path
) -> None:
    candidate(site, "slimmer", tmp_path, without="install.md")
    head = site.knowledge_base.repository.resolve("main")
    sent = decided(client.get("/promote", params={"ref": "slimmer"}), "gate")
    job = ended(client, client.post("/promote", data=sent))
    assert "The gate refused it; nothing moved." in job.text
    verdict = evaluate_release(site.knowledge_base, "slimmer")
    assert verdict.cached and not verdict.publishable
    page = client.get("/promote", params={"ref": "slimmer"})
    for shown in (job, page):
        assert verdict.label in shown.text
        assert shown.text.count('<li class="wrap">') == len(verdict.reasons)
    assert 'name="way" value="gate"' not in page.text  # it would say the same again
    assert site.knowledge_base.repository.resolve("main") == head


def test_past_the_gate_takes_a_reason_which_stays(client: httpx.Client, site: Site, tmp_path: Path) -> None:
    commit = candidate(site, "bare", tmp_path, without="security.md")
    repository = site.knowledge_base.repository
    head = repository.resolve("main")
    sent = decided(client.get("/promote", params={"ref": "bare"}), "override")
    for reason in ("", "   "):
        refused = client.post("/promote", data={**sent, "reason": reason})
        assert refused.status_code == 400 and "needs a reason" in refused.text
    assert repository.resolve("main") == head
    job = ended(client, client.post("/promote", data={**sent, "reason": "Legal asked for it"}))
    assert "Published as" in job.text
    released = repository.get_commit("main")
    assert commit in released.parents
    assert released.metadata["override"] == "Legal asked for it"
    assert "past the gate: Legal asked for it" in client.get("/releases").text


@pytest.mark.parametrize("moved", ["expected", "live"])
def test_what_was_decided_on_must_still_be_there(
    client: httpx.Client, site: Site, tmp_path: Path, moved: str
) -> None:
    candidate(site, f"late-{moved}", tmp_path)
    sent = decided(client.get("/promote", params={"ref": f"late-{moved}"}), "gate")
    reply = client.post("/promote", data={**sent, moved: "0" * 40})
    assert reply.status_code == 409 and "moved" in reply.text


def test_an_outdated_candidate_says_what_to_do(client: httpx.Client, site: Site, tmp_path: Path) -> None:
    page = client.get("/promote", params={"ref": candidate(site, "early", tmp_path)})
    assert decided(page, "override")
    (tmp_path / "early.md").unlink()
    (tmp_path / "news.md").write_text("# News\n\nThere is news.\n")
    ingest(site.knowledge_base, list_sources([str(tmp_path)]), IngestOptions(message="News"))
    page = client.get("/promote", params={"ref": "early"})
    assert "It cannot be promoted." in page.text and "rag merge main --into early" in page.text
    assert 'action="/promote' not in page.text


def test_only_an_admin_goes_past_the_gate(site: Site, tmp_path: Path) -> None:
    candidate(site, "wished", tmp_path)
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", site.knowledge_base, Live(site.knowledge_base), log)])
    with running(create_app(host)) as url, httpx.Client(base_url=url, follow_redirects=True) as client:
        keys = {}
        for role in ("admin", "writer", "reader"):
            reply = client.post("/keys", data={"name": role, "role": role})
            keys[role] = re.findall(r"plk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", reply.text)[0]
            client.post("/login", data={"key": keys["admin"]})
        client.post("/login", data={"key": keys["writer"]})
        page = client.get("/promote", params={"ref": "wished"})
        assert "Only an admin" in page.text and 'name="way" value="override"' not in page.text
        sent = {**decided(page, "gate"), "way": "override", "reason": "I want it"}
        head = site.knowledge_base.repository.resolve("main")
        assert client.post("/promote", data=sent).status_code == 403
        client.post("/login", data={"key": keys["reader"]})
        assert client.get("/promote", params={"ref": "wished"}).status_code == 403
        assert client.post("/promote", data={**sent, "way": "gate"}).status_code == 403
        assert "/promote" not in client.get("/releases").text
        assert site.knowledge_base.repository.resolve("main") == head
    log.close()
