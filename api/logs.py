"""Logs as lines of JSON, each with the id of the request it belongs to."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from api.request_context import REQUEST_ID

_ACCESS = logging.getLogger("plumbline.access")
_ANSWERS = logging.getLogger("plumbline.answers")


class JsonLines(logging.Formatter):
    """One JSON object a line; what a record carries as `fields` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging() -> None:
    """Send every log of this process to standard error as JSON: ours from INFO on, others' from WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("plumbline").setLevel(logging.INFO)


def log_request(**fields: Any) -> None:
    """The line that every request leaves."""
    _ACCESS.info("request", extra={"fields": fields})


def log_answer(**fields: Any) -> None:
    """The line that every answer leaves."""
    _ANSWERS.info("answer", extra={"fields": fields})
