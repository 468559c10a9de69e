"""Nobody is told of a document that is closed to them, through whichever door of a real server they ask.

Every document has a path and a word that stand nowhere else, so whatever a reply says of a closed one is
found in its bytes.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import visible
from api.access import Session
from api.hosting import Host, Hosted
from api.idempotency import Replies
from api.jobs import Job, Work
from api.keys import Caller, Role
from api.server import create_app
from api.serving import Live
from eval.evaluate import evaluate_release
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.running import running

GROUPS = ("hr", "board", "sales", "it")
SUBJECTS = ("travel", "salary", "server", "holiday", "invoice", "password", "contract", "office")
SHARED = "The canteen is open from eleven to two and serves soup every day."
DOCUMENTS = 40
ADMIN = Caller("", "test", "admin")


@dataclass(frozen=True)
class Filed:
    """A document of the test: its own word, and the rules that close it."""

    path: str
    canary: str
    subject: str
    rules: tuple[frozenset[str], ...]

    def open_to(self, groups: frozenset[str]) -> bool:
        return all(rule & groups for rule in self.rules)


@dataclass
class Door:
    """The server, the documents that it has, and a key for every set of groups."""

    client: httpx.Client
    documents: Sequence[Filed]
    keys: dict[frozenset[str], str]
    admin: str
    answers: list[str] = field(default_factory=list)
    chunks: int = 0
    replies: int = 0

    def ask(self, method: str, path: str, groups: frozenset[str], body: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[groups]}"}
        return self.client.request(method, path, json=body, headers=headers)

    def check(self, reply: httpx.Response, groups: frozenset[str]) -> None:
        """No word and no path of a closed document in any byte of a reply."""
        assert reply.status_code < 500, reply.text
        self.replies += 1
        self.chunks += reply.text.count('"chunk_id"')
        for document in self.documents:
            if not document.open_to(groups):
                assert document.canary not in reply.text, (document, groups, reply.request.url)
                assert document.path not in reply.text, (document, groups, reply.request.url)


def told(problem: httpx.Response) -> str:
    """What a problem says, without the id of the request."""
    return json.dumps({**problem.json(), "request_id": ""})


def write_documents(folder: Path, toml: Path, seed: int) -> list[Filed]:
    """Documents with random rules: in their front matter, by a pattern, by both, or none."""
    chance = random.Random(seed)
    patterns: dict[str, list[str]] = {}
    filed = []
    for number in range(DOCUMENTS):
        subject = chance.choice(SUBJECTS)
        canary = f"canary{chance.getrandbits(48):012x}"
        path = f"{chance.choice(('a', 'b', 'c'))}/{chance.getrandbits(40):010x}.md"
        rules = []
        lines = [f"# Note {number} about {subject}", ""]
        if chance.random() < 0.5:
            declared = chance.sample(GROUPS, chance.randint(0, 2))
            lines = ["---", f"allow: {json.dumps(declared)}", "---", *lines]
            rules.append(frozenset(declared))
        if chance.random() < 0.3:
            patterns[path] = chance.sample(GROUPS, chance.randint(1, 2))
            rules.append(frozenset(patterns[path]))
        lines += [
            f"The {subject} rule number {number} names {canary} and the amount of {number * 7} crowns.",
            "",
        ]
        if chance.random() < 0.4:
            lines += ["## Canteen", "", SHARED, ""]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("\n".join(lines))
        filed.append(Filed(path, canary, subject, tuple(rules)))
    base = toml.read_text().split("\n[access]")[0]
    table = "".join(f"{json.dumps(path)} = {json.dumps(groups)}\n" for path, groups in patterns.items())
    toml.write_text(f"{base}\n[access]\n{table}")
    return filed


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("access")
    made = KnowledgeBase.create(folder / "kb", models)
    sources = folder / "sources"
    filed = write_documents(sources, made.root / "plumbline.toml", seed=20261121)
    golden = [
        {"id": f"g{n}", "question": f"What does {f.canary} name?", "document": f.path, "answer": f.canary}
        for n, f in enumerate(filed[:10])
    ]
    rows = "".join(json.dumps(row) + "\n" for row in golden)
    (made.root / "golden" / "added.jsonl").write_text(rows)
    ingest(made, list_sources([str(sources)]), IngestOptions())
    # A second release without ten of them: what was deleted is closed in the older one as before.
    for document in filed[-10:]:
        (sources / document.path).unlink()
    ingest(made, list_sources([str(sources)]), IngestOptions(prune=True))
    log = AnswerLog(f"sqlite:///{folder / 'answers.sqlite'}")
    host = Host([Hosted("kb", made, Live(made), log)])
    sets = [frozenset(some) for n in range(len(GROUPS) + 1) for some in itertools.combinations(GROUPS, n)]
    keys = {some: host.keys.create("writer", "writer", groups=some, by=ADMIN)[0] for some in sets}
    admin, _ = host.keys.create("admin", "admin", by=ADMIN)
    with running(create_app(host)) as url, httpx.Client(base_url=url, timeout=300) as client:
        yield Door(client, filed, keys, admin)
    log.close()
    host.keys.close()


def questions(documents: Sequence[Filed]) -> st.SearchStrategy[str]:
    """About a subject, one document, the text that many share, or anything."""
    return st.one_of(
        st.sampled_from(SUBJECTS).map(lambda subject: f"What is the rule about {subject}?"),
        st.integers(0, len(documents)).map(lambda number: f"Which amount does rule number {number} name?"),
        st.just("When is the canteen open?"),
        st.text(min_size=1, max_size=40).map(lambda text: f"rule {text}"),
    )


def conditions(documents: Sequence[Filed]) -> st.SearchStrategy[list[str]]:
    """Conditions that try to find out whether a document is there."""
    return st.one_of(
        st.just([]),
        st.sampled_from(["path=a/*", "path!=a/*", "type=md", "heading~canteen", "meta.allow~hr"]).map(
            lambda one: [one]
        ),
        st.just(["changed>=2020-01-01"]),
    )


def knock(door: Door, data: st.DataObject) -> None:
    """One random request by a random caller through a random door."""
    groups = data.draw(st.sampled_from(list(door.keys)), "groups")
    ref = data.draw(st.sampled_from(["main", "main", "main~1"]), "ref")
    body = {"question": data.draw(questions(door.documents), "question"), "ref": ref}
    where = data.draw(conditions(door.documents), "where")
    way = data.draw(st.sampled_from(["search", "search", "query", "stream", "chat", "chat stream"]), "door")
    if way.startswith("chat"):
        asked = {"messages": [{"role": "user", "content": body["question"]}], "stream": way == "chat stream"}
        model = "kb" if ref == "main" else f"kb@{ref}"
        reply = door.ask("POST", "/v1/chat/completions", groups, {"model": model, **asked})
    elif way == "search":
        reply = door.ask("POST", "/v1/search", groups, {**body, "where": where, "top_k": 100})
    else:
        asked = {**body, "where": where, "top_k": 40, "stream": way == "stream"}
        reply = door.ask("POST", "/v1/query", groups, asked)
    assert reply.status_code == 200, reply.text
    door.check(reply, groups)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_answer_and_no_result_tells_of_a_closed_document(door: Door, data: st.DataObject) -> None:
    knock(door, data)


@pytest.mark.slow
def test_ten_thousand_chunks_and_none_of_a_closed_document(door: Door) -> None:
    door.chunks = 0

    @settings(max_examples=1500, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        knock(door, data)

    run()
    print(f"{door.chunks} chunks in {door.replies} replies, 0 of a closed document")
    assert door.chunks >= 10_000


def test_a_caller_finds_all_that_is_open_to_them(door: Door) -> None:
    for groups in door.keys:
        body = {"question": "What is the rule?", "top_k": 100}
        found = door.ask("POST", "/v1/search", groups, body).json()["results"]
        expected = {d.path for d in door.documents[:-10] if d.open_to(groups)}
        told = {path for result in found for path in (result["path"], *result["also_in"])}
        assert told == expected


LISTS = """
/v1/documents?limit=1000 /v1/documents?limit=1000&ref=main~1 /v1/releases /v1/releases/main
/v1/releases/main~1 /v1/diff?from=main~1&to=main /v1/diff?from=main&to=main~1 /v1/golden
/v1/evaluations /v1/jobs /v1/branches
/v1/tags /v1/models /healthz /metrics
/ /releases /release /release?ref=main~1 /diff?from=main~1 /golden /evaluations /documents
/documents?ref=main~1 /jobs /report /v1/reports
"""


@pytest.mark.parametrize("path", LISTS.split())
def test_no_list_tells_of_a_closed_document(door: Door, path: str) -> None:
    for groups in door.keys:
        reply = door.ask("GET", path, groups)
        assert reply.status_code == (404 if "report" in path else 200), reply.text
        door.check(reply, groups)


def test_counts_are_those_of_what_is_open(door: Door) -> None:
    for groups in door.keys:
        seen = [d for d in door.documents[:-10] if d.open_to(groups)]
        assert door.ask("GET", "/healthz", groups).json()["documents"] == len(seen)
        assert door.ask("GET", "/v1/documents?limit=1", groups).json()["total"] == len(seen)
        described = door.ask("GET", "/v1/releases/main", groups).json()
        assert (described["documents"], len(described["paths"])) == (len(seen), len(seen))
        metrics = door.ask("GET", "/metrics", groups).text
        assert f'plumbline_documents{{kb="kb"}} {sum(not d.rules for d in door.documents[:-10])}.0' in metrics
        golden = door.ask("GET", "/v1/golden", groups).json()
        assert golden["total"] == sum(d.open_to(groups) for d in door.documents[:10])
        deleted = door.ask("GET", "/v1/diff?from=main~1&to=main", groups).json()["documents"]["deleted"]
        assert deleted == sorted(d.path for d in door.documents[-10:] if d.open_to(groups))


@pytest.mark.parametrize("route", ["documents", "files"])
@pytest.mark.parametrize("ref", ["main", "main~1"])
def test_a_closed_document_is_not_there(door: Door, route: str, ref: str) -> None:
    for groups, document in itertools.product(list(door.keys)[::3], door.documents[::5]):
        reply = door.ask("GET", f"/v1/{route}/{document.path}?ref={ref}", groups)
        missing = door.ask("GET", f"/v1/{route}/a/nowhere.md?ref={ref}", groups)
        there = ref == "main~1" or document in door.documents[:-10]
        if document.open_to(groups) and there:
            assert reply.status_code == 200 and document.canary in reply.text
        else:
            assert reply.status_code == missing.status_code == 404
            assert told(reply).replace(document.path, "PATH") == told(missing).replace("a/nowhere.md", "PATH")


def test_an_answer_is_read_again_by_those_alone_who_could_have_been_given_it(door: Door) -> None:
    shown = hidden = 0
    for subject in SUBJECTS[:4]:
        body = {"question": f"What is the rule about {subject}?"}
        headers = {"Authorization": f"Bearer {door.admin}"}
        answer = door.client.post("/v1/query", json=body, headers=headers).raise_for_status().json()
        paths = {path for c in answer["contexts"] for path in (c["path"], *c["also_in"])}
        resting_on = [d for d in door.documents if d.path in paths]
        for groups in door.keys:
            reply = door.ask("GET", f"/v1/answers/{answer['id']}", groups)
            rated = door.ask("POST", f"/v1/answers/{answer['id']}/feedback", groups, {"rating": "up"})
            if all(d.open_to(groups) for d in resting_on):
                shown += 1
                assert (reply.status_code, rated.status_code) == (200, 204)
            else:
                hidden += 1
                assert (reply.status_code, rated.status_code) == (404, 404)
                door.check(reply, groups)
    assert hidden > 30
    own = door.ask("POST", "/v1/query", frozenset(), {"question": "What is the rule?"}).json()
    assert all(door.ask("GET", f"/v1/answers/{own['id']}", groups).json() == own for groups in door.keys)


def test_what_was_closed_stays_so_when_it_is_gone(
    knowledge_base: KnowledgeBase, sources: Path, tmp_path: Path
) -> None:
    """Golden questions, verdicts and reports outlive the document that they quote."""
    row = {"id": "pay", "question": "What is the canary pay?", "document": "pay.md", "answer": "canary 5000"}
    (knowledge_base.root / "golden" / "added.jsonl").write_text(json.dumps({**row, "state": "candidate"}))
    (sources / "pay.md").write_text("---\nallow: [board]\n---\n# Pay\n\nThe canary pay is 5000 crowns.\n")
    closed = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions()).commit
    (sources / "pay.md").unlink()
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(prune=True))
    evaluate_release(knowledge_base, "main", closed)
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", knowledge_base, Live(knowledge_base), log)])
    writer, _ = host.keys.create("writer", "writer", by=ADMIN)
    admin, _ = host.keys.create("admin", "admin", by=ADMIN)
    with running(create_app(host)) as url, httpx.Client(base_url=url, timeout=60) as client:
        for key, status, rows in ((writer, 404, 0), (admin, 200, 1)):
            client.headers["Authorization"] = f"Bearer {key}"
            assert client.get("/v1/golden").json()["total"] == rows
            assert ("canary" in client.get("/golden?state=candidate").text) == bool(rows)
            assert client.get("/v1/reports").status_code == client.get("/report").status_code == status
            assert len(client.get("/v1/releases/main").json()["verdicts"]) == rows
    paths = ("pay.md", "billing.md")
    work = Work(kind="delete", paths=paths, message="The pay is 5000", override="The board wants it")
    job = Job(id="1", created=datetime.now(UTC), work=work)
    shown: dict[Role, tuple[str, ...]] = {"writer": ("billing.md",), "admin": paths}
    for role, theirs in shown.items():
        session = Session(next(iter(host)), Caller("", role, role))
        shown_work = visible.job(session, job).work
        assert shown_work == (work if role == "admin" else Work(kind="delete", paths=theirs))
    log.close()
    host.keys.close()


def test_a_rollback_opens_nothing_for_whoever_does_not_see_it(
    knowledge_base: KnowledgeBase, sources: Path, tmp_path: Path
) -> None:
    (sources / "pay.md").write_text("# Pay\n\nThe pay is 5000 crowns.\n")
    opened = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions()).commit
    (sources / "pay.md").write_text("---\nallow: [board]\n---\n# Pay\n\nThe pay is 5000 crowns.\n")
    closed = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions()).commit
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", knowledge_base, Live(knowledge_base), log)])
    keys = {role: host.keys.create(role, role, by=ADMIN)[0] for role in ("writer", "admin")}
    form = {"ref": opened, "expected": closed}
    with running(create_app(host)) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {keys['writer']}"
        for reply in (
            client.post("/v1/rollback", json={"ref": opened}),
            client.post("/v1/rollback", json={"ref": opened, "reopen": True}),
            client.post("/rollback", data=form),
            client.post("/rollback", data={**form, "reopen": "yes"}),
        ):
            assert reply.status_code == 403 and "pay" not in reply.text
        assert "pay" not in client.get(f"/rollback?ref={opened}").text
        client.headers["Authorization"] = f"Bearer {keys['admin']}"
        refused = client.post("/v1/rollback", json={"ref": opened})
        assert (refused.status_code, refused.json()["title"]) == (409, "ReopensError")
        assert "pay.md" in refused.json()["detail"]
        assert client.post("/rollback", data=form).status_code == 409
        assert 'name="reopen"' in client.get(f"/rollback?ref={opened}").text
        assert knowledge_base.repository.resolve("main") == closed
        client.post("/v1/rollback", json={"ref": opened, "reopen": True}).raise_for_status()
        assert 'name="reopen"' not in client.get(f"/rollback?ref={closed}").text
        back = {"ref": closed, "expected": knowledge_base.repository.resolve("main")}
        assert client.post("/rollback", data=back).status_code == 303
    assert not knowledge_base.snapshot().access.open
    log.close()
    host.keys.close()


def test_an_idempotency_key_is_its_callers_own(tmp_path: Path) -> None:
    replies = Replies(tmp_path)
    with replies.claim("nightly", "a") as theirs, replies.claim("nightly", "b") as ours:
        theirs.keep("promote", {"job": "1"})
        assert theirs.known("promote") == {"job": "1"} and ours.known("rollback") is None
