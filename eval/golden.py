"""Golden questions: what the knowledge base must be able to answer, versioned with it."""

import json
from collections.abc import Iterable
from typing import Self

from pydantic import Field, ValidationError, model_validator

from knowledge_base.documents import sha256_hex
from knowledge_base.errors import SettingsError
from knowledge_base.release import GOLDEN_PREFIX, Frozen, canonical_json
from knowledge_base.version_store import Repository


class GoldenQuestion(Frozen):
    """One row of golden/*.jsonl: a question and what a good answer must rest on.

    `document` is the path that must be retrieved, `quote` a text that must stand in a retrieved
    passage, `answer` the reference answer; `unanswerable` questions must be abstained from.
    """

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str | None = None
    document: str | None = None
    quote: str | None = None
    unanswerable: bool = False
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _means_one_thing(self) -> Self:
        if self.unanswerable and (self.answer or self.document or self.quote):
            raise ValueError("an unanswerable question has no answer, document or quote")
        return self


def load_golden(repository: Repository, ref: str) -> list[GoldenQuestion]:
    """The golden questions of a commit, by id.

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
        # Not splitlines(): JSON may hold U+2028 and its like unescaped inside a string.
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            if not line.strip():
                continue
            row = _parse(line, f"{name} line {number}")
            if row.id in rows:
                raise SettingsError(
                    f"{name} line {number}: the id {row.id!r} occurs twice.", hint="Rename one."
                )
            rows[row.id] = row
    return [rows[key] for key in sorted(rows)]


def _parse(line: str, where: str) -> GoldenQuestion:
    try:
        return GoldenQuestion.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where}: not JSON: {error}.", hint="One JSON object a line.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "row"
        raise SettingsError(f"{where}: {key}: {first['msg']}.", hint="See docs/evaluation.md.") from error


def golden_fingerprint(rows: Iterable[GoldenQuestion]) -> str:
    """Names a set of golden questions: 16 hexadecimal digits."""
    return sha256_hex(b"".join(canonical_json(row) for row in rows))[:16]
