"""Hooks of the runs over /openapi.json."""

import itertools
import os
import re
from typing import Any

import schemathesis

_NUMBERS = itertools.count()


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """A header made up beside those described may be called Authorization: it would take the key's place."""
    return headers and {name: value for name, value in headers.items() if name.lower() != "authorization"}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """No two requests share an idempotency key: one that comes again is refused, which is not meant here."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        case.headers["Idempotency-Key"] = f"{key[:220]}-{os.getpid()}-{next(_NUMBERS)}"
