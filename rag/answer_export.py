"""The answer log as a Parquet file, for whatever analyses answers elsewhere."""

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from knowledge_base.durable import disk_errors
from rag.answer_log import AnswerLog, Entry

_ROWS = 500
_SAID = pa.struct(
    [
        ("rating", pa.string()),
        ("comment", pa.string()),
        ("correction", pa.string()),
        ("citation", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("asked_at", pa.timestamp("us", tz="UTC")),
        ("ref", pa.string()),
        ("release", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("abstained", pa.bool_()),
        ("cited", pa.list_(pa.string())),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost", pa.float64()),
        ("total_ms", pa.float64()),
        ("feedback", pa.list_(_SAID)),
        ("record", pa.string()),
    ]
)
"""`cited` are document paths; `record` is the whole answer as JSON, as POST /v1/query gave it."""


def export_parquet(log: AnswerLog, path: Path) -> int:
    """Write every answer with its feedback, oldest first; returns how many.

    The file appears when it is complete, in place of one that was there.

    Raises:
        StorageError: The log cannot be read, or the file not written.
    """
    written = 0
    unfinished = path.with_name(f".{path.name}.unfinished")
    with disk_errors(str(path)):
        try:
            with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
                entries = log.entries()
                while rows := [_row(entry) for entry in islice(entries, _ROWS)]:
                    writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                    written += len(rows)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return written


def _row(entry: Entry) -> dict[str, Any]:
    answer = entry.answer
    return {
        **answer.model_dump(include={"id", "question", "answer", "abstained", "model", "prompt", "cost"}),
        "asked_at": entry.asked_at,
        "ref": answer.release.ref,
        "release": answer.release.commit,
        "cited": list(dict.fromkeys(citation.path for citation in answer.citations)),
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "total_ms": answer.timings_ms.get("total"),
        "feedback": [said.model_dump() for said in entry.feedback],
        "record": answer.model_dump_json(),
    }
