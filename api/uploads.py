"""Multipart uploads, written to disk as they come in: no file is ever held in memory whole, none unpacked."""

import hashlib
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from knowledge_base.durable import disk_errors
from knowledge_base.errors import InvalidPathError, UsageError
from knowledge_base.naming import validate_path
from knowledge_base.release import DOCUMENTS_PREFIX

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_UPLOAD_BYTES = 256 * 1024 * 1024
MAX_FILES = 1000
MAX_PREFIX = 500
FIELD = "files"

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MAX_FILES,
                            "items": {"type": "string", "format": "binary"},
                            "description": "Each part's filename is the path of its document.",
                        }
                    },
                }
            }
        },
    }
}
"""What OpenAPI says of the body, because FastAPI does not read it for us."""


@dataclass(frozen=True)
class Uploaded:
    """A file that has come in: the document it is to be, and the hash of its bytes."""

    path: str
    sha256: str


async def receive_files(
    request: Request, folder: Path, prefix: str = "", *, prefix_field: str = ""
) -> list[Uploaded]:
    """Write the files of a multipart body to `folder`/0, 1, ... as they come in.

    `prefix` is put in front of every filename; a form that a person fills in says it instead in the text
    field called `prefix_field`, before the files: the name of a folder.

    Raises:
        HTTPException: The body is too long (413) or of another type (415).
        UsageError: It is no multipart body, holds no file, or names one that no document can have.
        StorageError: The disk refused.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise HTTPException(415, f"Send the files as multipart/form-data, in fields called {FIELD!r}.")
    try:
        parts = _Parts(folder, prefix, prefix_field)
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())
        received = 0
        try:
            async for data in request.stream():
                received += len(data)
                if received > MAX_UPLOAD_BYTES:
                    raise HTTPException(413, f"The upload is longer than {MAX_UPLOAD_BYTES} bytes.")
                await run_in_threadpool(_write, parser, data)
        finally:
            parts.close()
    except ClientDisconnect as error:
        raise UsageError("The upload ended before its last part did.") from error
    except FormParserError as error:
        raise UsageError(f"The body is no multipart form: {error}.", hint="See /openapi.json.") from error
    if not parts.complete:
        raise UsageError("The upload ended before its last part did.", hint="Send it again.")
    if not parts.files:
        raise UsageError("The upload holds no file.", hint=f"Send them in fields called {FIELD!r}.")
    return parts.files


def _write(parser: MultipartParser, data: bytes) -> None:
    with disk_errors("the upload"):
        parser.write(data)


@dataclass
class _Parts:
    """The parts of a form as the parser finds them."""

    folder: Path
    prefix: str
    prefix_field: str
    files: list[Uploaded] = field(default_factory=list)
    complete: bool = False
    _name: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _text: bytes = b""
    _path: str = ""
    _file: BinaryIO | None = None
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._disposition = self._name = self._value = self._text = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name and name == self.prefix_field and b"filename" not in options and not self.files:
            return
        if name != FIELD or b"filename" not in options:
            raise UsageError(
                f"A part of the form is not a file in a field called {FIELD!r}.",
                hint="Say branch, message and prefix in the query.",
            )
        if len(self.files) == MAX_FILES:
            raise UsageError(f"The upload holds more than {MAX_FILES} files.", hint="Send them in several.")
        self._path = document_path(options[b"filename"], self.prefix)
        if any(known.path == self._path for known in self.files):
            raise UsageError(f"Two files would both be the document {self._path!r}.", hint="Rename one.")
        self._file = open(self.folder / str(len(self.files)), "wb")  # noqa: SIM115 - closed in _end or close
        self._hash = hashlib.sha256()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._text += data[start:end]
            if len(self._text) > MAX_PREFIX:
                raise UsageError(
                    f"A folder's path has {MAX_PREFIX} bytes at most.", hint="Choose a shorter one."
                )
            return
        self._file.write(data[start:end])
        self._hash.update(data[start:end])

    def _end(self) -> None:
        if self._file is None:
            self.prefix = folder_prefix(self._text)
            return
        self.close()
        self.files.append(Uploaded(self._path, self._hash.hexdigest()))

    def _all(self) -> None:
        self.complete = True


def folder_prefix(folder: bytes) -> str:
    """What stands in front of the filenames that go into a folder, whose name a person wrote."""
    name = folder.decode(errors="replace").strip().strip("/")
    return f"{name}/" if name else ""


def document_path(filename: bytes, prefix: str = "") -> str:
    """The path of the document that an uploaded file is to be. Raises UsageError."""
    try:
        path = unicodedata.normalize("NFC", prefix + filename.decode())
        return validate_path(DOCUMENTS_PREFIX + path).removeprefix(DOCUMENTS_PREFIX)
    except (UnicodeDecodeError, InvalidPathError) as error:
        reason = error.message if isinstance(error, InvalidPathError) else "it is not UTF-8"
        raise UsageError(
            f"{prefix + filename.decode(errors='replace')!r} cannot be a document's path: {reason}",
            hint="Say a filename like guides/install.md.",
        ) from error
