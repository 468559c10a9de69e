"""What an operator sets for a server: its limits, what it logs, who may call it from a browser."""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from api.uploads import MAX_UPLOAD_BYTES
from knowledge_base.errors import SettingsError
from knowledge_base.values import Frozen


class ServeSettings(Frozen):
    """The table `[serve]` of a server file; docs/serving.md says what each is for."""

    max_body_bytes: int = Field(default=256 * 1024, ge=1024, le=16 * 1024 * 1024)
    max_upload_bytes: int = Field(default=MAX_UPLOAD_BYTES, ge=1024, le=MAX_UPLOAD_BYTES)
    requests_per_minute: int = Field(default=6000, ge=0)
    # Threads that compute share one interpreter with the loop that refuses: more of them make both slow.
    concurrent_requests: int = Field(default=8, ge=1, le=1000)
    queued_requests: int = Field(default=64, ge=0, le=10_000)
    queue_seconds: float = Field(default=5, gt=0)
    concurrent_uploads: int = Field(default=4, ge=1, le=100)
    body_seconds: float = Field(default=20, gt=0)
    request_seconds: float = Field(default=120, gt=0)
    upload_seconds: float = Field(default=600, gt=0)
    cors_origins: tuple[str, ...] = ()
    log_questions: bool = False


def read_serve_settings(path: Path | None) -> ServeSettings:
    """The settings in a server file; the defaults without one.

    Raises:
        SettingsError: The file cannot be read, or something in it is not a setting.
    """
    if path is None:
        return ServeSettings()
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(given) - {"serve"}):
            raise SettingsError(f"{path} has no use for {unknown[0]!r}.", hint="Its one table is [serve].")
        return ServeSettings.model_validate(given.get("serve", {}))
    except OSError as error:
        raise SettingsError(
            f"The server file {path} cannot be read: {error.strerror or error}.",
            hint="Name another: --settings FILE or PLUMBLINE_SERVER.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}.", hint="See docs/serving.md.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise SettingsError(f"{path}: serve.{where}: {said}.", hint="See docs/serving.md.") from error
