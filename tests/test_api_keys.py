"""Keys: what opens a server, for whom, and what is written down of it."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from api.access import LOCAL, is_loopback
from api.audit import STARTED
from api.hosting import Host, Hosted
from api.keys import Caller, Key, Keys
from api.server import create_app
from api.serving import Live
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import NotFoundError, UnauthenticatedError, UsageError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.conftest import DOCUMENTS
from tests.running import RAG, rag_serve, running

QUESTION = {"question": "What is the default port of the server?"}


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'server.sqlite'}"


@pytest.fixture
def keys(database: str) -> Iterator[Keys]:
    made = Keys(database)
    yield made
    made.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[KnowledgeBase, Live]:
    """One release that all tests of this module serve; none of them changes it."""
    folder = tmp_path_factory.mktemp("keys")
    for name, text in DOCUMENTS.items():
        path = folder / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    made = KnowledgeBase.create(folder / "handbook", models)
    ingest(made, list_sources([str(folder / "sources")]), IngestOptions())
    return made, Live(made)


@pytest.fixture
def address(live: tuple[KnowledgeBase, Live], database: str) -> Iterator[str]:
    log = AnswerLog(database)
    host = Host([Hosted(name, *live, log) for name in ("handbook", "wiki")])
    with running(create_app(host)) as url:
        yield url
    log.close()
    host.keys.close()


def ask(address: str, key: str = "", path: str = "/v1/search", **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(address + path, json=QUESTION, headers={**sent, **headers}, timeout=60)


def random_part(secret: str) -> str:
    """What only the owner knows of a key; it may hold any sign of base64, the underscore as well."""
    return secret.split("_", 2)[2]


# -- the keys themselves -----------------------------------------------------------------------


def test_a_key_is_known_by_its_secret_alone(keys: Keys, tmp_path: Path) -> None:
    secret, key = keys.create("website", "reader", groups=["b", "a"], by=LOCAL)
    assert secret.startswith(key.prefix) and key.groups == ("a", "b")
    caller = keys.caller(secret)
    assert (caller.key_id, caller.role, caller.groups) == (key.id, "reader", frozenset({"a", "b"}))
    other, _ = keys.create("other", "admin", by=LOCAL)
    mixed = f"{key.prefix}{other.removeprefix('plk_').split('_', 1)[1]}"
    for wrong in ("", "plk_", secret[:-1], secret + "x", secret[:-1] + "\u00e9", mixed, secret.upper()):
        with pytest.raises(UnauthenticatedError, match="not known"):
            keys.caller(wrong)
    keys.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in kept and random_part(secret).encode() not in kept


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(keys: Keys, database: str) -> None:
    secret, key = keys.create("website", "reader", by=LOCAL)
    running_server = Keys(database)  # another process, so to say
    assert running_server.caller(secret)
    keys.revoke(key.id, by=LOCAL)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        running_server.caller(secret)
    assert [one.state for one in keys.list()] == ["revoked"]
    assert keys.revoke(key.id, by=LOCAL).revoked_at == keys.key(key.id).revoked_at
    assert running_server.exist()
    running_server.close()
    with pytest.raises(NotFoundError):
        keys.revoke("nobody", by=LOCAL)


def test_a_key_ends_when_it_was_said_to(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    secret, key = keys.create("website", "reader", expires_at=end, by=LOCAL)
    assert keys.caller(secret) and keys.key(key.id).expires_at == end
    monkeypatch.setattr(Key, "state", property(lambda key: "expired" if key.expires_at else "active"))
    with pytest.raises(UnauthenticatedError, match="expired"):
        keys.caller(secret)
    with pytest.raises(UsageError, match="expired already"):
        keys.create("late", "reader", expires_at=end - timedelta(hours=2), by=LOCAL)


def test_when_a_key_was_used_is_kept_to_the_minute(keys: Keys) -> None:
    secret, key = keys.create("website", "reader", by=LOCAL)
    assert keys.key(key.id).used_at is None
    keys.caller(secret)
    first = keys.key(key.id).used_at
    keys.caller(secret)
    assert first and keys.key(key.id).used_at == first


@pytest.mark.parametrize(
    ("name", "groups"), [("", []), (" ", []), ("x" * 101, []), ("a\nb", []), ("a", ["h r"])]
)
def test_names_that_cannot_be_are_refused(keys: Keys, name: str, groups: list[str]) -> None:
    with pytest.raises(UsageError):
        keys.create(name, "reader", groups=groups, by=LOCAL)
    assert not keys.exist()


def test_making_and_revoking_is_written_down_without_the_secret(keys: Keys) -> None:
    secret, key = keys.create("website", "writer", by=Caller("k1", "boss", "admin"))
    keys.revoke(key.id, by=LOCAL)
    revoked, created = keys.audit.entries(10)
    assert (created.action, created.name, created.key_id, created.outcome) == (
        "create key",
        "boss",
        "k1",
        "done",
    )
    assert created.about["role"] == "writer" and revoked.about["id"] == key.id
    assert random_part(secret) not in str([created, revoked])
    assert [entry.id for entry in keys.audit.entries(1, before=revoked.id)] == [created.id]


# -- the server --------------------------------------------------------------------------------


def test_without_keys_this_machine_is_answered_and_pages_of_others_are_not(address: str) -> None:
    assert ask(address).status_code == 200
    port = address.rsplit(":", 1)[1]
    for headers in (
        {"Host": f"evil.example:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
    ):
        refused = ask(address, **headers)
        assert (refused.status_code, refused.json()["title"]) == (401, "UnauthenticatedError"), headers
    assert ask(address, **{"Origin": address, "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_from_the_first_key_on_every_request_needs_one(address: str, keys: Keys) -> None:
    assert ask(address).status_code == 200
    secret, key = keys.create("website", "reader", by=LOCAL)
    refused = ask(address)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.headers["content-type"] == "application/problem+json"
    assert ask(address, secret).status_code == 200
    assert ask(address, secret[:-3] + "---").status_code == 401
    assert ask(address, Authorization="Basic eDp5").status_code == 401
    keys.revoke(key.id, by=LOCAL)
    assert ask(address, secret).status_code == 401
    assert ask(address).status_code == 401  # also when no key is left
    assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200
    assert httpx.get(f"{address}/readyz", timeout=60).status_code == 200


def test_every_route_but_the_health_ones_needs_a_key(address: str, keys: Keys) -> None:
    keys.create("website", "reader", by=LOCAL)
    described = httpx.get(f"{address}/openapi.json", timeout=60).json()
    open_routes = {"/healthz", "/readyz", "/v1/gate/lakefs"}
    tried = 0
    for path, methods in described["paths"].items():
        for method in methods:
            place = path.replace("{id}", "0" * 12).replace("{path}", "a").replace("{ref}", "main")
            reply = httpx.request(method, address + place.replace("{name}", "a"), timeout=60)
            if path not in open_routes:
                assert reply.status_code == 401, (method, path, reply.text)
                assert described["paths"][path][method]["security"], path
                tried += 1
    assert tried > 25


@pytest.mark.parametrize(
    ("role", "method", "path", "body", "status"),
    [
        ("reader", "POST", "/v1/tags", {"tag": "v1"}, 403),
        ("reader", "POST", "/v1/rollback", {}, 403),
        ("reader", "DELETE", "/v1/documents/team.txt", None, 403),
        ("reader", "GET", "/v1/keys", None, 403),
        ("writer", "GET", "/v1/keys", None, 403),
        ("writer", "GET", "/v1/audit", None, 403),
        ("writer", "POST", "/v1/promote", {"ref": "main", "override": "I say so"}, 403),
        ("writer", "POST", "/v1/branches", {"branch": "try", "source": "nowhere"}, 404),
        ("admin", "GET", "/v1/keys", None, 200),
    ],
)
def test_a_role_may_do_what_it_says(
    address: str, keys: Keys, role: str, method: str, path: str, body: object, status: int
) -> None:
    secret, _ = keys.create("someone", role, by=LOCAL)  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {secret}"}
    reply = httpx.request(method, address + path, json=body, headers=headers, timeout=60)
    assert reply.status_code == status
    if status == 403:
        assert "needs the role" in reply.json()["detail"] and role in reply.json()["detail"]


def test_a_key_is_for_its_knowledge_bases(address: str, keys: Keys) -> None:
    secret, _ = keys.create("wiki readers", "admin", knowledge_bases=["wiki"], by=LOCAL)
    nowhere, _ = keys.create("elsewhere", "reader", knowledge_bases=["other"], by=LOCAL)
    headers = {"Authorization": f"Bearer {secret}"}
    models = httpx.get(f"{address}/v1/models", headers=headers, timeout=60).json()["data"]
    assert {model["id"].partition("@")[0] for model in models} == {"wiki"}
    assert ask(address, secret).status_code == 200  # without a name: the first that is theirs
    hidden, missing = (ask(address, secret, f"/v1/search?kb={name}") for name in ("handbook", "nothing"))
    assert hidden.status_code == missing.status_code == 404
    said = [json.dumps({**reply.json(), "request_id": ""}) for reply in (hidden, missing)]
    assert said[0].replace("handbook", "X") == said[1].replace("nothing", "X")
    assert ask(address, nowhere).status_code == 403
    # Else the admin of one could make themselves a key for all.
    made = httpx.post(f"{address}/v1/keys", json={"name": "mine"}, headers=headers, timeout=60)
    assert made.status_code == 403


def test_the_names_of_knowledge_bases_are_told_to_those_who_may_use_them(address: str, keys: Keys) -> None:
    def get(path: str, key: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(address + path, headers=headers, timeout=60)

    def named(key: str = "") -> set[str]:
        return set(get("/readyz", key).raise_for_status().json()["knowledge_bases"])

    assert named() == {"handbook", "wiki"}  # no key was made yet: whoever asks from here may use all
    (one, _), (every, _) = (
        keys.create("some", "admin", knowledge_bases=scope, by=LOCAL) for scope in (["wiki"], [])
    )
    assert (named(), named("made-up"), named(one), named(every)) == (
        set(),
        set(),
        {"wiki"},
        {"handbook", "wiki"},
    )
    assert get("/readyz").json()["status"] == "ready"
    assert (get("/metrics").status_code, get("/metrics", one).status_code) == (401, 403)
    assert 'kb="handbook"' in get("/metrics", every).text
    for reply in (get("/healthz?kb=nothing"), get("/healthz?kb=nothing", one), get("/metrics", one)):
        assert reply.status_code in (403, 404) and "handbook" not in reply.text
    assert "wiki" not in get("/healthz?kb=nothing").text


def test_keys_are_made_listed_and_revoked_over_http(address: str, keys: Keys) -> None:
    secret, _ = keys.create("boss", "admin", by=LOCAL)
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as boss:
        made = boss.post("/v1/keys", json={"name": "website", "groups": ["press"]})
        assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
        assert ask(address, made.json()["key"]).status_code == 200
        shown = boss.get("/v1/keys").json()
        assert [(key["name"], key["created_by"], key["groups"]) for key in shown] == [
            ("website", "boss", ["press"]),
            ("boss", "local", []),
        ]
        assert "key" not in shown[0] and "sha256" not in shown[0]
        assert boss.delete(f"/v1/keys/{made.json()['id']}").json()["state"] == "revoked"
        assert ask(address, made.json()["key"]).status_code == 401
        assert boss.delete(f"/v1/keys/{'0' * 12}").status_code == 404
        actions = [entry["action"] for entry in boss.get("/v1/audit").json()["entries"]]
        assert actions == ["revoke key", "create key", "create key"]
        for most, status in ((2**63 - 1, 200), (2**63, 422)):  # a database counts no further
            assert boss.get("/v1/audit", params={"before": most}).status_code == status
        for moment in (4102444800, "4102444800", "2100-01-01"):
            assert boss.post("/v1/keys", json={"name": "a", "expires_at": moment}).status_code == 422
        made = boss.post("/v1/keys", json={"name": "a", "expires_at": "2100-01-01T00:00:00Z"})
        assert made.json()["expires_at"] == "2100-01-01T00:00:00Z"


def test_what_is_changed_is_written_down_before_it_is_done(address: str, keys: Keys) -> None:
    secret, key = keys.create("deployer", "writer", by=LOCAL)
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as writer:
        assert writer.post("/v1/tags", json={"tag": "audited", "ref": "main"}).status_code == 201
        assert writer.post("/v1/tags", json={"tag": "audited", "ref": "nowhere"}).status_code == 404
        assert writer.delete("/v1/tags/audited").status_code == 204
        assert writer.get("/v1/tags").status_code == 200
    found = [(e.action, e.outcome, e.kb, e.key_id) for e in keys.audit.entries(3)]
    assert found == [
        ("delete_tag", "done", "handbook", key.id),
        ("make_tag", "refused: NotFoundError", "handbook", key.id),
        ("make_tag", "done", "handbook", key.id),
    ]
    assert keys.audit.entries(1)[0].about == {"name": "audited"}
    assert all(entry.outcome != STARTED for entry in keys.audit.entries(10))


def test_a_browser_may_send_the_key_as_a_cookie_from_our_pages_only(address: str, keys: Keys) -> None:
    secret, _ = keys.create("person", "reader", by=LOCAL)
    cookie = {"Cookie": f"plumbline_key={secret}"}
    assert ask(address, **cookie, Origin=address).status_code == 200
    assert ask(address, **cookie, Origin="http://evil.example").status_code == 401
    assert ask(address, **cookie, **{"Sec-Fetch-Site": "cross-site"}).status_code == 401


def test_a_key_is_in_no_log(address: str, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret, _ = keys.create("website", "reader", by=LOCAL)
    for sent in (secret, secret[:-1] + "-"):
        ask(address, sent)
        ask(address, sent, "/v1/nowhere")
    assert random_part(secret)[:-1] not in caplog.text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
    + [("::", False), ("", False), ("localhost.evil.example", False), ("10.0.0.1", False)],
)
def test_loopback_is_what_can_only_mean_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


# -- the command line --------------------------------------------------------------------------


def rag(*words: str, code: int = 0) -> str:
    done = subprocess.run([*RAG, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr if code else done.stdout


def test_other_addresses_are_served_with_keys_only(live: tuple[KnowledgeBase, Live]) -> None:
    root = str(live[0].root)
    refused = rag("serve", "--kb", root, "--host", "0.0.0.0", "--port", "0", code=2)
    assert "rag key create" in refused
    made = json.loads(
        rag("key", "create", "website", "--group", "hr", "--expires", "90d", "--kb", root, "--json")
    )
    assert (made["role"], made["groups"], made["state"]) == ("reader", ["hr"], "active")
    with rag_serve(Path(root), "--host", "0.0.0.0") as (_, url):
        assert ask(url).status_code == 401
        assert ask(url, made["key"]).status_code == 200
        assert "revoked" in rag("key", "revoke", made["prefix"], "--kb", root)
        assert ask(url, made["key"]).status_code == 401
    assert made["id"] in rag("key", "list", "--kb", root) and made["key"] not in rag(
        "key", "list", "--kb", root
    )
    trail = json.loads(rag("audit", "--kb", root, "--json"))
    assert [entry["action"] for entry in trail] == ["revoke key", "create key"]
    assert rag("key", "create", "x", "--expires", "soon", "--kb", root, code=2)
