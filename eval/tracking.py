"""Evaluations as MLflow runs, prompts in its registry by hash; the only place that imports mlflow."""

import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.gate import Verdict
from knowledge_base.configuration import TrackingSettings
from knowledge_base.errors import MissingExtraError, UnavailableError
from knowledge_base.release import Release, hash_prompts

_HASH = "sha256"


def track(settings: TrackingSettings, verdict: Verdict, release: Release, folder: Path) -> str:
    """Log one evaluation; returns the id of its run.

    Parameters are the fingerprints of the release, metrics its scores and the differences to the baseline,
    and the whole verdict is an artifact. A relative sqlite URI lies in `folder`.

    Raises:
        MissingExtraError: mlflow is not installed.
        UnavailableError: The tracking server or store cannot be used.
    """
    try:
        with warnings.catch_warnings():
            # MLflow configures SQLAlchemy with an option that SQLAlchemy 2.1 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _track(_client(settings, folder), settings, verdict, release, folder)
    except ImportError as error:
        raise MissingExtraError(
            f"[tracking] needs mlflow: {error}.", hint='Run: pip install "plumbline[tracking]"'
        ) from error
    except MissingExtraError:
        raise
    except Exception as error:
        raise UnavailableError(
            f"MLflow at {settings.uri} cannot be used: {_first_line(error)}.",
            hint="Check tracking.uri in plumbline.toml; the verdict stands without it.",
        ) from error


def _client(settings: TrackingSettings, folder: Path) -> Any:
    from mlflow import MlflowClient

    uri = settings.uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{folder / uri.removeprefix('sqlite:///')}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _track(client: Any, settings: TrackingSettings, verdict: Verdict, release: Release, folder: Path) -> str:
    run: str = client.create_run(
        _experiment(client, settings, folder),
        run_name=f"{verdict.label} {verdict.candidate[:12]}",
        tags={"status": verdict.status, "commit": verdict.candidate, "baseline": verdict.baseline},
    ).info.run_id
    for name, value in _parameters(verdict, release).items():
        client.log_param(run, name, value)
    for name, number in _numbers(verdict).items():
        client.log_metric(run, name, number)
    client.log_text(run, json.dumps(verdict.as_json(), indent=2, ensure_ascii=False), "verdict.json")
    for file, text in release.prompts.items():
        _register(client, file.removesuffix(".md"), text)
    client.set_terminated(run)
    return run


def _experiment(client: Any, settings: TrackingSettings, folder: Path) -> str:
    found = client.get_experiment_by_name(settings.experiment)
    if found:
        return str(found.experiment_id)
    local = settings.uri.startswith("sqlite:")
    place = {"artifact_location": (folder / "mlflow").as_uri()} if local else {}
    return str(client.create_experiment(settings.experiment, **place))


def _parameters(verdict: Verdict, release: Release) -> dict[str, str]:
    """What the scores are of, as fingerprints and settings."""
    settings = release.settings
    return {
        "release": verdict.candidate_digest,
        "baseline": verdict.baseline_digest,
        "golden": verdict.golden,
        "judge": verdict.judge,
        "prompt": release.prompt_hash,
        "model": settings.answer.model,
        "embedder": settings.embedder.model,
        "retrieval": f"{settings.retrieval.mode}, top {settings.retrieval.top_k}",
        "changed": ",".join(verdict.changed),
        "documents": str(release.manifest.documents),
        "chunks": str(release.manifest.chunks),
    }


def _numbers(verdict: Verdict) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for metric in verdict.metrics:
        if metric.candidate is not None:
            numbers[metric.name] = metric.candidate
        if metric.delta is not None:
            numbers[f"{metric.name}_difference"] = metric.delta
    figures = verdict.summary.get("candidate", {})
    return numbers | {name: value for name, value in figures.items() if value is not None}


def _register(client: Any, name: str, text: str) -> None:
    """Register a prompt once for each text it ever had; its hash is a tag of the version."""
    digest = hash_prompts({"": text})
    known = []
    with suppress(Exception):  # MLflow raises when a prompt has no versions yet
        known = [version.tags.get(_HASH) for version in client.search_prompt_versions(name)]
    if digest not in known:
        client.register_prompt(name=name, template=text, commit_message=digest, tags={_HASH: digest})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
