"""The `rag` command. Every command imports what it needs when it runs, so that `rag --help` is instant."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from api.settings import Environment, read_environment, silence
from knowledge_base.errors import CheckFailedError, PlumblineError, UsageError

if TYPE_CHECKING:
    from knowledge_base.home import KnowledgeBase

app = typer.Typer(
    name="rag",
    help="Plumbline: a knowledge base that is versioned, tested and rolled back like code.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Kb = Annotated[
    str | None, typer.Option("--kb", help="Knowledge base folder (default: found upwards from here).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
Ref = Annotated[str, typer.Option("--ref", help="Branch, tag, commit or main@{2026-11-01}.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, max=100, help="How many passages to retrieve.")]


def main() -> NoReturn:
    """Run the command line; exit code 0 done, 1 a check said no, 2 the caller's mistake, 3 a failure."""
    as_json = "--json" in sys.argv[1:]
    debug = False
    try:
        silence()
        debug = read_environment().debug
        sys.exit(app(standalone_mode=False) or 0)
    except PlumblineError as error:
        _fail(error, as_json)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own click: a wrong command line
            _fail(UsageError(error.format_message(), hint="See `rag --help`."), as_json)
        if type(error).__name__ == "Abort":
            sys.exit(130)
        if debug:
            raise
        _fail(_unexpected(error), as_json)


def _unexpected(error: Exception) -> PlumblineError:
    if isinstance(error, OSError):
        return PlumblineError(
            f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
            hint="Nothing was published. Set PLUMBLINE_DEBUG=1 for the traceback.",
        )
    return PlumblineError(
        f"Internal error: {type(error).__name__}: {error}",
        hint="Nothing was published. Set PLUMBLINE_DEBUG=1 for the traceback, and please report it.",
    )


def _fail(error: PlumblineError, as_json: bool) -> NoReturn:
    if as_json:
        body = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        _print_json({"error": body})
    else:
        sys.stderr.write(f"error: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
    sys.exit(error.exit_code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _environment() -> Environment:
    return read_environment()


def _open(kb: str | None) -> "KnowledgeBase":
    from knowledge_base.home import KnowledgeBase, find_root

    environment = _environment()
    chosen = kb or environment.kb
    if chosen and "://" in chosen:
        raise UsageError(f"{chosen}: only folders are supported by this version.", hint="Use --kb DIR.")
    root = Path(chosen).expanduser().resolve() if chosen else find_root(Path.cwd())
    return KnowledgeBase.open(root, environment.cache / "models")


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to make it.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a new knowledge base: plumbline.toml, prompts/, golden/, .plumbline/."""
    from knowledge_base.home import KnowledgeBase

    made = KnowledgeBase.create(directory.expanduser().resolve(), _environment().cache / "models")
    if as_json:
        _print_json({"root": str(made.root), "commit": made.repository.resolve("main")})
    else:
        sys.stdout.write(f"Made a knowledge base in {made.root}\nNext: rag ingest PATH...\n")


@app.command()
def ingest(
    paths: Annotated[
        list[str], typer.Argument(help="Folders, files, quoted globs, or - for standard input.")
    ],
    branch: Annotated[str, typer.Option(help="Branch to bring up to date.")] = "main",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete documents that the sources no longer hold.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="Put the documents below this path.")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="Skip paths that match this pattern.")] = None,
    stdin_name: Annotated[str, typer.Option(help="Document path of standard input.")] = "stdin.txt",
    max_mb: Annotated[int, typer.Option(min=1, help="Skip files larger than this many megabytes.")] = 100,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say what this release is.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when any file cannot be read.")] = False,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Publish unevaluated; the log says so.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Read, split, embed, commit, gate and publish what changed."""
    from api.render import ingest_progress, print_ingest
    from ingestion.pipeline import IngestOptions
    from ingestion.pipeline import ingest as run
    from ingestion.sources import list_sources

    knowledge_base = _open(kb)
    stdin = (stdin_name, sys.stdin.buffer.read()) if "-" in paths else None
    sources = list_sources(paths, prefix=prefix, stdin=stdin, exclude=exclude or [])
    options = IngestOptions(
        branch=branch,
        prune=prune,
        prune_prefix=f"{prefix.strip('/')}/" if prefix else "",
        dry_run=dry_run,
        strict=strict,
        max_bytes=max_mb * 1024 * 1024,
        message=message,
    )
    gate = None if no_gate or branch != "main" else _gate(knowledge_base)
    with ingest_progress(enabled=not as_json) as progress:
        result = run(knowledge_base, sources, options, gate=gate, progress=progress)
    if as_json:
        _print_json(result.as_json())
    else:
        print_ingest(result)
    if result.changed and not result.published and not dry_run:
        reasons = "; ".join(result.gate.get("reasons", [])) or result.verdict
        raise (
            CheckFailedError(
                f"The gate kept it out of main: {reasons}.",
                hint=f"It waits on branch {result.branch!r}: compare with `rag diff main {result.branch}`.",
            )
            if not as_json
            else typer.Exit(1)
        )


def _gate(knowledge_base: "KnowledgeBase") -> Callable[[str, str], Any]:
    def judge(candidate: str, live: str) -> Any:
        from eval.evaluate import evaluate_release
        from knowledge_base.lifecycle import Judgement

        verdict = evaluate_release(knowledge_base, candidate, live)
        return Judgement(verdict.status, verdict.publishable, verdict.as_json())

    return judge


@app.command()
def status(
    paths: Annotated[list[str] | None, typer.Argument(help="Sources to hold against main.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Count what the sources no longer hold as deleted.")
    ] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show what differs from main: documents, chunker, embedder, prompt, retrieval."""
    from api.render import print_status
    from knowledge_base.release import Release, settings_difference

    knowledge_base = _open(kb)
    live = knowledge_base.release()
    working = Release(
        commit="",
        settings=knowledge_base.settings(),
        manifest=live.manifest,
        prompts=knowledge_base.prompts(),
    )
    value: dict[str, Any] = {
        "root": str(knowledge_base.root),
        "release": {"ref": "main", "commit": live.commit},
        "documents": live.manifest.documents,
        "chunks": live.manifest.chunks,
        "settings": settings_difference(live, working),
    }
    if paths:
        from ingestion.pipeline import compare
        from ingestion.sources import list_sources

        scan = compare(knowledge_base, list_sources(paths), prune=prune)
        value["sources"] = {
            "added": sorted(scan.added),
            "changed": sorted(scan.changed),
            "deleted": scan.deleted,
            "unchanged": scan.unchanged,
            "failed": [{"path": path, "reason": reason} for path, reason in scan.failed],
        }
    _print_json(value) if as_json else print_status(value)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    ref: Ref = "main",
    top_k: TopK = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Answer with citations, or abstain."""
    from api.render import print_answer
    from rag.engine import Engine

    knowledge_base = _open(kb)
    engine = Engine.open(knowledge_base, ref)
    answer = engine.ask(question, top_k)
    if as_json:
        _print_json(answer.as_json())
    else:
        print_answer(answer)
    # Logged after it is shown: the log must not keep the reader waiting, nor fail the answer.
    from rag.answer_log import AnswerLog

    try:
        AnswerLog(_answer_log_url(knowledge_base)).append(answer)
    except PlumblineError as error:
        sys.stderr.write(f"warning: {error.message}\n")


def _answer_log_url(knowledge_base: "KnowledgeBase") -> str:
    return _environment().answer_log or f"sqlite:///{knowledge_base.folder / 'answers.sqlite'}"


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="The question.")],
    ref: Ref = "main",
    top_k: TopK = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show the passages that would be read, best first."""
    from api.render import print_results
    from rag.engine import Engine

    engine = Engine.open(_open(kb), ref)
    results = engine.search(question, top_k)
    value = {
        "question": question,
        "release": engine.release_ref.model_dump(),
        "results": [result.model_dump(mode="json") for result in results],
    }
    _print_json(value) if as_json else print_results(results)


@app.command()
def log(
    ref: Annotated[str, typer.Argument(help="Where to start.")] = "main",
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="At most so many.")] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List releases, newest first, with what changed in each."""
    from api.render import print_log
    from knowledge_base.history import list_releases

    entries = list_releases(_open(kb).repository, ref, number)
    _print_json(entries) if as_json else print_log(entries)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="Branch, tag or commit.")] = "main",
    text: Annotated[
        str | None, typer.Option(help="Print the extracted text of this document instead.")
    ] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show one release: its settings, documents and segments."""
    from api.render import print_release
    from knowledge_base.history import describe_release

    knowledge_base = _open(kb)
    if text is not None:
        content = knowledge_base.snapshot(ref).document_text(text)
        if as_json:
            _print_json({"path": text, "commit": knowledge_base.repository.resolve(ref), "text": content})
        else:
            sys.stdout.write(content + ("" if content.endswith("\n") else "\n"))
        return
    value = describe_release(knowledge_base, ref)
    _print_json(value) if as_json else print_release(value)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(help="The older ref.")],
    right: Annotated[str, typer.Argument(help="The newer ref.")] = "main",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show what changed from one release to another: documents, chunks, settings."""
    from api.render import print_difference
    from knowledge_base.difference import diff_releases

    found = diff_releases(_open(kb), left, right)
    value = {"documents": found.documents.as_json(), "chunks": found.chunks, "settings": found.settings}
    _print_json(value) if as_json else print_difference(value)


@app.command()
def rollback(
    ref: Annotated[
        str | None, typer.Argument(help="Release to go back to (default: the one before).")
    ] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make main what it was: one new commit with the content of an earlier release."""
    from knowledge_base.lifecycle import rollback as run

    commit = run(_open(kb), ref)
    if as_json:
        _print_json({"commit": commit.id, "content_of": commit.metadata["rollback"]})
    else:
        sys.stdout.write(
            f"main is now {commit.id[:12]}, with the content of {commit.metadata['rollback'][:12]}.\n"
            "plumbline.toml and prompts/ on disk stay as they are; `rag status` shows how they differ.\n"
        )


@app.command()
def fsck(kb: Kb = None, as_json: Json = False) -> None:
    """Check every stored object, release and cache; exit code 1 when anything is damaged."""
    from api.render import working
    from knowledge_base.integrity import fsck as run

    knowledge_base = _open(kb)
    with working("Checking", enabled=not as_json) as show:
        problems = list(run(knowledge_base, progress=show))
    if as_json:
        _print_json({"clean": not problems, "problems": [problem.model_dump() for problem in problems]})
    else:
        sys.stdout.writelines(f"{problem.where}: {problem.what}\n" for problem in problems)
        sys.stdout.write("Clean.\n" if not problems else f"{len(problems)} problem(s).\n")
    if problems:
        raise typer.Exit(1)


@app.command()
def rebuild(ref: Ref = "main", kb: Kb = None, as_json: Json = False) -> None:
    """Build the Chroma collections and postings of a release anew; nothing is embedded."""
    from api.render import working
    from knowledge_base.integrity import rebuild as run

    with working("Rebuilding", enabled=not as_json):
        passages = run(_open(kb), ref)
    value = {"ref": ref, "passages": passages, "embedded": 0}
    _print_json(value) if as_json else sys.stdout.write(
        f"Rebuilt {passages} passages of {ref}; 0 embedded.\n"
    )


@app.command("eval")
def evaluate(
    ref: Annotated[str, typer.Argument(help="Release to evaluate.")] = "main",
    baseline: Annotated[str, typer.Option(help="Release to compare with.")] = "main",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Score a release on the golden questions; exit code 1 when it is worse than the baseline."""
    from api.render import print_verdict, working
    from eval.evaluate import evaluate_release

    knowledge_base = _open(kb)
    with working("Evaluating", enabled=not as_json):
        verdict = evaluate_release(knowledge_base, ref, baseline)
    _print_json(verdict.as_json()) if as_json else print_verdict(verdict.as_json())
    if not verdict.publishable:
        raise typer.Exit(1)


@app.command()
def report(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html and report.json.")
    ] = Path("report"),
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Write the drift and faithfulness report; exit code 1 when it raises an alarm."""
    from datetime import UTC, datetime

    from api.render import working
    from eval.report import write_report
    from rag.answer_log import AnswerLog

    knowledge_base = _open(kb)
    with working("Reporting", enabled=not as_json):
        made = write_report(
            knowledge_base, AnswerLog(_answer_log_url(knowledge_base)), output, now=datetime.now(UTC)
        )
    if as_json:
        _print_json(json.loads((output / "report.json").read_text()))
    else:
        sys.stdout.write(f"{made.verdict}: {output / 'report.html'}\n")
    if made.exit_code:
        raise typer.Exit(made.exit_code)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    kb: Kb = None,
) -> None:
    """Serve the HTTP API: POST /v1/query, POST /v1/search, GET /healthz."""
    import uvicorn

    from api.server import create_app
    from api.serving import Live
    from rag.answer_log import AnswerLog

    knowledge_base = _open(kb)
    live = Live(knowledge_base)
    uvicorn.run(
        create_app(live, AnswerLog(_answer_log_url(knowledge_base))),
        host=host,
        port=port,
        log_level="warning",
    )
