"""What the commands share: options, opening a knowledge base, printing JSON."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from api.settings import read_environment
from knowledge_base.errors import CheckFailedError, NotAKnowledgeBaseError, UsageError

if TYPE_CHECKING:
    from ingestion.scan import IngestResult
    from knowledge_base.home import KnowledgeBase
    from knowledge_base.lifecycle import Gate, Landing
    from rag.answer_log import AnswerLog

Kb = Annotated[
    str | None, typer.Option("--kb", help="Folder or lakefs://REPOSITORY (default: found upwards).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
Ref = Annotated[str, typer.Option("--ref", help="Branch, tag, commit or main@{2026-11-01}.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, max=100, help="How many passages to retrieve.")]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Publish unevaluated; needs --reason.")]
Reason = Annotated[str, typer.Option(help="Why the gate is passed by; it stays in the log for ever.")]


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def open_knowledge_base(kb: str | None) -> "KnowledgeBase":
    """The one named, the environment's, or the nearest upwards. Raises NotAKnowledgeBaseError."""
    from knowledge_base.home import KnowledgeBase

    environment, place = read_environment(), find_knowledge_base(kb)
    models, objects = environment.cache / "models", environment.cache / "objects"
    if isinstance(place, str):
        opened = KnowledgeBase.open_remote(place, environment.cache / "remote", models, objects=objects)
    else:
        opened = KnowledgeBase.open(place, models, objects=objects)
    if environment.index:
        opened.index_at(environment.index, environment.index_header)
    return opened


def make_knowledge_base(place: str, storage: str | None, index: str | None) -> tuple["KnowledgeBase", bool]:
    """The one at a folder or URL, made if it is not there; whether it has a new working copy."""
    from knowledge_base.home import KnowledgeBase, find_root, repository_of
    from knowledge_base.version_store import open_version_store

    cache, new = read_environment().cache, False
    if place.startswith("lakefs://"):
        open_version_store(place, cache / "objects", storage).create_repository(
            repository_of(place), exist_ok=True
        )
    else:
        root = Path(place).expanduser().resolve()
        try:
            new = find_root(root) != root
        except NotAKnowledgeBaseError:
            new = True
        if new:
            KnowledgeBase.create(root, cache / "models")
    made = open_knowledge_base(place)
    if index:
        made.index_at(index, read_environment().index_header)
    return made, new


def find_knowledge_base(kb: str | None) -> Path | str:
    """Its folder, or its URL. Raises NotAKnowledgeBaseError, UsageError."""
    from knowledge_base.home import find_root

    chosen = kb or read_environment().kb
    if chosen and chosen.startswith("lakefs://"):
        return chosen
    if chosen and "://" in chosen:
        raise UsageError(f"{chosen} is no knowledge base.", hint="Use --kb DIR or --kb lakefs://REPOSITORY.")
    return Path(chosen).expanduser().resolve() if chosen else find_root(Path.cwd())


def open_answer_log(knowledge_base: "KnowledgeBase") -> "AnswerLog":
    """The answer log of a knowledge base: in its folder, or its part of the database that serves several.

    Raises:
        SettingsError: PLUMBLINE_ANSWER_LOG is no URL, or its driver is not installed.
        StorageError: The database cannot be used.
    """
    from rag.answer_log import AnswerLog

    # In its own folder it needs no name: one that the folder is renamed to would lose the answers.
    shared = read_environment().answer_log
    name = knowledge_base.root.name if shared else ""
    return AnswerLog(answer_log_url(knowledge_base), name, knowledge_base.release().settings.log)


def answer_log_url(knowledge_base: "KnowledgeBase") -> str:
    """SQLAlchemy URL of the answer log."""
    from sqlalchemy import URL

    here = URL.create("sqlite", database=str(knowledge_base.folder / "answers.sqlite"))
    return read_environment().answer_log or here.render_as_string()


def gate_of(knowledge_base: "KnowledgeBase", branch: str, no_gate: bool, reason: str) -> "Gate | None":
    """What judges a candidate for `branch`: only main has a gate. Raises UsageError."""
    if no_gate and not reason.strip():
        raise UsageError("--no-gate needs --reason.", hint="Say why; the log keeps it for ever.")
    if branch != "main":
        return None
    if no_gate:
        from knowledge_base.lifecycle import override_gate

        return override_gate(reason.strip())

    def judge(candidate: str, live: str) -> Any:
        from eval.evaluate import evaluate_release
        from knowledge_base.lifecycle import Judgement

        verdict = evaluate_release(knowledge_base, candidate, live)
        return Judgement(verdict.label, verdict.publishable, verdict.as_json())

    return judge


def kept_out(candidate: "IngestResult | Landing", as_json: bool) -> NoReturn:
    """End a command whose candidate the gate refused; with `as_json` the result has said why already."""
    if as_json:
        raise typer.Exit(1)
    from knowledge_base.lifecycle import listed_reasons

    raise CheckFailedError(
        f"The gate kept it out of main:{listed_reasons(candidate.gate, candidate.verdict)}",
        hint=f"It waits on branch {candidate.branch!r}: `rag diff main {candidate.branch}` compares, "
        f"`rag promote {candidate.branch} --no-gate --reason ...` publishes it all the same.",
    )
