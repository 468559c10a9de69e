"""A lakeFS server for tests: its REST API over a real socket, checked against the vendor's OpenAPI file.

No lakeFS can be installed where the tests run. `LakeFSServer` speaks the part of the API that Plumbline
uses; with the vendor's file at hand every request and every answer is held against it. What it gets
wrong only a real server can tell: the behaviour suite runs against one that
PLUMBLINE_TEST_LAKEFS_ENDPOINT names.
"""

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.lakefs_actions import Actions
from tests.lakefs_model import Entry, Refusal, Repository, Store
from tests.openapi import Specification

KEY, SECRET = "AKIAIOSFOLKFSSAMPLES", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@dataclass
class Request:
    """One request as it came, and what the OpenAPI file calls it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    number: int = 0
    operation: str = ""

    def one(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.one(name).lower() == "true"

    def json(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(self.body)
            return value
        except ValueError as error:
            raise Refusal(400, f"invalid body: {error}") from error


@dataclass
class Fault:
    """What goes wrong with a request: a status, a connection closed before or after it is done, a pause.

    `seconds` is a pause before the work, `late` one between the work and its answer.
    """

    status: int = 0
    drop: str = ""
    seconds: float = 0.0
    late: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200) -> "Answer":
        return cls(status, json.dumps(value).encode(), "application/json")


class LakeFSServer:
    """Listens on a free port of the loopback; a context manager that stops at the end of the block.

    `requests` lists what came, `violations` what broke the OpenAPI file, and `fault` is asked about
    each request before it is served.
    """

    def __init__(self, specification: Specification | None = None) -> None:
        self.actions = Actions()
        self.store = Store(self.actions.run)
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.busy = 0
        self.key = (KEY, SECRET)
        self.specification = specification
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"lakefs": self})
        self._http = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "LakeFSServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self) -> dict[str, str]:
        """lakeFS's own variables that lead here."""
        return {
            "LAKECTL_SERVER_ENDPOINT_URL": self.endpoint,
            "LAKECTL_CREDENTIALS_ACCESS_KEY_ID": self.key[0],
            "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY": self.key[1],
            "LAKECTL_CONFIG_FILE": "/nonexistent/lakectl.yaml",
        }

    def counts(self) -> Counter[str]:
        """How many requests of each operation came."""
        return Counter(request.operation for request in self.requests)

    def wait(self) -> None:
        """Wait until no request is being worked on, those included that their client gave up."""
        while self.busy:
            time.sleep(0.01)

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            request.number = len(self.requests)
            self.busy += 1

    def done(self) -> None:
        with self._lock:
            self.busy -= 1

    # -- answering -----------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Check, serve, check again."""
        operation = self.specification.operation(request.method, request.path) if self.specification else None
        if self.specification and operation is None:
            self.violations.append(f"no such operation: {request.method} {request.path}")
            return Answer.of({"message": "invalid API endpoint"}, 404)
        content_type = request.headers.get("content-type", "").partition(";")[0]
        if operation and self.specification:
            faults = self.specification.check_request(operation, request.query, content_type, request.body)
            if faults:
                self.violations += [f"request {operation['operationId']}: {fault}" for fault in faults]
                return Answer.of({"message": "; ".join(faults)}, 400)
        try:
            self._authenticate(request)
            answer = self._route(request)
        except Refusal as refusal:
            answer = Answer.of(refusal.body, refusal.status)
        if operation and self.specification:
            body = b"" if request.method == "HEAD" else answer.body
            faults = self.specification.check_response(operation, answer.status, answer.content_type, body)
            self.violations += [f"answer {operation['operationId']}: {fault}" for fault in faults]
        return answer

    def _authenticate(self, request: Request) -> None:
        expected = "Basic " + base64.b64encode(":".join(self.key).encode()).decode()
        if request.headers.get("authorization") != expected:
            raise Refusal(401, "error authenticating request")

    def _route(self, request: Request) -> Answer:
        parts = [unquote(part) for part in request.path.removeprefix("/api/v1/").split("/")]
        for method, pattern, name in _ROUTES:
            wanted = pattern.split("/")
            if method == request.method and len(wanted) == len(parts):
                pairs = list(zip(wanted, parts, strict=True))
                if all(want == part or want.startswith("{") for want, part in pairs):
                    names = {want.strip("{}"): part for want, part in pairs if want.startswith("{")}
                    request.operation = name
                    repository = names.pop("repository", None)
                    held = [self.store.get(repository)] if repository else []
                    found: Answer = getattr(self, f"_{name}")(request, *held, **names)
                    return found
        raise Refusal(404, "invalid API endpoint")

    # -- repositories --------------------------------------------------------------------------

    def _get_config(self, request: Request) -> Answer:
        storage = {
            "blockstore_type": "mem",
            "blockstore_namespace_example": "mem://example/",
            "blockstore_namespace_ValidityRegex": "^mem://",
            "pre_sign_support": False,
            "pre_sign_support_ui": False,
            "import_support": False,
            "import_validity_regex": "",
        }
        return Answer.of({"version_config": {"version": "double"}, "storage_config": storage})

    def _create_repository(self, request: Request) -> Answer:
        body = request.json()
        made = self.store.create(
            body["name"], body["storage_namespace"], body.get("default_branch") or "main"
        )
        return Answer.of(made.as_json(), 201)

    def _list_repositories(self, request: Request) -> Answer:
        return _page(request, sorted(self.store.repositories), lambda name: self.store.get(name).as_json())

    def _get_repository(self, request: Request, repository: Repository) -> Answer:
        return Answer.of(repository.as_json())

    def _delete_repository(self, request: Request, repository: Repository) -> Answer:
        del self.store.repositories[repository.id]
        return Answer(204)

    # -- refs ----------------------------------------------------------------------------------

    def _create_branch(self, request: Request, repository: Repository) -> Answer:
        body = request.json()
        with repository.lock:
            commit = repository.create_branch(body["name"], body["source"], bool(body.get("hidden")))
        return Answer(201, commit.encode(), "text/html")  # no JSON, as the file says

    def _get_branch(self, request: Request, repository: Repository, branch: str) -> Answer:
        return Answer.of({"id": branch, "commit_id": repository.branch(branch).commit})

    def _list_branches(self, request: Request, repository: Repository) -> Answer:
        shown = request.flag("show_hidden")
        names = sorted(name for name, branch in repository.branches.items() if shown or not branch.hidden)
        return _page(request, names, lambda name: {"id": name, "commit_id": repository.branches[name].commit})

    def _delete_branch(self, request: Request, repository: Repository, branch: str) -> Answer:
        with repository.lock:
            repository.delete_branch(branch)
        return Answer(204)

    def _create_tag(self, request: Request, repository: Repository) -> Answer:
        body = request.json()
        return Answer.of({"id": body["id"], "commit_id": repository.create_tag(body["id"], body["ref"])}, 201)

    def _get_tag(self, request: Request, repository: Repository, tag: str) -> Answer:
        if tag not in repository.tags:
            raise Refusal(404, "tag not found")
        return Answer.of({"id": tag, "commit_id": repository.tags[tag]})

    def _list_tags(self, request: Request, repository: Repository) -> Answer:
        names = sorted(repository.tags)
        return _page(request, names, lambda name: {"id": name, "commit_id": repository.tags[name]})

    def _delete_tag(self, request: Request, repository: Repository, tag: str) -> Answer:
        self._get_tag(request, repository, tag)
        del repository.tags[tag]
        return Answer(204)

    # -- objects -------------------------------------------------------------------------------

    def _upload_object(self, request: Request, repository: Repository, branch: str) -> Answer:
        if "if-match" in request.headers:
            raise Refusal(501, "If-Match is not implemented")
        path, metadata = request.one("path"), {}
        with repository.lock:
            if "if-none-match" in request.headers and path in repository.tree(branch):
                raise Refusal(412, "path already exists")
            for name, value in request.headers.items():
                if name.startswith("x-lakefs-meta-"):
                    metadata[name.removeprefix("x-lakefs-meta-")] = value
            content_type = request.headers.get("content-type", "application/octet-stream")
            if content_type.startswith("multipart/"):
                raise Refusal(501, "the double takes raw bodies only")
            entry = repository.upload(branch, path, request.body, content_type, metadata)
        return Answer.of(_stats(path, entry), 201)

    def _entry(self, request: Request, repository: Repository, ref: str) -> Entry:
        path = request.one("path")
        if not path:
            raise Refusal(400, "argument path: required")
        with repository.lock:
            entry = repository.tree(ref).get(path)
        if entry is None:
            raise Refusal(404, "path not found")
        return entry

    def _get_object(self, request: Request, repository: Repository, ref: str) -> Answer:
        entry = self._entry(request, repository, ref)
        headers = {"ETag": f'"{entry.checksum}"'}  # quoted here, bare in JSON
        content = repository.blobs[entry.checksum]
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if request.headers.get("if-none-match", "").strip('"') == entry.checksum:
            return Answer(304, headers=headers)
        if wanted is None:
            return Answer(200, content, "application/octet-stream", headers)
        first = int(wanted[1]) if wanted[1] else max(len(content) - int(wanted[2]), 0)
        last = min(int(wanted[2]) if wanted[1] and wanted[2] else len(content) - 1, len(content) - 1)
        if first > last:
            refused = Answer.of({"message": "range not satisfiable"}, 416)
            refused.headers["Content-Range"] = f"bytes */{len(content)}"
            return refused
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, content[first : last + 1], "application/octet-stream", headers)

    def _head_object(self, request: Request, repository: Repository, ref: str) -> Answer:
        try:
            return self._get_object(request, repository, ref)
        except Refusal as refusal:
            return Answer(refusal.status)  # no body

    def _stat_object(self, request: Request, repository: Repository, ref: str) -> Answer:
        return Answer.of(_stats(request.one("path"), self._entry(request, repository, ref)))

    def _list_objects(self, request: Request, repository: Repository, ref: str) -> Answer:
        prefix, delimiter = request.one("prefix"), request.one("delimiter")
        with repository.lock:
            tree = repository.tree(ref)
        names: dict[str, Entry | None] = {}
        for path, entry in tree.items():
            if path.startswith(prefix):
                end = path.find(delimiter, len(prefix)) if delimiter else -1
                names.setdefault(
                    path if end < 0 else path[: end + len(delimiter)], entry if end < 0 else None
                )
        ordered = sorted(names, key=lambda name: name.encode())
        return _page(request, ordered, lambda name: _stats(name, names[name]))

    def _delete_object(self, request: Request, repository: Repository, branch: str) -> Answer:
        with repository.lock:
            repository.branch(branch).staging[request.one("path")] = None
        return Answer(204)

    def _delete_objects(self, request: Request, repository: Repository, branch: str) -> Answer:
        paths = request.json()["paths"]
        if len(paths) > 1000:
            raise Refusal(400, "exceeded maximum number of paths: 1000")
        with repository.lock:
            if branch in repository.branches:  # a missing one is no error either
                repository.branches[branch].staging.update(dict.fromkeys(paths))
        return Answer.of({"errors": []})

    # -- commits -------------------------------------------------------------------------------

    def _commit(self, request: Request, repository: Repository, branch: str) -> Answer:
        body = request.json()
        made = repository.commit(
            branch,
            body["message"],
            body.get("metadata") or {},
            body.get("date"),
            bool(body.get("allow_empty")),
        )
        return Answer.of(made.as_json(), 201)

    def _get_commit(self, request: Request, repository: Repository, ref: str) -> Answer:
        with repository.lock:
            return Answer.of(repository.resolve(ref).as_json())

    def _log_commits(self, request: Request, repository: Repository, ref: str) -> Answer:
        with repository.lock:
            found = repository.log(ref, request.flag("first_parent"))
            if request.query.get("objects") or request.query.get("prefixes"):
                found = [commit for commit in found if self._in_paths(request, repository, commit)]
        commits = {commit.id: commit for commit in found}
        return _page(request, list(commits), lambda name: commits[name].as_json(), by_order=True)

    def _in_paths(self, request: Request, repository: Repository, commit: Any) -> bool:
        if len(commit.parents) != 1:
            return False  # merge commits are never in a log by path
        changes = repository.diff(commit.parents[0], commit.id, False)
        objects, prefixes = request.query.get("objects", []), tuple(request.query.get("prefixes", []))
        return any(change["path"] in objects or change["path"].startswith(prefixes) for change in changes)

    def _diff_refs(self, request: Request, repository: Repository, left: str, right: str) -> Answer:
        with repository.lock:
            found = repository.diff(left, right, request.one("type", "three_dot") == "three_dot")
        changes = {change["path"]: change for change in found}
        return _page(request, list(changes), lambda path: changes[path])

    def _diff_branch(self, request: Request, repository: Repository, branch: str) -> Answer:
        from tests.lakefs_model import diff_trees

        with repository.lock:
            found = diff_trees(repository.resolve(branch).tree, repository.tree(branch))
        changes = {change["path"]: change for change in found}
        return _page(request, list(changes), lambda path: changes[path])

    def _merge_into_branch(
        self, request: Request, repository: Repository, source: str, branch: str
    ) -> Answer:
        options = request.json() if request.body else {}
        return Answer.of({"reference": repository.merge(source, branch, options)})

    def _find_merge_base(self, request: Request, repository: Repository, source: str, branch: str) -> Answer:
        with repository.lock:
            one, other = repository.resolve(source), repository.resolve(branch)
            base = repository.merge_base(one.id, other.id)
        ids = {"source_commit_id": one.id, "destination_commit_id": other.id, "base_commit_id": base.id}
        return Answer.of(ids)

    def _revert_branch(self, request: Request, repository: Repository, branch: str) -> Answer:
        body = request.json()
        with repository.lock:
            repository.revert(branch, body["ref"], body["parent_number"])
        return Answer(204)

    # -- actions -------------------------------------------------------------------------------

    def _list_run_hooks(self, request: Request, repository: Repository, run: str) -> Answer:
        hooks = self.actions.hooks(run)
        return _page(request, list(hooks), lambda name: hooks[name].as_json())

    def _get_run_hook_output(self, request: Request, repository: Repository, run: str, hook: str) -> Answer:
        return Answer(200, self.actions.hooks(run)[hook].output.encode(), "application/octet-stream")


_R = "repositories/{repository}"
_ROUTES = [
    ("GET", "config", "get_config"),
    ("POST", "repositories", "create_repository"),
    ("GET", "repositories", "list_repositories"),
    ("GET", _R, "get_repository"),
    ("DELETE", _R, "delete_repository"),
    ("POST", f"{_R}/branches", "create_branch"),
    ("GET", f"{_R}/branches", "list_branches"),
    ("GET", f"{_R}/branches/{{branch}}", "get_branch"),
    ("DELETE", f"{_R}/branches/{{branch}}", "delete_branch"),
    ("GET", f"{_R}/branches/{{branch}}/diff", "diff_branch"),
    ("POST", f"{_R}/branches/{{branch}}/commits", "commit"),
    ("POST", f"{_R}/branches/{{branch}}/revert", "revert_branch"),
    ("POST", f"{_R}/branches/{{branch}}/objects", "upload_object"),
    ("DELETE", f"{_R}/branches/{{branch}}/objects", "delete_object"),
    ("POST", f"{_R}/branches/{{branch}}/objects/delete", "delete_objects"),
    ("POST", f"{_R}/tags", "create_tag"),
    ("GET", f"{_R}/tags", "list_tags"),
    ("GET", f"{_R}/tags/{{tag}}", "get_tag"),
    ("DELETE", f"{_R}/tags/{{tag}}", "delete_tag"),
    ("GET", f"{_R}/commits/{{ref}}", "get_commit"),
    ("GET", f"{_R}/refs/{{ref}}/commits", "log_commits"),
    ("GET", f"{_R}/refs/{{ref}}/objects", "get_object"),
    ("HEAD", f"{_R}/refs/{{ref}}/objects", "head_object"),
    ("GET", f"{_R}/refs/{{ref}}/objects/stat", "stat_object"),
    ("GET", f"{_R}/refs/{{ref}}/objects/ls", "list_objects"),
    ("GET", f"{_R}/refs/{{left}}/diff/{{right}}", "diff_refs"),
    ("POST", f"{_R}/refs/{{source}}/merge/{{branch}}", "merge_into_branch"),
    ("GET", f"{_R}/refs/{{source}}/merge/{{branch}}", "find_merge_base"),
    ("GET", f"{_R}/actions/runs/{{run}}/hooks", "list_run_hooks"),
    ("GET", f"{_R}/actions/runs/{{run}}/hooks/{{hook}}/output", "get_run_hook_output"),
]


def _page(
    request: Request, names: list[str], render: Callable[[str], Any], *, by_order: bool = False
) -> Answer:
    """One page: 100 unless asked, 1000 at most, `after` exclusive; a log's `after` is a commit id."""
    amount, after, prefix = int(request.one("amount", "100")), request.one("after"), request.one("prefix")
    if amount > 1000:
        raise Refusal(400, "amount: number must be at most 1000")
    amount = 100 if amount <= 0 else amount
    if by_order:
        names = names[names.index(after) + 1 :] if after in names else names
    else:
        names = [n for n in names if n.startswith(prefix) and n.encode() > after.encode()]
    shown, more = names[:amount], len(names) > amount
    pagination = {
        "has_more": more,
        "next_offset": shown[-1] if more else "",
        "results": len(shown),
        "max_per_page": 1000,
    }
    return Answer.of({"pagination": pagination, "results": [render(name) for name in shown]})


def _stats(path: str, entry: Entry | None) -> dict[str, Any]:
    if entry is None:
        kind = {"path_type": "common_prefix", "physical_address": "", "checksum": "", "mtime": 0}
        return {"path": path, **kind}
    return {
        "path": path,
        "path_type": "object",
        "physical_address": entry.address,
        "checksum": entry.checksum,
        "size_bytes": entry.size_bytes,
        "mtime": entry.mtime,
        "content_type": entry.content_type,
        "metadata": dict(entry.metadata),
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are no news."""


class _Handler(BaseHTTPRequestHandler):
    lakefs: LakeFSServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        # '+' and %20 are both a space, '/' may come bare or as %2F.
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, url.path, query, headers, self._body(headers))
        self.lakefs.note(request)
        try:
            self._reply(request, self.lakefs.fault(request) or Fault())
        finally:
            self.lakefs.done()

    def _reply(self, request: Request, fault: Fault) -> None:
        time.sleep(fault.seconds)
        if fault.drop == "before":
            self.close_connection = True
            return
        if fault.status:
            answer = Answer.of({"message": f"fault {fault.status}"}, fault.status)
            answer.headers.update(fault.headers)
        else:
            answer = self.lakefs.answer(request)
        time.sleep(fault.late)
        if fault.drop == "after":
            self.close_connection = True
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(answer.status)
            if answer.content_type:
                self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD" and answer.body:
                self.wfile.write(answer.body)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def specification(data: str | None) -> Specification | None:
    """The vendor's file where the test data are at hand."""
    path = Path(data or "") / "lakefs" / "swagger.yml"
    return Specification(path) if data and path.is_file() else None
