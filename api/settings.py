"""The one place that reads and sets the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from knowledge_base.errors import SettingsError

_QUIET = {
    # Libraries that would otherwise look for models, updates or a place to send statistics to.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "RAGAS_DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "TOKENIZERS_PARALLELISM": "true",
}
_PREFIX = "PLUMBLINE_"
_KNOWN = {"KB", "CACHE", "ANSWER_LOG", "DEBUG", "INDEX", "INDEX_HEADER", "GATE_TOKEN", "SERVER"}
_TRACING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FOR_TESTS = ("DATA", "TEST_")


@dataclass(frozen=True)
class Environment:
    """Plumbline's own variables, PLUMBLINE_KB and so on; docs/configuration.md has what each means."""

    kb: str | None
    cache: Path
    answer_log: str | None
    debug: bool
    index: str | None = None
    index_header: str = ""
    gate_token: str | None = None
    server: Path | None = None
    tracing: bool = False


def silence() -> None:
    """Keep every library off the network unless the user's environment says otherwise."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # A user who lets the hub in lets transformers in too.
    if os.environ["HF_HUB_OFFLINE"] == "0":
        os.environ["TRANSFORMERS_OFFLINE"] = "0"


def read_environment(values: Mapping[str, str] | None = None) -> Environment:
    """Plumbline's variables.

    Raises:
        SettingsError: A PLUMBLINE_ variable that does not exist: most likely a spelling mistake.
    """
    values = os.environ if values is None else values
    own = {name.removeprefix(_PREFIX): value for name, value in values.items() if name.startswith(_PREFIX)}
    unknown = sorted(name for name in own if name not in _KNOWN and not name.startswith(_FOR_TESTS))
    if unknown:
        raise SettingsError(
            f"Unknown environment variable {_PREFIX}{unknown[0]}.",
            hint=f"Known: {', '.join(_PREFIX + name for name in sorted(_KNOWN))}.",
        )
    home = Path(values.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Environment(
        kb=own.get("KB") or None,
        cache=Path(own.get("CACHE") or home / "plumbline"),
        answer_log=own.get("ANSWER_LOG") or None,
        debug=own.get("DEBUG", "") not in ("", "0"),
        index=own.get("INDEX") or None,
        index_header=own.get("INDEX_HEADER", ""),
        gate_token=own.get("GATE_TOKEN") or None,
        server=Path(own["SERVER"]) if own.get("SERVER") else None,
        tracing=any(values.get(name) for name in _TRACING),
    )
