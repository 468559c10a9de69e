"""Golden questions: what the knowledge base must be able to answer, versioned with it."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from knowledge_base.documents import sha256_hex
from knowledge_base.errors import NotFoundError, SettingsError
from knowledge_base.release import GOLDEN_PREFIX
from knowledge_base.values import Frozen, canonical_json
from knowledge_base.version_store import Repository

State = Literal["candidate", "approved", "stale", "retired"]


class GoldenQuestion(Frozen):
    """One row of golden/*.jsonl: a question and what a good answer must rest on.

    `document` is the path that must be retrieved, `quote` a text that must stand in a retrieved
    passage (`quote_sha256` proves that nobody changed it since), `answer` the reference answer;
    `unanswerable` questions must be abstained from; no text of `forbidden` may stand in the answer, which
    makes a row a canary for obeyed injections and leaked personal data. Only approved rows are asked.
    """

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str | None = None
    document: str | None = None
    quote: str | None = None
    quote_sha256: str | None = None
    unanswerable: bool = False
    forbidden: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    state: State = "approved"
    source: str = "hand"

    @model_validator(mode="after")
    def _means_one_thing(self) -> Self:
        if self.unanswerable and (self.answer or self.document or self.quote):
            raise ValueError("an unanswerable question has no answer, document or quote")
        if self.quote_sha256 and self.quote_sha256 != sha256_hex((self.quote or "").encode()):
            raise ValueError("quote_sha256 is not the hash of the quote: correct the one or drop the other")
        return self

    def hashed(self) -> "GoldenQuestion":
        """The same row with the hash of its quote."""
        return (
            self.model_copy(update={"quote_sha256": sha256_hex(self.quote.encode())}) if self.quote else self
        )

    def is_held_by(self, document_text: Callable[[str], str]) -> bool:
        """Whether a release still holds what the row requires; one that names no document always does."""
        if self.document is None:
            return True
        try:
            text = document_text(self.document)
        except NotFoundError:
            return False
        return self.quote is None or self.quote in text


def load_golden(repository: Repository, ref: str) -> list[GoldenQuestion]:
    """Every golden row of a commit, whatever its state, by id.

    Raises:
        SettingsError: A line is not a golden question, or an id occurs twice.
    """
    commit = repository.resolve(ref)
    files = [
        (item.path, repository.get_object(commit, item.path).decode())
        for item in repository.list_objects(commit, prefix=GOLDEN_PREFIX)
        if item.path.endswith(".jsonl")
    ]
    return parse_golden(files)


def parse_golden(files: Iterable[tuple[str, str]]) -> list[GoldenQuestion]:
    """Golden questions of (name, text) pairs, by id. Raises SettingsError."""
    rows: dict[str, GoldenQuestion] = {}
    for name, text in files:
        for row in parse_rows(name, text):
            if row.id in rows:
                raise SettingsError(f"{name}: the id {row.id!r} occurs twice.", hint="Rename one.")
            rows[row.id] = row
    return [rows[key] for key in sorted(rows)]


def parse_rows(name: str, text: str) -> list[GoldenQuestion]:
    """The rows of one file, in its order. Raises SettingsError."""
    # Not splitlines(): JSON may hold U+2028 and its like unescaped inside a string.
    lines = text.removeprefix("\ufeff").split("\n")
    return [_parse(line, f"{name} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def format_rows(rows: Iterable[GoldenQuestion]) -> str:
    """Rows as JSON Lines; what has its default is left out."""
    return "".join(
        json.dumps(row.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) + "\n"
        for row in rows
    )


def _parse(line: str, where: str) -> GoldenQuestion:
    try:
        return GoldenQuestion.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where}: not JSON: {error}.", hint="One JSON object a line.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "row"
        raise SettingsError(f"{where}: {key}: {first['msg']}.", hint="See docs/evaluation.md.") from error


def golden_fingerprint(rows: Sequence[GoldenQuestion]) -> str:
    """Names a set of golden questions: 16 hexadecimal digits, empty for none."""
    return sha256_hex(b"".join(canonical_json(row) for row in rows))[:16] if rows else ""
