"""The commands that ask: `rag ask`, once or in a conversation, and `rag search`."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import Json, Kb, Ref, TopK, open_answer_log, open_knowledge_base, print_json
from knowledge_base.errors import PlumblineError, UsageError

if TYPE_CHECKING:
    from knowledge_base.home import KnowledgeBase
    from rag.answer import Answer, Event
    from rag.engine import Engine
    from rag.filters import Condition

app = typer.Typer()

Where = Annotated[
    list[str] | None,
    typer.Option(help='Only passages that meet this, such as "path=guides/*" or "changed>=2026-11-01".'),
]
AsGroups = Annotated[
    str | None, typer.Option("--as-groups", help="See what a key of these groups sees, such as hr,board.")
]
_HELP = "A number opens that source, an empty line ends."


@app.command()
def ask(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="The question; none with --chat.")
    ] = None,
    ref: Ref = "main",
    top_k: TopK = None,
    where: Where = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it comes; with --json one event a line.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Hold a conversation: one question a line.")] = False,
    as_groups: AsGroups = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Answer with citations, or abstain."""
    question = " ".join(words or ())
    if bool(question) == chat:
        raise UsageError(
            "Ask a question, or say --chat." if not chat else "--chat asks for the questions itself.",
            hint='For example: rag ask "How do I install it?"',
        )
    if chat and as_json:
        raise UsageError("--chat is for people.", hint="Scripts use --stream --json, one question at a time.")
    from api.render import print_answer
    from rag.engine import Engine

    knowledge_base = open_knowledge_base(kb)
    engine = _seen_by(as_groups, Engine.open(knowledge_base, ref), knowledge_base)
    conditions = _conditions(where)
    if chat:
        _converse(knowledge_base, engine, top_k, conditions)
    elif stream:
        events = engine.stream(question, top_k, where=conditions)
        answer = _print_events(events) if as_json else _print_stream(events)
        _log(knowledge_base, answer)
    else:
        answer = engine.ask(question, top_k, where=conditions)
        print_json(answer.as_json()) if as_json else print_answer(answer)
        _log(knowledge_base, answer)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="QUESTION", help="The question.")],
    ref: Ref = "main",
    top_k: TopK = None,
    where: Where = None,
    as_groups: AsGroups = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show the passages that would be read, best first."""
    from api.render import print_results
    from rag.engine import Engine

    knowledge_base = open_knowledge_base(kb)
    engine = _seen_by(as_groups, Engine.open(knowledge_base, ref), knowledge_base)
    question = " ".join(words)
    results = engine.search(question, top_k, _conditions(where))
    value = {
        "question": question,
        "release": engine.release_ref.model_dump(),
        "results": [result.model_dump(mode="json") for result in results],
    }
    print_json(value) if as_json else print_results(results)


def _seen_by(groups: str | None, engine: "Engine", knowledge_base: "KnowledgeBase") -> "Engine":
    """Whoever is on this machine sees everything, unless they ask to see less."""
    if groups is None:
        return engine
    named = frozenset(filter(None, map(str.strip, groups.split(","))))
    return engine.seen_by(named, knowledge_base.snapshot().access)


def _conditions(where: Sequence[str] | None) -> "tuple[Condition, ...]":
    if not where:
        return ()
    from rag.filters import parse_conditions

    return parse_conditions(where)


def _converse(
    knowledge_base: "KnowledgeBase", engine: "Engine", top_k: int | None, where: "Sequence[Condition]"
) -> None:
    """Questions line by line until an empty one, each understood after those before it."""
    from api.render import print_source
    from rag.answer import Turn

    history: list[Turn] = []
    answer: Answer | None = None
    sys.stderr.write(f"Asking release {engine.release_ref.commit[:12]}. {_HELP}\n")
    while line := _read_line():
        if line.isdecimal():
            cited = {str(c.marker): c for c in answer.citations} if answer else {}
            if line in cited:
                print_source(cited[line], engine.snapshot.document_text(cited[line].path))
            else:
                sys.stderr.write(f"There is no source {line}. {_HELP}\n")
            continue
        try:
            answer = _print_stream(engine.stream(line, top_k, history=history, where=where))
        except PlumblineError as error:
            sys.stderr.write(f"error: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
            continue
        # What was searched for stands on its own; what was typed may not.
        history.append(Turn(question=answer.queries[0], answer=answer.answer))
        _log(knowledge_base, answer)


def _read_line() -> str:
    if sys.stdin.isatty():
        sys.stderr.write("\n> ")
        sys.stderr.flush()
    return sys.stdin.readline().strip()


def _print_stream(events: "Iterable[Event]") -> "Answer":
    """Text as it comes, then the sources."""
    from api.render import print_answer

    answer = None
    for event in events:
        if event.event == "text":
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif event.event == "restart":
            sys.stdout.write(f"\n({event.attempt.model} failed; what stands above does not count.)\n\n")
        elif event.event == "done":
            answer = event.answer
    sys.stdout.write("\n")
    assert answer is not None  # a stream that did not raise ends with Done
    print_answer(answer, text=False)
    return answer


def _print_events(events: "Iterable[Event]") -> "Answer":
    """One JSON object a line."""
    answer = None
    for event in events:
        sys.stdout.write(json.dumps(event.model_dump(mode="json"), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        answer = event.answer if event.event == "done" else answer
    assert answer is not None  # a stream that did not raise ends with Done
    return answer


def _log(knowledge_base: "KnowledgeBase", answer: "Answer") -> None:
    # Logged after it is shown: the log must not keep the reader waiting, nor fail the answer.
    try:
        open_answer_log(knowledge_base).append(answer)
    except PlumblineError as error:
        sys.stderr.write(f"warning: {error.message}\n")
