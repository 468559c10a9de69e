"""`rag prompt`: the prompts of a release, and what they would say to a model."""

import difflib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import Json, Kb, Ref, open_knowledge_base, print_json
from knowledge_base.errors import NotFoundError

if TYPE_CHECKING:
    from knowledge_base.home import KnowledgeBase

app = typer.Typer(help="List, show, compare and try prompts.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="answer, repair, condense, queries or judge.")]
MaybeRef = Annotated[str | None, typer.Option("--ref", help="A release; without it, the files on disk.")]


@app.command("list")
def list_prompts(ref: MaybeRef = None, kb: Kb = None, as_json: Json = False) -> None:
    """List the prompts with their descriptions and hashes."""
    from api.render import print_prompts
    from knowledge_base.prompts import parse_prompt
    from knowledge_base.release import hash_prompts

    rows = []
    for name, text in sorted(_files(open_knowledge_base(kb), ref).items()):
        prompt = parse_prompt(name, text)
        rows.append(
            {
                "name": prompt.name,
                "description": prompt.description,
                "examples": len(prompt.examples),
                "hash": hash_prompts({"": text}),
            }
        )
    print_json(rows) if as_json else print_prompts(rows)


@app.command()
def show(
    name: Name,
    ref: MaybeRef = None,
    default: Annotated[bool, typer.Option("--default", help="The one that `rag init` writes.")] = False,
    kb: Kb = None,
) -> None:
    """Print a prompt's file."""
    if default:
        from knowledge_base.home import default_prompts

        files = default_prompts()
    else:
        files = _files(open_knowledge_base(kb), ref)
    sys.stdout.write(_text(files, name))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A release.")] = "main",
    new: Annotated[str | None, typer.Argument(help="Another one; without it, the files on disk.")] = None,
    kb: Kb = None,
) -> None:
    """Compare the prompts of two releases, or of a release and the files on disk, line by line."""
    knowledge_base = open_knowledge_base(kb)
    before, after = _files(knowledge_base, old), _files(knowledge_base, new)
    for name in sorted({*before, *after}):
        lines = difflib.unified_diff(
            before.get(name, "").splitlines(keepends=True),
            after.get(name, "").splitlines(keepends=True),
            f"{old}:prompts/{name}",
            f"{new or 'disk'}:prompts/{name}",
        )
        sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)


@app.command("try")
def try_prompt(
    question: Annotated[str, typer.Argument(help="The question to put into it.")],
    ask: Annotated[bool, typer.Option("--ask", help="Ask the model of plumbline.toml, too.")] = False,
    ref: Ref = "main",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Print what the answer prompt on disk makes of a question and the passages retrieved for it."""
    from knowledge_base.configuration import EXTRACTIVE
    from knowledge_base.prompts import check_prompts, parse_prompt
    from rag.engine import Engine
    from rag.untrusted import draw_key, numbered
    from rag.writing import pack

    knowledge_base = open_knowledge_base(kb)
    settings, files = knowledge_base.settings(), _files(knowledge_base, None)
    check_prompts(files, settings)
    prompt = parse_prompt("answer.md", _text(files, "answer"))
    engine = Engine.open(knowledge_base, ref)
    given = pack(engine.search(question), settings.answer.context_tokens, engine.embedder)
    messages = prompt.render(question=question, contexts=numbered(given, draw_key()))
    value: dict[str, object] = {"messages": [{"role": role, "content": text} for role, text in messages]}
    if ask and settings.answer.model != EXTRACTIVE:
        from rag.models import LanguageModel

        value["reply"] = LanguageModel(settings.answer).complete(messages).text
    if as_json:
        print_json(value)
        return
    for role, text in messages:
        sys.stdout.write(f"--- {role}\n{text}\n")
    if "reply" in value:
        sys.stdout.write(f"--- reply of {settings.answer.model}\n{value['reply']}\n")


def _files(knowledge_base: "KnowledgeBase", ref: str | None) -> dict[str, str]:
    return knowledge_base.prompts() if ref is None else knowledge_base.release(ref).prompts


def _text(files: dict[str, str], name: str) -> str:
    file_name = f"{name.removesuffix('.md')}.md"
    if file_name not in files:
        raise NotFoundError("prompt", name, hint="`rag prompt list` lists them.")
    return files[file_name]
