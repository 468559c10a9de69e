"""A knowledge base with some history, and the operations that are interrupted on copies of it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from api.settings import read_environment, silence
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import Embedder, load_embedder
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.lifecycle import promote
from knowledge_base.merging import merge
from knowledge_base.republishing import compact, rollback
from knowledge_base.retention import Retention, gc
from tests.conftest import DOCUMENTS

silence()

Documents = Mapping[str, str]

CANDIDATE = "candidate-next"  # promote drops branches of that prefix, which is one step more to interrupt
FEATURE = "feature"
_MEBIBYTE = 1024 * 1024


def _large(text: str) -> str:
    """A file that is stored beside git, as every one of 1 MiB or more, yet has little text to embed."""
    return f"<html><body><p>{text}</p><!-- {'x' * _MEBIBYTE} --></body></html>"


FIRST: Documents = {
    **DOCUMENTS,
    "manual.html": _large("The first manual has twelve chapters about the grinder."),
}
SECOND: Documents = {
    **FIRST,
    "install.md": "# Installation\n\nThe default port of the server is 9000.\n",
    "offices.md": "# Offices\n\nThe office in Oslo opened in March.\n",
}
NEWEST: Documents = {
    **SECOND,
    "billing.md": "# Billing\n\nInvoices are sent on the last day of each quarter.\n",
    "canteen.md": "# Canteen\n\nSoup is served on Thursdays.\n",
    "manual.html": _large("The second manual has fourteen chapters about the roaster."),
}


def _changed(documents: Documents, changes: Documents, without: str) -> Documents:
    return {path: text for path, text in {**documents, **changes}.items() if path != without}


_FEATURE_CHANGES = {
    "security.md": "# Security\n\nPasswords are hashed with scrypt since last winter.\n",
    "holidays.md": "# Holidays\n\nEvery employee has thirty days of leave a year.\n",
}
FEATURE_DOCUMENTS = _changed(SECOND, _FEATURE_CHANGES, "team.txt")
MERGED = _changed(NEWEST, _FEATURE_CHANGES, "team.txt")
PROMOTED = _changed(
    NEWEST,
    {
        "history.md": "# History\n\nThe company was founded in Malmo in 1991 by Karin Berg.\n",
        "backup.md": "# Backup\n\nBackups are written every night at two o'clock.\n",
    },
    "api/limits.md",
)
INGESTED = _changed(
    NEWEST,
    {
        "install.md": "# Installation\n\nThe default port of the server is 9100.\n",
        "printing.md": "# Printing\n\nThe printer on the third floor prints in colour.\n",
        "manual.html": _large("The third manual has sixteen chapters about the kettle."),
    },
    "offices.md",
)
NEXT: Documents = {"parking.md": "# Parking\n\nVisitors park behind the brick warehouse.\n"}

QUESTIONS = (
    "What is the default port of the server?",
    "How many chapters has the manual?",
    "How are passwords hashed?",
)


class OpenedKnowledgeBase(KnowledgeBase):
    """A knowledge base that loads its embedding model once a process, not once a command."""

    def embedder(self, settings: EmbedderSettings) -> Embedder:
        """The real embedder."""
        return _embedder(settings, self.models)


@functools.cache
def _embedder(settings: EmbedderSettings, models: Path) -> Embedder:
    return load_embedder(settings, models)


def open_knowledge_base(root: Path) -> KnowledgeBase:
    return OpenedKnowledgeBase.open(root, read_environment().cache / "models")


@dataclass(frozen=True)
class Operation:
    """What is interrupted, what main holds when it is through, and the shell's words for it, if any."""

    run: Callable[[KnowledgeBase], object]
    documents: Documents
    command: Callable[[Path], list[str | Path]] | None = None
    moves_main: bool = True


def _ingest_all(knowledge_base: KnowledgeBase) -> object:
    return ingest(
        knowledge_base,
        list_sources([str(sources_of(knowledge_base.root, "ingest"))]),
        IngestOptions(prune=True),
    )


def _oldest(knowledge_base: KnowledgeBase) -> str:
    return knowledge_base.repository.get_tag("second").commit_id


OPERATIONS: Mapping[str, Operation] = {
    "ingest": Operation(
        _ingest_all,
        INGESTED,
        lambda root: ["ingest", "--prune", "--no-gate", "--reason", "test", sources_of(root, "ingest")],
    ),
    "merge": Operation(lambda kb: merge(kb, FEATURE, MAIN), MERGED),
    "promote": Operation(lambda kb: promote(kb, CANDIDATE), PROMOTED),
    "compact": Operation(lambda kb: compact(kb, everything=True), NEWEST),
    "gc": Operation(
        lambda kb: gc(kb, Retention(keep_last=1, keep_tags=False), dry_run=False), NEWEST, moves_main=False
    ),
    "rollback": Operation(lambda kb: rollback(kb, _oldest(kb)), SECOND, lambda root: ["rollback", "second"]),
}


def sources_of(root: Path, name: str) -> Path:
    return root / "sources" / name


def write_sources(folder: Path, documents: Documents) -> Path:
    for name, text in documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def hashes(documents: Documents) -> dict[str, str]:
    return {path: sha256_hex(text.encode()) for path, text in documents.items()}


def prepare(root: Path) -> None:
    """Three releases on main, a branch to merge, one to promote, and one whose content nobody needs."""
    knowledge_base = OpenedKnowledgeBase.create(root, read_environment().cache / "models")
    for name, documents in (("ingest", INGESTED), ("next", NEXT)):
        write_sources(sources_of(root, name), documents)
    for name, documents, branch in (
        ("first", FIRST, MAIN),
        ("second", SECOND, MAIN),
        ("feature", FEATURE_DOCUMENTS, FEATURE),
        ("newest", NEWEST, MAIN),
        ("promoted", PROMOTED, CANDIDATE),
        ("gone", {**NEWEST, "gone.md": "# Gone\n\nNobody needs this page about umbrellas.\n"}, "gone"),
    ):
        folder = write_sources(sources_of(root, name), documents)
        ingest(knowledge_base, list_sources([str(folder)]), IngestOptions(branch=branch, prune=True))
        if name in ("first", "second"):
            knowledge_base.repository.create_tag(name, MAIN)
    knowledge_base.repository.delete_branch("gone")
