"""Every error Plumbline raises, in one tree.

PlumblineError                  exit code 3: something it depends on failed
├── UsageError                  exit code 2: the caller's mistake
│   ├── SettingsError           plumbline.toml or a prompt is not valid
│   ├── NotAKnowledgeBaseError  there is no knowledge base where one was expected
│   ├── SourceError             a source path cannot be used
│   ├── MissingExtraError       an optional package is not installed
│   ├── JobStateError           a job cannot do that in the state it is in
│   ├── KeyInUseError           a request with the same Idempotency-Key is under way
│   └── KeyReusedError          the Idempotency-Key came with another request before
├── UnauthenticatedError        exit code 2: whoever asks did not say who they are
├── ForbiddenError              exit code 2: this caller may not do that
├── CheckFailedError            exit code 1: a check said no (gate, --strict, fsck)
├── VersionStoreError
│   ├── NotFoundError           no such repository, branch, tag, ref or object      (2)
│   ├── AlreadyExistsError      the name is taken                                   (2)
│   ├── InvalidNameError        a repository, branch or tag name breaks the rules   (2)
│   ├── InvalidPathError        an object path breaks the rules                     (2)
│   ├── NoChangesError          the commit or merge would change nothing            (2)
│   ├── MergeConflictError      both sides changed the same paths                   (1)
│   ├── HeadMovedError          the branch moved since it was read                  (1)
│   ├── DirtyBranchError        somebody's uncommitted changes lie on the branch      (1)
│   ├── ProtectedError          the default branch cannot be deleted                (2)
│   ├── HookFailedError         a hook refused the change                           (1)
│   ├── UnsupportedError        this backend cannot do that                         (2)
│   ├── UnauthorizedError       the server refused the credentials
│   └── UnavailableError        the store cannot be reached, or is damaged
├── DocumentError               one document cannot be read; the others still can
│   └── QuarantinedError        it can, and holds what ingest.quarantine keeps out
├── DamagedError                stored content does not match its hash
├── StorageError                the disk refused a write (full, read-only, ...)
├── LockedError                 another process holds the writer lock
├── BusyError                   too much waits to be done already
├── EmbedderError               the embedding model cannot be loaded or run
└── ModelError                  a language model failed, or its reply cannot be used

A message says what happened and to which id; `hint` says what to do next.
"""

from collections.abc import Sequence


class PlumblineError(Exception):
    """Base of every error raised on purpose; exit code 3 unless a subclass says otherwise."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PlumblineError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class SettingsError(UsageError):
    """plumbline.toml or a prompt file is not valid."""


class NotAKnowledgeBaseError(UsageError):
    """No knowledge base was found where one was expected."""


class SourceError(UsageError):
    """A source path does not exist, lies outside, or two sources claim one document path."""


class MissingExtraError(UsageError):
    """An optional package is not installed."""


class JobStateError(UsageError):
    """A job cannot do that in the state it is in."""


class KeyInUseError(UsageError):
    """A request with the same Idempotency-Key is being carried out."""


class KeyReusedError(UsageError):
    """The Idempotency-Key came with another request before."""


class UnauthenticatedError(PlumblineError):
    """Whoever asks has not said who they are, or nobody believes them."""

    exit_code = 2


class ForbiddenError(PlumblineError):
    """Whoever asks may not do that."""

    exit_code = 2


class CheckFailedError(PlumblineError):
    """A check said no."""

    exit_code = 1


class ReopensError(CheckFailedError):
    """Going back would open what was closed since; the message names it."""


class VersionStoreError(PlumblineError):
    """Base of every error a version store raises."""


class NotFoundError(VersionStoreError):
    """There is no repository, branch, tag, ref or object of that name."""

    exit_code = 2

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        super().__init__(f"No such {kind}: {name!r}.", hint=hint)
        self.kind = kind
        self.name = name


class AlreadyExistsError(VersionStoreError):
    """The name is taken by a repository, branch, tag or commit."""

    exit_code = 2


class InvalidNameError(VersionStoreError):
    """A repository, branch or tag name breaks the rules."""

    exit_code = 2


class InvalidPathError(VersionStoreError):
    """An object path breaks the rules."""

    exit_code = 2


class NoChangesError(VersionStoreError):
    """The commit or merge would change nothing."""

    exit_code = 2


class MergeConflictError(VersionStoreError):
    """Both sides changed the same paths."""

    exit_code = 1

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = sorted(paths)
        shown = ", ".join(self.paths[:5]) + (" ..." if len(self.paths) > 5 else "")
        super().__init__(
            f"Both sides changed {len(self.paths)} path(s): {shown}",
            hint="Say whose version to take: --source-wins or --dest-wins.",
        )


class HeadMovedError(VersionStoreError):
    """The branch moved since the caller read it; nothing was changed."""

    exit_code = 1

    def __init__(self, branch: str, expected: str, actual: str) -> None:
        super().__init__(
            f"Branch {branch!r} moved: expected {expected[:12]}, found {actual[:12]}.",
            hint="Run the command again: it starts from the new head.",
        )
        self.branch, self.expected, self.actual = branch, expected, actual


class OutdatedError(VersionStoreError):
    """What was to be promoted was not made from the release that main serves."""

    exit_code = 1


class IncompatibleError(VersionStoreError):
    """Two releases were chunked or embedded differently and cannot share an index."""

    exit_code = 1


class ExpiredError(VersionStoreError):
    """The release is in the log, but `rag gc` removed its content."""

    exit_code = 2


class DirtyBranchError(VersionStoreError):
    """Somebody uploaded to the branch and did not commit; a merge would have to mix that in."""

    exit_code = 1


class ProtectedError(VersionStoreError):
    """The default branch cannot be deleted."""

    exit_code = 2


class HookFailedError(VersionStoreError):
    """A hook refused the change; the branch did not move."""

    exit_code = 1


class UnsupportedError(VersionStoreError):
    """This backend cannot do that."""

    exit_code = 2


class UnauthorizedError(VersionStoreError):
    """The server refused the credentials."""


class UnavailableError(VersionStoreError):
    """The store cannot be reached, or its files are damaged."""


class DocumentError(PlumblineError):
    """One document cannot be read (encrypted, damaged, empty, too large, unknown format)."""


class QuarantinedError(DocumentError):
    """One document holds what `ingest.quarantine` keeps out of a release."""


class DamagedError(PlumblineError):
    """Stored content does not match its hash, or cannot be read."""


class StorageError(PlumblineError):
    """The disk refused a write."""


class LockedError(PlumblineError):
    """Another process is writing to this knowledge base."""


class BusyError(PlumblineError):
    """Too much waits to be done already."""


class EmbedderError(PlumblineError):
    """The embedding model cannot be loaded or run."""


class ModelError(PlumblineError):
    """A language model could not be asked, or its reply cannot be used.

    `transient` says whether the same request may succeed later.
    """

    def __init__(self, message: str, *, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient
