"""What only collections on a server can get wrong; the rest is in test_knowledge_base_segments."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.chroma_server import ServerIndex
from knowledge_base.errors import DamagedError, UnauthorizedError, UnavailableError, UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.retention import Retention, gc
from rag.engine import Engine

VECTORS: NDArray[np.float16] = np.eye(40, 16, dtype=np.float16) + np.float16(0.25)


@pytest.fixture
def index(chroma_server: str) -> str:
    return chroma_server


def collections(server: ServerIndex) -> list[str]:
    with server._talking() as client:
        return sorted(found.name for found in server._all(client))


def test_two_knowledge_bases_on_one_server_never_meet(chroma_server: str, tmp_path: Path) -> None:
    one, other = ServerIndex(chroma_server, "one"), ServerIndex(chroma_server, "other")
    one.build(tmp_path, "segment", VECTORS)
    assert other.check("segment", VECTORS) is None
    with pytest.raises(DamagedError, match="is not there"):
        other.open(tmp_path, "segment", VECTORS)
    other.build(tmp_path, "segment", VECTORS[:5])
    other.drop(collections(other))
    _, collection = one.open(tmp_path, "segment", VECTORS)
    assert one.query(collection, VECTORS[7].astype(np.float32), 1) == [7]
    one.drop(collections(one))


def test_a_sealed_collection_is_shared_and_one_of_other_vectors_is_not(
    chroma_server: str, tmp_path: Path
) -> None:
    mine, yours = ServerIndex(chroma_server, "shared"), ServerIndex(chroma_server, "shared")
    mine.build(tmp_path, "segment", VECTORS)
    _, before = mine.open(tmp_path, "segment", VECTORS)
    yours.build(tmp_path, "segment", VECTORS)
    assert yours.open(tmp_path, "segment", VECTORS)[1].id == before.id
    with pytest.raises(DamagedError, match="of other vectors"):
        yours.open(tmp_path, "segment", VECTORS[::-1])
    yours.build(tmp_path, "segment", VECTORS, fresh=True)
    assert yours.open(tmp_path, "segment", VECTORS)[1].id != before.id
    mine.drop(collections(mine))


@pytest.mark.parametrize("damage", ["missing row", "changed row", "more rows", "no seal"])
def test_damage_is_found_and_mended(chroma_server: str, tmp_path: Path, damage: str) -> None:
    server = ServerIndex(chroma_server, f"damage {damage}")
    server.build(tmp_path, "segment", VECTORS)
    _, collection = server.open(tmp_path, "segment", VECTORS)
    if damage == "missing row":
        collection.delete(ids=["3"])
    elif damage == "more rows":
        collection.add(ids=["99"], embeddings=VECTORS[:1].astype(np.float32))
    elif damage == "changed row":
        collection.update(ids=["3"], embeddings=VECTORS[:1].astype(np.float32))
    else:
        collection.modify(metadata={"made": 1})
    assert server.check("segment", VECTORS)
    server.build(tmp_path, "segment", VECTORS, fresh=damage == "changed row")
    assert server.check("segment", VECTORS) is None
    server.drop(collections(server))


def test_machines_that_upload_one_segment_at_once_end_with_one_collection(
    chroma_server: str, tmp_path: Path
) -> None:
    servers = [ServerIndex(chroma_server, "race") for _ in range(4)]
    threads = [
        threading.Thread(target=server.build, args=(tmp_path, "segment", VECTORS)) for server in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(collections(servers[0])) == 1
    assert servers[0].check("segment", VECTORS) is None
    servers[0].drop(collections(servers[0]))


def test_a_half_upload_leaves_nothing_behind(
    chroma_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerIndex(chroma_server, "half")
    monkeypatch.setattr(server, "_difference", lambda *_: "lost 1 vectors")
    with pytest.raises(DamagedError, match="lost 1 vectors"):
        server.build(tmp_path, "segment", VECTORS)
    assert collections(server) == []


def test_a_release_on_a_server_answers_as_one_in_folders(
    knowledge_base: KnowledgeBase, tmp_path: Path, sources: Path
) -> None:
    embedded = KnowledgeBase.create(tmp_path / "embedded", knowledge_base.models)
    ingest(embedded, list_sources([str(sources)]), IngestOptions(prune=True))
    assert knowledge_base.release().manifest == embedded.release().manifest
    for question in ("When is a refund paid?", "Who founded the company?"):
        here, there = Engine.open(knowledge_base).ask(question), Engine.open(embedded).ask(question)
        assert (here.answer, here.citations[0].quote) == (there.answer, there.citations[0].quote)


def test_a_collection_that_vanishes_while_it_serves_is_made_again(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    before = [result.chunk_id for result in engine.search("refund")]
    assert knowledge_base.index is not None
    knowledge_base.index.drop(collections(knowledge_base.index))
    assert [result.chunk_id for result in engine.search("refund")] == before
    assert not list(fsck(knowledge_base))


def test_gc_drops_collections_that_nothing_uses(
    knowledge_base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = knowledge_base.index
    assert server is not None
    server.build(knowledge_base.cache, "idle", VECTORS)
    assert gc(knowledge_base, Retention()).collections == (), "somebody may be about to commit it"
    monkeypatch.setattr("knowledge_base.chroma_server._YOUNG_SECONDS", -10)
    assert [
        name.rpartition("-")[2] for name in gc(knowledge_base, Retention(), dry_run=False).collections
    ] == ["idle"]
    (ref,) = knowledge_base.release().manifest.segments
    assert [name.rpartition("-")[2] for name in collections(server)] == [ref.id]


def test_a_server_that_is_down_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        ServerIndex("http://127.0.0.1:9", "x").build(tmp_path, "segment", VECTORS)


@pytest.mark.parametrize("url", ["chroma", "ftp://chroma", "http://", "http://chroma/api"])
def test_a_wrong_address_is_the_callers_mistake(url: str) -> None:
    with pytest.raises(UsageError):
        ServerIndex(url, "x")
    with pytest.raises(UsageError):
        ServerIndex("http://chroma", "x", header="no colon")


# -- a proxy in front --------------------------------------------------------------------------


@contextmanager
def proxy(target: str, wanted: str) -> Iterator[str]:
    """Passes on what comes with the header `Authorization: wanted`, and refuses the rest."""
    import httpx

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = 401, b"no"
            if self.headers.get("authorization") == wanted:
                headers = {"content-type": "application/json"}
                answer = httpx.request(self.command, target + self.path, content=body, headers=headers)
                status, content = answer.status_code, answer.content
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _pass

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_header_opens_a_proxy_in_front(chroma_server: str, tmp_path: Path) -> None:
    with proxy(chroma_server, "Bearer secret") as url:
        with pytest.raises(UnauthorizedError, match="refused the credentials"):
            ServerIndex(url, "proxied").build(tmp_path, "segment", VECTORS)
        server = ServerIndex(url, "proxied", header="Authorization: Bearer secret")
        server.build(tmp_path, "segment", VECTORS)
        assert server.check("segment", VECTORS) is None
        server.drop(collections(server))
