"""The `rag` command. Every command imports what it needs when it runs, so that `rag --help` is instant."""

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from api.cli_answers import app as answers
from api.cli_ask import app as asking
from api.cli_care import app as caring
from api.cli_common import Json, print_json
from api.cli_eval import app as evaluating
from api.cli_golden import app as golden
from api.cli_ingest import app as ingesting
from api.cli_keys import app as keys
from api.cli_keys import audit
from api.cli_prompts import app as prompts
from api.cli_publishing import app as publishing
from api.cli_report import app as reporting
from api.cli_report import simulating
from api.cli_serve import app as serving
from api.cli_versions import app as versions
from api.settings import read_environment, silence
from knowledge_base.errors import PlumblineError, StorageError, UsageError

if TYPE_CHECKING:
    from knowledge_base.version_store_lakefs_repository import LakeFSRepository

app = typer.Typer(
    name="rag",
    help="Plumbline: a knowledge base that is versioned, tested and rolled back like code.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


auditing = typer.Typer()
auditing.command()(audit)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Plumbline: a knowledge base that is versioned, tested and rolled back like code."""
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(f"plumbline {installed('plumbline')}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


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
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "rag"
            _fail(
                UsageError(
                    error.format_message().replace("Value error, ", ""), hint=f"See `{command} --help`."
                ),
                as_json,
            )
        if type(error).__name__ == "Abort":
            sys.exit(130)
        if debug:
            raise
        _fail(_unexpected(error), as_json)


def _unexpected(error: Exception) -> PlumblineError:
    if isinstance(error, UnicodeEncodeError) and any(map(_is_no_text, sys.argv)):
        return UsageError("An argument is not UTF-8.", hint="Only the path of a file to ingest need not be.")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError("A name is longer than the file system allows.", hint="Say a shorter path.")
    if isinstance(error, OSError):
        return StorageError(
            f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
            hint="Nothing was published. Set PLUMBLINE_DEBUG=1 for the traceback.",
        )
    return PlumblineError(
        f"Internal error: {type(error).__name__}: {error}",
        hint="Nothing was published. Set PLUMBLINE_DEBUG=1 for the traceback, and please report it.",
    )


def _is_no_text(argument: str) -> bool:
    """Whether an argument has bytes that are not UTF-8, which Python keeps as lone surrogates."""
    return any("\udc80" <= sign <= "\udcff" for sign in argument)


def _fail(error: PlumblineError, as_json: bool) -> NoReturn:
    if as_json:
        body = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        print_json({"error": body})
    else:
        sys.stderr.write(f"error: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
    sys.exit(error.exit_code)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to make it.")] = Path(),
    kb: Annotated[
        str | None, typer.Option("--kb", help="lakefs://REPOSITORY: keep it on a lakeFS server.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="With --kb: where a new repository keeps its objects: s3://...")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="With --kb: address of `rag serve`, which lakeFS asks before main moves."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new knowledge base: plumbline.toml, prompts/, golden/, .plumbline/."""
    from knowledge_base.home import KnowledgeBase

    root, cache = directory.expanduser().resolve(), read_environment().cache
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is no folder.", hint="Say where to make the knowledge base: rag init DIR.")
    if kb is None:
        if storage or gate:
            raise UsageError("--storage and --gate need --kb lakefs://REPOSITORY.")
        made = KnowledgeBase.create(root, cache / "models")
    else:
        made = KnowledgeBase.create_remote(
            root, kb, cache / "models", objects=cache / "objects", storage=storage
        )
        if gate:
            from knowledge_base.republishing import ACTIONS, standing
            from knowledge_base.version_store_lakefs_actions import install_gate

            repository = cast("LakeFSRepository", made.repository)
            install_gate(repository, gate, {**standing(repository.get_commit("main")), "changed": ACTIONS})
    if as_json:
        print_json({"root": str(made.root), "commit": made.repository.resolve("main")})
    else:
        sys.stdout.write(f"Made a knowledge base in {made.root}\nNext: rag ingest PATH...\n")


# Help lists them in this order: that in which somebody comes to need them.
app.add_typer(ingesting)
app.add_typer(asking)
app.add_typer(prompts, name="prompt")
app.add_typer(versions)
app.add_typer(publishing)
app.add_typer(evaluating)
app.add_typer(golden, name="golden")
app.add_typer(answers, name="answers")
app.add_typer(reporting, name="report")
app.add_typer(simulating)
app.add_typer(serving)
app.add_typer(keys, name="key")
app.add_typer(auditing)
app.add_typer(caring)
