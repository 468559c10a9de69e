"""A knowledge base on disk: where its files lie, and how to open what they hold.

plumbline.toml, prompts/, golden/    the working copy: edited by people, committed by `rag ingest`
.plumbline/knowledge.git             the repository: `git log` and `git show` work in it
.plumbline/remote                    instead of it: the URL of a repository on a lakeFS server
.plumbline/cache/                    Chroma collections and postings, rebuilt when missing
.plumbline/answers.sqlite            the answer log
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge_base.configuration import SETTINGS_PATH, EmbedderSettings, Settings, settings_in
from knowledge_base.documents import sha256_hex
from knowledge_base.durable import exclusive_lock, remove_file, write_bytes
from knowledge_base.errors import (
    AlreadyExistsError,
    InvalidNameError,
    NotAKnowledgeBaseError,
    SettingsError,
    UnsupportedError,
    UsageError,
)
from knowledge_base.release import (
    GOLDEN_PREFIX,
    PROMPTS_PREFIX,
    Release,
    committed_files,
    load_release,
    prompts_in,
)
from knowledge_base.version_store import LAKEFS, Branch, Repository, open_version_store

if TYPE_CHECKING:
    from knowledge_base.chroma_server import ServerIndex
    from knowledge_base.embedders import Embedder
    from knowledge_base.segments import SharedSegments
    from knowledge_base.snapshot import Snapshot

MAIN = "main"
WORK_PREFIX = "plumbline-work-"
"""Branches of commands under way; those of killed ones are swept by the next, so no person's may be one."""
EVALUATIONS = "evaluations"
"""The branch that holds verdicts and golden answers: no release, and nothing is merged with it."""
FOLDER = ".plumbline"
"""What a folder with a knowledge base holds: its version store, index and caches."""
_REPOSITORY = "knowledge"
_REMOTE = "remote"

DEFAULT_SETTINGS = """\
# What decides an answer. Every `rag ingest` commits this file; see docs/configuration.md.

[chunker]
splitter = "markdown"          # sentence, token or markdown
size = 250                     # tokens of the embedder's tokenizer
overlap = 0

[embedder]
model = "all-MiniLM-L6-v2"     # a sentence-transformers name or folder; "static:NAME" for a distilled one
precision = "int8"             # int8 or fp32
query_prefix = ""
document_prefix = ""

[retrieval]
mode = "hybrid"                # hybrid, dense or lexical
top_k = 5
candidates = 100               # how deep each ranking is read before they are fused
dense_weight = 0.5             # 0 is lexical alone, 1 dense alone
language = "english"           # stemmer of the lexical index; "none" for no stemming

[answer]
model = "extractive"           # quotes the best sentences; or a language model: "openai:NAME", ...
fallbacks = []                 # asked in turn when the model fails: ["ollama:NAME", "extractive"]
grounding = "strict"           # an unsupported sentence is dropped; "flag" marks it, "off" lets it pass
max_sentences = 3
min_support = 0.5              # below it the answer abstains
"""


class KnowledgeBase:
    """One knowledge base; `models` is where exported embedding models are kept, shared by all."""

    def __init__(self, root: Path, repository: Repository, models: Path) -> None:
        self.root = root
        self.repository = repository
        self.models = models
        self.folder = root / FOLDER
        self.cache = self.folder / "cache"
        self.lock_seconds = 10.0
        self.index: ServerIndex | None = None
        """Where Chroma collections lie, if not in the cache of this machine."""

    @classmethod
    def create(cls, root: Path, models: Path) -> "KnowledgeBase":
        """Make a new knowledge base in `root`, keeping any plumbline.toml or prompts already there.

        Raises:
            AlreadyExistsError: There is one already.
            StorageError: The disk refused.
        """
        _refuse_second(root)
        store = open_version_store(str(root / FOLDER))
        made = cls(root, store.create_repository(_REPOSITORY, default_branch=MAIN), models)
        made._set_up({})
        return made

    @classmethod
    def create_remote(
        cls, root: Path, url: str, models: Path, *, objects: Path | None = None, storage: str | None = None
    ) -> "KnowledgeBase":
        """Make `root` the working copy of a repository on a lakeFS server, which is made if missing.

        The files of its main are written where `root` has none yet. `objects` is where what was fetched
        is kept, `storage` where a new repository keeps its objects.

        Raises:
            AlreadyExistsError: There is a knowledge base in `root` already.
            VersionStoreError: The server cannot be used.
        """
        _refuse_second(root)
        store = open_version_store(url, objects, storage)
        repository = store.create_repository(repository_of(url), default_branch=MAIN, exist_ok=True)
        made = cls(root, repository, models)
        made._set_up(committed_files(repository, repository.resolve(MAIN)))
        write_bytes(made.folder / _REMOTE, f"{LAKEFS}{repository.id}\n".encode())
        return made

    def _set_up(self, committed: Mapping[str, bytes]) -> None:
        """Write the files of a working copy, keeping what is there already."""
        defaults = {f"{PROMPTS_PREFIX}{name}": text.encode() for name, text in default_prompts().items()}
        for name, content in (committed or {SETTINGS_PATH: DEFAULT_SETTINGS.encode(), **defaults}).items():
            if not (self.root / name).exists():
                write_bytes(self.root / name, content)
        (self.root / GOLDEN_PREFIX).mkdir(exist_ok=True)
        write_bytes(self.folder / ".gitignore", b"*\n")

    @classmethod
    def open(cls, root: Path, models: Path, *, objects: Path | None = None) -> "KnowledgeBase":
        """Open the knowledge base in `root`. Raises NotAKnowledgeBaseError, UnavailableError."""
        folder = root / FOLDER
        if url := remote_of(root):
            return cls(root, open_version_store(url, objects).get_repository(repository_of(url)), models)
        if not (folder / f"{_REPOSITORY}.git").exists():
            raise NotAKnowledgeBaseError(
                f"There is no knowledge base in {root}.", hint="Run `rag init` there, or name one with --kb."
            )
        return cls(root, open_version_store(str(folder)).get_repository(_REPOSITORY), models)

    @classmethod
    def open_remote(
        cls, url: str, state: Path, models: Path, *, objects: Path | None = None
    ) -> "KnowledgeBase":
        """Open a repository on a lakeFS server without a working copy.

        What this machine keeps of it (caches, answer log) lies in a folder of its own below `state`.
        Raises NotFoundError, UnavailableError, UnauthorizedError.
        """
        repository = open_version_store(url, objects).get_repository(repository_of(url))
        root = state / f"{repository.id}-{sha256_hex(repository.identity.encode())[:12]}"
        return cls(root, repository, models)

    def index_at(self, url: str, header: str = "") -> None:
        """Keep the Chroma collections on a server; `header` is for a proxy in front of it.

        Raises UsageError.
        """
        from knowledge_base.chroma_server import ServerIndex

        self.index = ServerIndex(url, self.repository.identity, header)

    @property
    def detached(self) -> bool:
        """Whether it has no working copy: then its settings, prompts and golden set are those of main."""
        return self.repository.shared and not (self.root / SETTINGS_PATH).exists()

    # -- the working copy ----------------------------------------------------------------------

    def settings(self) -> Settings:
        """Settings of the working copy, not of any release. Raises SettingsError."""
        return settings_in(self.working_files())

    def prompts(self) -> dict[str, str]:
        """Prompts of the working copy by file name. Raises SettingsError."""
        return prompts_in(self.working_files())

    def working_files(self) -> dict[str, bytes]:
        """plumbline.toml, prompts and golden questions as they are on disk, by commit path.

        Without a working copy they are those of main.

        Raises:
            SettingsError: One of them cannot be read as UTF-8 text.
        """
        if self.detached:
            return committed_files(self.repository, self.repository.resolve(MAIN))
        paths = [self.root / SETTINGS_PATH]
        paths += sorted((self.root / PROMPTS_PREFIX).glob("*.md")) + sorted(
            (self.root / GOLDEN_PREFIX).glob("*.jsonl")
        )
        files = {}
        for path in paths:
            if not path.is_file():
                continue
            try:
                content = path.read_bytes()
                content.decode()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{path} cannot be read: {error}.", hint="Mend or remove it.") from error
            files[path.relative_to(self.root).as_posix()] = content
        return files

    def restore(self, ref: str) -> list[str]:
        """Write plumbline.toml, prompts and golden questions as `ref` has them; returns what changed.

        What they replace is kept beside them with a `~` after its name.

        Raises:
            NotFoundError: There is no such ref.
            StorageError: The disk refused.
        """
        if self.detached:
            raise UsageError(
                "There is no working copy to restore.",
                hint=f"Make one: `rag init --kb {LAKEFS}{self.repository.id} DIR`.",
            )
        released = committed_files(self.repository, self.repository.resolve(ref))
        present = self.working_files()
        differing = sorted(path for path in {*released, *present} if released.get(path) != present.get(path))
        for path in differing:
            local = self.root / path
            if path in present:
                write_bytes(local.with_name(local.name + "~"), present[path])
            if path in released:
                write_bytes(local, released[path])
            else:
                remove_file(local)
        return differing

    # -- releases ------------------------------------------------------------------------------

    def release(self, ref: str = MAIN) -> Release:
        """What `ref` pins. Raises NotFoundError, DamagedError."""
        return load_release(self.repository, ref)

    def snapshot(self, ref: str = MAIN, shared: "SharedSegments | None" = None) -> "Snapshot":
        """`ref` opened for search; a snapshot of `shared` segments is never closed by hand.

        Raises NotFoundError, DamagedError.
        """
        from knowledge_base.snapshot import open_snapshot  # numpy: not for `rag log`

        return open_snapshot(self.repository, self.release(ref), self.cache, self.index, shared)

    def embedder(self, settings: EmbedderSettings) -> "Embedder":
        """The embedder that `settings` name. Raises EmbedderError, MissingExtraError."""
        from knowledge_base.embedders import load_embedder

        return load_embedder(settings, self.models)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer lock: one ingest, rollback or rebuild at a time, the others wait.

        Raises:
            LockedError: Another command still holds it after `lock_seconds`.
        """
        with exclusive_lock(self.folder / "lock", wait_seconds=self.lock_seconds):
            yield


def default_prompts() -> dict[str, str]:
    """The prompts that `rag init` writes, by file name."""
    files = resources.files("knowledge_base") / "default_prompts"
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files.iterdir(), key=str)}


def release_branches(repository: Repository) -> list[Branch]:
    """The branches that hold releases: not those of commands under way, nor the evaluations."""
    return [
        branch
        for branch in repository.list_branches()
        if branch.id != EVALUATIONS and not branch.id.startswith(WORK_PREFIX)
    ]


def check_branch(name: str) -> str:
    """The name itself when a branch of that name may hold releases. Raises InvalidNameError."""
    if name == EVALUATIONS or name.startswith(WORK_PREFIX):
        raise InvalidNameError(
            f"Branch {name!r} is kept by Plumbline itself.", hint="Choose another name for yours."
        )
    return name


def repair_repository(root: Path, backup: Path | None, spares: list[bytes]) -> list[str]:
    """Restore what can be of a repository that may not even open.

    Of one on a lakeFS server nothing is restored: it has backups of its own.
    Raises NotFoundError, StorageError, UnsupportedError.
    """
    if remote_of(root):
        if backup is not None:
            raise UnsupportedError(
                "A lakeFS repository is not restored from a folder.",
                hint="Restore the server's database and object store, or use `rag copy`.",
            )
        return []
    store = open_version_store(str(root / FOLDER))
    return store.repair_repository(_REPOSITORY, default_branch=MAIN, backup=backup, spares=spares)


def repository_of(url: str) -> str:
    """The repository that `lakefs://repository` names. Raises UsageError."""
    name = url.removeprefix(LAKEFS).strip("/")
    if not name or "/" in name or not url.startswith(LAKEFS):
        raise UsageError(
            f"{url} names no knowledge base.", hint="Write lakefs://REPOSITORY; choose a release by --ref."
        )
    return name


def remote_of(root: Path) -> str | None:
    """The URL of the repository whose working copy `root` is; None when it holds its own."""
    try:
        return (root / FOLDER / _REMOTE).read_text("utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_second(root: Path) -> None:
    if (root / FOLDER / f"{_REPOSITORY}.git").exists() or remote_of(root):
        raise AlreadyExistsError(
            f"{root} already holds a knowledge base.", hint="Use it, or choose another folder."
        )


def find_root(start: Path) -> Path:
    """The nearest folder upwards from `start` that holds a knowledge base.

    Raises:
        NotAKnowledgeBaseError: There is none.
    """
    for folder in (start, *start.parents):
        if (folder / FOLDER / f"{_REPOSITORY}.git").exists() or remote_of(folder):
            return folder
    raise NotAKnowledgeBaseError(
        f"There is no knowledge base in {start} or above.", hint="Run `rag init`, or name one with --kb DIR."
    )
