"""Actions of the lakeFS double: webhooks before a merge, a commit or a tag, and the log of their runs."""

import json
import re
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import yaml

from tests.lakefs_model import Refusal, Repository, Tree

_PREFIX = "_lakefs_actions/"


@dataclass
class HookRun:
    id: str
    action: str
    hook: str
    passed: bool
    output: str

    def as_json(self) -> dict[str, Any]:
        return {
            "hook_run_id": self.id,
            "action": self.action,
            "hook_id": self.hook,
            "start_time": datetime.now(UTC).isoformat(),
            "end_time": datetime.now(UTC).isoformat(),
            "status": "completed" if self.passed else "failed",
        }


class Actions:
    """Runs what the action files of a tree ask for; `environment` fills `{{ ENV.NAME }}`."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._runs: dict[str, dict[str, HookRun]] = {}

    def hooks(self, run: str) -> dict[str, HookRun]:
        if run not in self._runs:
            raise Refusal(404, "run not found")
        return self._runs[run]

    def run(self, repository: Repository, event: dict[str, Any], tree: Tree) -> None:
        """Read from the tree of the SOURCE of a merge: without the file there, nothing runs."""
        kind, run = event["event_type"], secrets.token_hex(10)
        runs: dict[str, HookRun] = {}
        for path, entry in tree.items():
            if not path.startswith(_PREFIX) or not path.endswith((".yaml", ".yml")):
                continue
            try:
                action = yaml.safe_load(repository.blobs[entry.checksum])
                wanted = action.get("on", action.get(True)).get(kind, False)
            except (yaml.YAMLError, AttributeError) as error:
                raise Refusal(500, f"action file {path} cannot be parsed") from error
            if wanted is False or not _matches(wanted, event.get("branch_id", "")):
                continue
            for number, hook in enumerate(action["hooks"]):
                body = {
                    **event,
                    "event_time": datetime.now(UTC).isoformat(),
                    "action_name": action["name"],
                    "hook_id": hook["id"],
                    "repository_id": repository.id,
                }
                passed, output = self._call(hook["properties"], body)
                name = f"{len(runs):04d}_{number:04d}"
                runs[name] = HookRun(name, action["name"], hook["id"], passed, output)
                if not passed:
                    break
        self._runs[run] = runs
        failed = [hook for hook in runs.values() if not hook.passed]
        if failed:
            first = failed[0]
            code = first.output.partition("\n")[0]
            raise Refusal(
                412,
                f"update branch {event.get('branch_id', '')}: {kind} hook aborted, run id '{run}': 1 error "
                f"occurred: * hook run id '{first.id}' failed on action '{first.action}' hook "
                f"'{first.hook}': action failed: {code}",
            )

    def _call(self, properties: dict[str, Any], body: dict[str, Any]) -> tuple[bool, str]:
        headers = {name: self._filled(value) for name, value in properties.get("headers", {}).items()}
        seconds = float(str(properties.get("timeout", "60s")).removesuffix("s"))
        shown = {key: value for key, value in body.items() if value not in ("", None, {})}
        request = urllib.request.Request(
            self._filled(properties["url"]),
            json.dumps(shown).encode(),
            {"Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return True, answer.read().decode()
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            return False, f"webhook request failed (status code: {error.code})\n{said}"
        except OSError as error:
            return False, f"webhook request failed ({error})"

    def _filled(self, text: str) -> str:
        return re.sub(r"\{\{\s*ENV\.(\w+)\s*\}\}", lambda found: self.environment.get(found[1], ""), text)


def _matches(wanted: Any, branch: str) -> bool:
    patterns = (wanted or {}).get("branches")
    return not patterns or not branch or any(fnmatchcase(branch, pattern) for pattern in patterns)
