"""Dates and times in requests, as ISO 8601 writes them: a number is not taken for seconds since 1970."""

import re
from datetime import date
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator

_WRITTEN = re.compile(r"\d{4}-\d\d-\d\d")


def _refuse_numbers(value: object) -> object:
    if isinstance(value, int | float | str) and not _WRITTEN.match(str(value)):
        raise ValueError("write it like 2026-11-21")
    return value


Day = Annotated[date, BeforeValidator(_refuse_numbers)]
Moment = Annotated[AwareDatetime, BeforeValidator(_refuse_numbers)]
