"""How values are kept: frozen models, one way to write them, fingerprints that name what decides a result."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

Fingerprint = Mapping[str, str | int | float | bool]
"""What decides a result, as flat canonical values; two of them are equal or the results may differ."""


class Frozen(BaseModel):
    """Every persisted value: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: BaseModel | Mapping[str, Any]) -> bytes:
    """The one way a value is written: sorted keys, two spaces, a final newline."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def fingerprint_id(fingerprint: Fingerprint) -> str:
    """A short name for a fingerprint: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:16]
