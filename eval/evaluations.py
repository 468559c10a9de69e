"""Verdicts and answers, kept in the version store beside the releases they are of.

They lie on a branch of their own, by what decides the answers and not by commit, so a candidate and the
release it becomes share them:

    <digest>/answers.jsonl                 one row for each golden question: answer, scores
    <digest>/verdicts/<baseline>.json      the verdict against another digest, or "first"
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, get_args

from pydantic import ValidationError

from eval.gate import Status, Verdict
from eval.scores import Row, Scores
from knowledge_base.errors import (
    AlreadyExistsError,
    MergeConflictError,
    NoChangesError,
    NotFoundError,
    PlumblineError,
)
from knowledge_base.history import describe_release, list_releases, same_documents
from knowledge_base.home import EVALUATIONS, KnowledgeBase
from knowledge_base.values import Frozen
from knowledge_base.version_store import Commit, Repository

_ATTEMPTS = 3
_VERDICT = re.compile(r"[0-9a-f]+/verdicts/\w+\.json")
_FIRST = "first"


class Kept(Frozen):
    """A verdict as it was kept: `id` names the evaluation for ever."""

    id: str
    date: datetime
    verdict: Verdict


class Tally(Frozen):
    """How many verdicts of each status were kept up to the evaluation `newest`."""

    runs: dict[str, int] = {}
    newest: str = ""


class Evaluations:
    """What earlier evaluations left. Safe to use from several processes."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def rows(self, digest: str) -> tuple[Row, ...]:
        """The rows of a release's last evaluation, by its digest; none when there was none."""
        return self.rows_at(EVALUATIONS, digest)

    def rows_at(self, id: str, digest: str) -> tuple[Row, ...]:
        """The rows as they were when the evaluation `id` was kept."""
        content = self._read(f"{digest}/answers.jsonl", id)
        try:
            return tuple(Row.model_validate_json(line) for line in content.split(b"\n") if line)
        except ValidationError:
            return ()  # of another version of Plumbline: it is measured again

    def verdict(self, candidate: str, baseline: str) -> Verdict | None:
        """The last verdict on digest `candidate` against `baseline` (empty for none), if there is one."""
        content = self._read(_verdict_path(candidate, baseline))
        try:
            return Verdict.model_validate_json(content) if content else None
        except ValidationError:
            return None

    def verdicts(self, candidate: str, commit: str) -> list[Verdict]:
        """The kept verdicts on digest `candidate`, which is that of `commit`, and on the same documents."""
        prefix = f"{candidate}/verdicts/"
        try:
            newest = self._repository.resolve(EVALUATIONS)
        except NotFoundError:
            return []
        names = [
            item.path.removeprefix(prefix) for item in self._repository.list_objects(newest, prefix=prefix)
        ]
        found = [self.verdict(candidate, name.removesuffix(".json").removeprefix(_FIRST)) for name in names]
        return [one for one in found if one and same_documents(self._repository, one.candidate, commit)]

    def history(self, after: str | None, number: int) -> list[Kept]:
        """Up to `number` kept verdicts, newest first; those older than the evaluation `after`.

        Raises NotFoundError.
        """
        found: list[Kept] = []
        try:
            commits = self._repository.log(after or EVALUATIONS, first_parent=True)
            for commit in commits:
                if commit.id != after and (kept := self._kept_in(commit)):
                    found.append(kept)
                if len(found) == number:
                    break
        except NotFoundError:
            if after is not None:
                raise
        return found

    def count(self, since: Tally | None = None) -> Tally:
        """How many verdicts were ever kept, by status; what `since` counted is not read again."""
        runs: Counter[str] = Counter()
        newest = ""
        with suppress(NotFoundError):  # nothing was ever evaluated
            for commit in self._repository.log(EVALUATIONS, first_parent=True):
                newest = newest or commit.id
                # Not added before it is found: a repository that was made anew does not hold it.
                if since and commit.id == since.newest:
                    runs.update(since.runs)
                    break
                status = commit.message.split(" ", 1)[0]
                if status in get_args(Status):
                    runs[status] += 1
        return Tally(runs=dict(runs), newest=newest)

    def evaluation(self, id: str) -> Kept:
        """One evaluation. Raises NotFoundError."""
        commit = self._repository.get_commit(id)
        kept = self._kept_in(commit) if commit.id == id else None
        if kept is None:
            raise NotFoundError("evaluation", id, hint="GET /v1/evaluations lists them.")
        return kept

    def _kept_in(self, commit: Commit) -> Kept | None:
        """The verdict that a commit brought, if it brought one."""
        if not commit.parents:
            return None
        for change in self._repository.diff(commit.parents[0], commit.id, type="two_dot"):
            if _VERDICT.fullmatch(change.path) and change.type != "removed":
                with suppress(ValidationError):  # of another version of Plumbline
                    verdict = Verdict.model_validate_json(self._repository.get_object(commit.id, change.path))
                    return Kept(
                        id=commit.id, date=datetime.fromtimestamp(commit.creation_date, UTC), verdict=verdict
                    )
        return None

    def keep(self, verdict: Verdict, *measured: Scores) -> None:
        """Store a verdict with the rows that it rests on, in one commit.

        Raises:
            StorageError: The disk refused.
        """
        files: dict[str, bytes] = {}
        for scores in measured:
            lines = [row.model_dump_json(exclude_defaults=True) for row in scores.rows if not row.failure]
            files[f"{scores.digest}/answers.jsonl"] = "".join(f"{line}\n" for line in lines).encode()
        path = _verdict_path(verdict.candidate_digest, verdict.baseline_digest)
        files[path] = (verdict.model_dump_json(indent=2) + "\n").encode()
        self.write(files, f"{verdict.label} for {verdict.candidate[:12]}")

    def write(self, files: Mapping[str, bytes], message: str) -> None:
        """Store files on the branch in one commit; nothing happens when all of them are there already.

        Raises:
            StorageError: The disk refused.
        """
        for attempt in range(_ATTEMPTS):
            try:
                self._write(files, message)
                return
            except NoChangesError:
                return  # the same, again
            except MergeConflictError:  # another process wrote the same files at this moment
                if attempt == _ATTEMPTS - 1:
                    raise

    def _write(self, files: Mapping[str, bytes], message: str) -> None:
        self._ensure_branch()
        with self._repository.transact(EVALUATIONS, message=message) as transaction:
            for path, content in files.items():
                transaction.upload(path, content)

    def _ensure_branch(self) -> None:
        try:
            self._repository.get_branch(EVALUATIONS)
        except NotFoundError:
            *_, root = self._repository.log(self._repository.default_branch, first_parent=True)
            # The first commit of a repository has an empty tree.
            try:
                self._repository.create_branch(EVALUATIONS, root.id)
            except AlreadyExistsError:
                return

    def _read(self, path: str, ref: str = EVALUATIONS) -> bytes:
        try:
            return self._repository.get_object(ref, path)
        except NotFoundError:
            return b""


def _verdict_path(candidate: str, baseline: str) -> str:
    return f"{candidate}/verdicts/{baseline or _FIRST}.json"


def list_evaluated(knowledge_base: KnowledgeBase, ref: str, number: int | None) -> list[dict[str, Any]]:
    """The log from `ref`, and what later evaluations said of releases that no gate let through.

    Raises NotFoundError.
    """
    entries = list_releases(knowledge_base.repository, ref, number)
    for entry in entries:
        judged = entry["verdict"].startswith("PASS")
        entry["evaluated"] = "" if judged else label_of(knowledge_base, entry["commit"])
    return entries


def describe_evaluated(knowledge_base: KnowledgeBase, ref: str) -> dict[str, Any]:
    """One release with the verdicts on it. Raises NotFoundError, DamagedError."""
    value = describe_release(knowledge_base, ref)
    release = knowledge_base.release(ref)
    found = Evaluations(knowledge_base.repository).verdicts(release.answers_digest, release.commit)
    return {**value, "verdicts": [verdict.as_json() for verdict in found]}


def label_of(knowledge_base: KnowledgeBase, commit: str) -> str:
    """What evaluations said of a release, whoever asked for them; empty when there was none."""
    try:
        digest = knowledge_base.release(commit).answers_digest
    except PlumblineError:
        return ""  # its content is gone: the log goes on
    found = Evaluations(knowledge_base.repository).verdicts(digest, commit)
    return ", ".join(dict.fromkeys(verdict.label for verdict in found))
