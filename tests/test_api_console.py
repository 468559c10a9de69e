"""The console over plain HTTP, as a browser without JavaScript uses it."""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from api.console.charts import forest, knots
from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.console_site import PAYLOADS, Site, ended
from tests.console_site import site as site
from tests.running import running

PAGES = (
    "/",
    "/releases",
    "/release?ref=main",
    "/diff?from=first&to=main",
    "/diff/document?path=install.md&from=first&to=main",
    "/rollback?ref=first",
    "/promote?ref=slim",
    "/evaluations",
    "/evaluation?ref=slim",
    "/golden",
    "/golden?state=approved",
    "/documents",
    "/document?path=install.md",
    "/jobs",
    "/report",
    "/keys",
    "/login",
)


class _Read(HTMLParser):
    """Collects the text of a page, and refuses what would run or fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert tag not in ("img", "iframe", "object", "embed", "base", "style"), tag
        assert tag != "script" or str(given.get("src")).startswith("/static/app.js"), given
        assert not any(name.startswith("on") or name == "style" for name in given), given
        for name in ("src", "href", "action", "formaction"):
            assert re.match(r"[/#](?!/)", given.get(name) or "/"), given

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: str) -> str:
    """The text of a page in which nothing runs, and that fetches nothing from elsewhere."""
    reader = _Read()
    reader.feed(page)
    return reader.text


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=60, follow_redirects=True) as made:
        yield made


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_and_runs_nothing_of_its_own(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 200, reply.text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert reply.text.rstrip().endswith("</html>")
    harmless(reply.text)


def test_an_answer_leads_to_the_exact_quote(client: httpx.Client) -> None:
    reply = client.post("/ask", data={"question": "What is the default port of the server?"})
    assert reply.url.path.startswith("/answers/")
    assert '<a class="cite" href="#source-a-1"' in reply.text and 'id="source-a-1"' in reply.text
    assert "<mark>The default port of the server is 9000.</mark>" in reply.text


def test_two_releases_answer_side_by_side(client: httpx.Client) -> None:
    asked = {"question": "What is the default port of the server?", "ref": "first", "against": "main"}
    reply = client.post("/ask", data=asked)
    assert reply.url.path == "/compare"
    assert "is 8420.</mark>" in reply.text and "is 9000.</mark>" in reply.text
    assert "answer differently" in reply.text


def test_an_answer_streams_to_a_script(client: httpx.Client) -> None:
    asked = {"question": "What is the default port of the server?"}
    reply = client.post("/ask", data=asked, headers={"Accept": "text/event-stream"})
    events = re.findall(r"^event: (\w+)$", reply.text, re.M)
    assert events[0] == "retrieval" and events[-2:] == ["citations", "done"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_is_asked_and_quoted_is_text(client: httpx.Client, payload: str) -> None:
    reply = client.post("/ask", data={"question": f"What does the wombat say? {payload}"})
    assert reply.status_code == 200
    assert payload in harmless(reply.text)


def test_a_correction_becomes_a_golden_candidate(client: httpx.Client) -> None:
    answer = client.post("/ask", data={"question": "How many requests may a key send?"})
    said = {"rating": "down", "correction": "600 per minute", "golden": "yes"}
    reply = client.post(f"{answer.url.path}/feedback", data=said)
    assert "waits in the" in reply.text
    waiting = client.get("/golden?state=candidate").text
    assert "600 per minute" in waiting
    client.post("/golden", data={"id": "old", "state": "retired"}).raise_for_status()
    assert "Who gives refunds?" in client.get("/golden?state=retired").text
    review, added = client.get("/v1/audit?limit=2").raise_for_status().json()["entries"]
    assert (review["action"], review["outcome"]) == ("review", "done")
    assert review["about"] == {"ids": ["old"], "state": "retired"}
    assert (added["action"], added["outcome"], added["kb"]) == ("add_golden", "done", "kb")
    assert added["about"]["ids"][0].startswith("how-many-requests")


def test_many_golden_questions_are_decided_on_at_once(client: httpx.Client) -> None:
    for number in range(3):
        row = {"id": f"many-{number}", "question": f"Where is wing {number}?", "state": "candidate"}
        client.post("/v1/golden", json=row).raise_for_status()
    page = client.get("/golden", params={"state": "candidate"}).text
    boxes = re.findall(r'<input type="checkbox" name="id" value="([^"]+)"', page)
    assert {"many-0", "many-1", "many-2"} <= set(boxes) and " checked>" not in page
    ticked = client.get("/golden", params={"state": "candidate", "chosen": "all"}).text
    assert ticked.count(" checked>") == len(boxes)
    form = {"id": ["many-0", "many-1"], "state": "approved", "back": "candidate"}
    reply = client.post("/golden", data=form)
    assert "2 questions approved." in reply.text and 'value="many-1"' not in reply.text
    # A row's own button decides on that row, whatever else is ticked.
    reply = client.post("/golden?only=many-2", data={"id": ["many-0"], "state": "retired"})
    assert "1 question retired." in reply.text
    states = {row["id"]: row["state"] for row in client.get("/v1/golden").json()["questions"]}
    assert [states[f"many-{number}"] for number in range(3)] == ["approved", "approved", "retired"]
    none = client.post("/golden", data={"state": "approved"})
    assert none.status_code == 400 and "No question is ticked" in none.text


def test_documents_are_uploaded_into_a_folder(client: httpx.Client) -> None:
    facts = {"files": ("printer.md", b"# Printer\n\nThe printer stands in room twelve.\n")}
    reply = client.post("/documents", data={"folder": " guides/office/ "}, files=facts)
    assert "guides/office/printer.md" in reply.text
    assert "Published as" in ended(client, reply).text
    assert "guides/office/printer.md" in client.get("/documents").text
    for folder in ("../outside", "a//b", "x" * 501):
        refused = client.post("/documents", data={"folder": folder}, files=facts)
        assert refused.status_code == 400, folder
    late = [("files", facts["files"]), ("folder", (None, b"guides"))]
    assert client.post("/documents", files=late).status_code == 400
    assert '<option value="api">' in client.get("/documents").text


@pytest.mark.parametrize("path", ["/evaluation?ref=slim", "/rollback?ref=first", "/promote?ref=slim"])
def test_headings_say_what_a_release_is(client: httpx.Client, path: str) -> None:
    page = client.get(path).text
    heading = re.search("<h1>(.*)</h1>", page)
    assert heading and ("Without billing" in heading[1] or "First" in heading[1])
    assert not re.search(r"<(h1|h2|title)[^>]*>[^<]*[0-9a-f]{10}[^<]*<", page)


def test_a_long_difference_says_that_it_is_not_all(client: httpx.Client, site: Site, tmp_path: Path) -> None:
    lines = [f"Room {number} is on floor {number % 7}." for number in range(9000)]
    for name, text in (
        ("rooms", lines),
        ("rooms-later", [*lines[:8500], "Room 9 is closed.", *lines[8500:]]),
    ):
        site.knowledge_base.repository.create_branch(name, "main" if name == "rooms" else "rooms")
        (tmp_path / "rooms.txt").write_text("\n".join(text))
        ingest(site.knowledge_base, list_sources([str(tmp_path)]), IngestOptions(branch=name))
    page = client.get("/diff/document?path=rooms.txt&from=rooms&to=rooms-later").text
    assert "up to 4,000 lines" in page and "1 to 4,000 of 9,000" in page and "the same in both" in page
    for expected in ("4,001 to 8,000", "8,001 to 9,00"):
        following = re.search(r'class="button" href="([^"]+)">Compare the next lines', page)
        assert following
        page = client.get(html.unescape(following[1])).text
        assert expected in page
    assert "+Room 9 is closed." in page and "This is the last part." in page


def test_a_rollback_serves_the_release_again(client: httpx.Client, site: Site) -> None:
    head = site.knowledge_base.repository.resolve("main")
    target = site.knowledge_base.repository.resolve("first")
    page = client.get("/rollback", params={"ref": "first"}).text
    assert f'name="expected" value="{head}"' in page and f'name="ref" value="{target}"' in page
    form = {"ref": target, "expected": head}
    reply = client.post("/rollback", data=form)
    assert "Rolled back" in reply.text
    answer = client.post("/ask", data={"question": "What is the default port of the server?"})
    assert "8420" in answer.text
    again = client.post("/rollback", data=form)
    assert again.status_code == 409 and "That did not work" in again.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "null"},
    ],
)
def test_no_other_site_can_post(client: httpx.Client, site: Site, headers: dict[str, str]) -> None:
    head = site.knowledge_base.repository.resolve("main")
    form = {"ref": "first", "expected": head}
    assert client.post("/rollback", data=form, headers=headers).status_code in (401, 403)
    assert site.knowledge_base.repository.resolve("main") == head


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/release?ref=nowhere", 404),
        ("/answers/none", 404),
        ("/document?path=none.md", 404),
        ("/diff?to=main", 422),
        ("/static/../server.py", 404),
        ("/static/app.py", 404),
        ("/?kb=other", 404),
    ],
)
def test_errors_are_pages(client: httpx.Client, path: str, status: int) -> None:
    reply = client.get(path)
    assert reply.status_code == status
    assert path.startswith("/static/..") or "That did not work" in reply.text


def test_the_theme_is_remembered_and_leads_nowhere_else(client: httpx.Client) -> None:
    reply = client.post("/theme", data={"theme": "dark", "back": "https://elsewhere.example//x?y=1"})
    assert 'data-theme="dark"' in client.get("/").text
    assert reply.history[0].headers["location"] == "/x?y=1"


def test_the_report_tells_the_night_and_leads_to_all_of_it(client: httpx.Client) -> None:
    found = re.search(r'href="(/v1/reports/[0-9-]+/html)"', client.get("/report").text)
    assert found and client.get(found[1]).headers["content-security-policy"].startswith("sandbox;")


def test_with_keys_a_browser_signs_in_and_out(empty_kb: KnowledgeBase, tmp_path: Path) -> None:
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", empty_kb, Live(empty_kb), log)])
    with running(create_app(host)) as url, httpx.Client(base_url=url, follow_redirects=True) as client:
        reply = client.post("/keys", data={"name": "boss", "role": "admin"})
        found = re.search(r"plk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", reply.text)
        assert found
        reply = client.get("/releases?kb=kb")
        assert reply.url.path == "/login" and found[0] not in reply.text
        assert client.post("/login", data={"key": "plk_none"}).status_code == 401
        reply = client.post("/login", data={"key": found[0], "back": "//elsewhere.example/releases?kb=kb"})
        assert str(reply.url) == f"{url}/releases?kb=kb" and reply.status_code == 200
        cookie = reply.history[0].headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert "boss" in client.get("/keys").text and found[0] not in client.get("/keys").text
        client.post("/logout")
        assert client.get("/").url.path == "/login"
    log.close()


# -- charts ------------------------------------------------------------------------------------


def _entry(commit: str, parent: str, verdict: str = "PASS") -> dict[str, object]:
    return {"commit": commit, "parents": [parent], "verdict": verdict, "evaluated": ""}


def test_candidates_stand_above_the_release_they_were_made_from() -> None:
    main = [_entry("c", "b"), _entry("b", "a"), _entry("a", "0")]
    side = [_entry("y", "x", "FAIL"), _entry("x", "a")]
    drawn = knots(main, [side, [_entry("z", "b", "UNEVALUATED")]])
    assert [(knot.entry["commit"], knot.lane) for knot in drawn] == [
        ("c", 0),
        ("z", 1),
        ("b", 0),
        ("y", 1),
        ("x", 1),
        ("a", 0),
    ]
    assert [knot.kind for knot in drawn] == ["good", "unsure", "good", "bad", "good", "good"]
    assert drawn[0].live and not drawn[0].above and not drawn[-1].below
    assert drawn[-1].forks == (1,) and drawn[3].through == (0,)


def test_a_stick_left_of_its_margin_is_bad_only_when_it_is_credibly_worse() -> None:
    metric = {"name": "recall", "candidate": 0.5, "baseline": 0.6, "n": 9, "margin": 0.05}
    cases = {(-0.2, -0.3, -0.1): "bad", (-0.02, -0.1, 0.05): "unsure", (0.01, -0.02, 0.04): "good"}
    for (delta, low, high), kind in cases.items():
        plot = forest([{**metric, "delta": delta, "interval": (low, high)}])
        assert plot is not None
        stick = plot.sticks[0]
        assert stick.kind == kind and plot.left <= stick.low <= stick.point <= stick.high <= plot.right
        assert stick.margin is not None and (stick.point < stick.margin) == (delta < -0.05)
    assert forest([{**metric, "delta": None, "interval": None}]) is None


@pytest.mark.parametrize(
    ("back", "address"),
    [
        ("/golden?state=stale", "/golden?state=stale"),
        ("https://elsewhere.example/a", "/a"),
        ("//elsewhere.example", "/"),
        ("/\\elsewhere.example", "/elsewhere.example"),
        ("//[", "/"),
        ("javascript:alert(1)", "/alert(1)"),
    ],
)
def test_no_form_leads_to_another_site(client: httpx.Client, back: str, address: str) -> None:
    reply = client.post("/theme", data={"theme": "dark", "back": back}, follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (303, address)
    assert client.get("/login", params={"back": back}).status_code == 200
