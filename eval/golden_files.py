"""Golden rows in the working copy: read, added, imported, reviewed; `rag ingest` commits them."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.golden import GoldenQuestion, State, format_rows, parse_golden, parse_rows
from knowledge_base.documents import sha256_hex
from knowledge_base.durable import exclusive_lock, write_bytes
from knowledge_base.errors import AlreadyExistsError, NotFoundError, SettingsError, SourceError, UsageError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import GOLDEN_PREFIX, committed_files
from knowledge_base.version_store import LAKEFS

_ALIASES = {
    # RAGAS's names, and those of its older data sets
    "user_input": "question",
    "reference": "answer",
    "ground_truth": "answer",
    "reference_contexts": "quote",
}
_TRUE = {"1", "true", "yes"}


class GoldenFiles:
    """The golden/*.jsonl of a knowledge base on disk."""

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._root = knowledge_base.root
        self._knowledge_base = knowledge_base

    def rows(self) -> list[GoldenQuestion]:
        """Every row, in the order of the files. Raises SettingsError."""
        texts = self._texts()
        parse_golden(texts.items())  # an id that occurs twice is refused
        return [row for path, text in texts.items() for row in parse_rows(path, text)]

    def add(
        self, rows: Iterable[GoldenQuestion], name: str, limit: int | None = None
    ) -> list[GoldenQuestion]:
        """Append up to `limit` rows to golden/`name`.jsonl, without those whose question is already asked.

        Returns the rows that were added, with an id and the hash of their quote.

        Raises:
            AlreadyExistsError: An id is taken.
            SettingsError: A golden file cannot be read.
            UsageError: There is no working copy.
            StorageError: The disk refused.
        """
        with self._writing():
            return self._add(rows, name, limit)

    def _add(self, rows: Iterable[GoldenQuestion], name: str, limit: int | None) -> list[GoldenQuestion]:
        known = self.rows()
        asked, ids = {plain(row.question) for row in known}, {row.id for row in known}
        added: list[GoldenQuestion] = []
        for row in rows:
            if len(added) == limit:
                break
            if plain(row.question) in asked:
                continue
            if row.id in ids:
                raise AlreadyExistsError(f"The golden id {row.id!r} is taken.", hint="Choose another one.")
            asked.add(plain(row.question))
            ids.add(row.id)
            added.append(row.hashed())
        if added:
            path = f"{GOLDEN_PREFIX}{name}.jsonl"
            before = self._texts().get(path, "")
            before += "\n" if before and not before.endswith("\n") else ""
            self._write(path, before + format_rows(added))
        return added

    def replace(self, row: GoldenQuestion) -> GoldenQuestion:
        """Put `row` in the place of the one that asks the same, whose id it takes.

        Raises:
            NotFoundError: Nothing asks the same.
            SettingsError: A golden file cannot be read.
            UsageError: There is no working copy.
            StorageError: The disk refused.
        """
        with self._writing():
            for path, text in self._texts().items():
                rows = parse_rows(path, text)
                for number, old in enumerate(rows):
                    if plain(old.question) == plain(row.question):
                        rows[number] = row.model_copy(update={"id": old.id}).hashed()
                        self._write(path, format_rows(rows))
                        return rows[number]
        raise NotFoundError("golden question", row.question, hint="`rag golden list` lists them.")

    def set_state(self, ids: Sequence[str], state: State) -> list[GoldenQuestion]:
        """Give rows another state, where they stand.

        Raises NotFoundError, SettingsError, UsageError, StorageError.
        """
        with self._writing():
            return self._set_state(ids, state)

    def _set_state(self, ids: Sequence[str], state: State) -> list[GoldenQuestion]:
        missing = sorted(set(ids) - {row.id for row in self.rows()})
        if missing:
            raise NotFoundError("golden question", missing[0], hint="`rag golden list` lists them.")
        changed = []
        for path, text in self._texts().items():
            rows = parse_rows(path, text)
            new = [row.model_copy(update={"state": state}) if row.id in ids else row for row in rows]
            if new != rows:
                self._write(path, format_rows(new))
            changed += [row for row in new if row.id in ids]
        return changed

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Read and write the files alone: nobody's rows are lost."""
        if self._knowledge_base.detached:
            raise UsageError(
                "There is no working copy to keep golden questions in.",
                hint=f"Make one: `rag init --kb {LAKEFS}{self._knowledge_base.repository.id} DIR`.",
            )
        lock = self._knowledge_base.folder / "golden.lock"
        with exclusive_lock(lock, wait_seconds=self._knowledge_base.lock_seconds):
            yield

    def _texts(self) -> dict[str, str]:
        files = self._knowledge_base.working_files()
        return {path: content.decode() for path, content in files.items() if path.startswith(GOLDEN_PREFIX)}

    def _write(self, path: str, text: str) -> None:
        write_bytes(self._root / path, text.encode())


def rows_as_they_stand(
    knowledge_base: KnowledgeBase, document_text: Callable[[str], str]
) -> list[dict[str, Any]]:
    """The rows on disk as plain values with the state they have in truth, and the `reason` of stale ones.

    `document_text` reads the documents of the release that they are held against, and raises NotFoundError.
    Raises SettingsError.
    """
    described = []
    for row in GoldenFiles(knowledge_base).rows():
        value = row.model_dump(mode="json") | {"reason": ""}
        if row.state == "approved" and not row.is_held_by(document_text):
            value["state"], value["reason"] = "stale", _lost(row, document_text)
        described.append(value)
    return described


def uncommitted_golden(knowledge_base: KnowledgeBase) -> list[str]:
    """Paths of golden files that are on disk otherwise than in main. Raises SettingsError."""
    repository = knowledge_base.repository
    released = committed_files(repository, repository.resolve(MAIN))
    present = knowledge_base.working_files()
    paths = {path for path in (*released, *present) if path.startswith(GOLDEN_PREFIX)}
    return sorted(path for path in paths if released.get(path) != present.get(path))


def _lost(row: GoldenQuestion, document_text: Callable[[str], str]) -> str:
    try:
        document_text(row.document or "")
    except NotFoundError:
        return f"main does not hold {row.document!r}"
    return f"its quote does not stand in {row.document!r}"


def read_import(path: Path, state: State) -> list[GoldenQuestion]:
    """Rows of a CSV or JSONL file, with our column names or RAGAS's.

    Raises:
        SourceError: The file cannot be read.
        SettingsError: A row is not a golden question; the message names the row and the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path} cannot be read: {error}.", hint="Name a CSV or JSONL file in UTF-8."
        ) from error
    if path.suffix.lower() == ".csv":
        records: list[tuple[int, Any]] = list(enumerate(csv.DictReader(io.StringIO(text)), 2))
    else:
        records = [(number, _json(line, path, number)) for number, line in _lines(text)]
    return [_row(record, f"{path.name} line {number}", path.stem, state) for number, record in records]


def _lines(text: str) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path.name} line {number}: not JSON: {error}.", hint="One JSON object a line."
        ) from error


def _row(record: Mapping[str, Any], where: str, name: str, state: State) -> GoldenQuestion:
    values: dict[str, Any] = {"state": state, "source": f"import {name}"}
    for key, value in record.items():
        if value in (None, "", []):
            continue
        column = _ALIASES.get(key, key)
        if column == "quote" and isinstance(value, list):
            value = value[0]
        if column in ("tags", "forbidden") and isinstance(value, str):
            value = [part.strip() for part in value.split(";") if part.strip()]
        if column == "unanswerable" and isinstance(value, str):
            value = value.strip().lower() in _TRUE
        values[column] = value
    values.setdefault("id", make_id(str(values.get("question", ""))))
    try:
        return GoldenQuestion.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"{where}: {'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}.",
            hint=f"Columns: {', '.join(GoldenQuestion.model_fields)}, or RAGAS's {', '.join(_ALIASES)}.",
        ) from error


def make_id(question: str) -> str:
    """An id for a question: its first words and a hash."""
    words = re.findall(r"[a-z0-9]+", question.lower())[:6]
    return "-".join([*words, sha256_hex(plain(question).encode())[:8]])


def plain(question: str) -> str:
    """A question as it is compared with others: without case and spacing."""
    return " ".join(question.casefold().split())
