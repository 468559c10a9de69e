"""The behaviour suite of the version stores, side by side: the same cases for each backend.

Runs `tests/test_version_store_behaviour.py` and lists every case with what became of it on git, on the
lakeFS double and, when PLUMBLINE_TEST_LAKEFS_ENDPOINT names one, on a real lakeFS server.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rich.markup import escape

from benchmarks.common import parser, scratch, show

BACKENDS = ("git", "lakefs", "lakefs-real")


def outcomes(report: Path) -> dict[str, dict[str, str]]:
    """Case -> backend -> passed, failed, or why it was skipped."""
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, _, parameters = str(case.get("name")).partition("[")
        parts = parameters.rstrip("]").split("-")
        backend = "lakefs-real" if parts[:2] == ["lakefs", "real"] else parts[0]
        if backend not in BACKENDS:
            continue  # a case without a store
        skipped = case.find("skipped")
        result = "passed"
        if skipped is not None:
            result = f"unsupported: {skipped.get('message')}"
        elif case.find("failure") is not None or case.find("error") is not None:
            result = "FAILED"
        rest = re.sub(rf"^{backend}-?", "", parameters.rstrip("]"))
        found.setdefault(f"{name}[{rest}]" if rest else name, {})[backend] = result
    return found


def main() -> int:
    """Run the suite; the exit status is pytest's."""
    arguments = parser(__doc__ or "").parse_args()
    with scratch() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--junitxml", str(report)]
        run = subprocess.run([*command, "tests/test_version_store_behaviour.py"], stdout=subprocess.DEVNULL)
        found = outcomes(report)
    backends = [name for name in BACKENDS if any(name in case for case in found.values())]
    counts = {name: Counter(case.get(name, "not run") for case in found.values()) for name in backends}
    if arguments.json:
        sys.stdout.write(json.dumps({"cases": found, "counts": counts}, indent=2) + "\n")
    else:
        rows = [
            [escape(case), *(result.get(name, "not run") for name in backends)]
            for case, result in found.items()
        ]
        show("Behaviour of the version stores", ("case", *backends), rows)
        for name in backends:
            said = ", ".join(f"{count} {result}" for result, count in counts[name].most_common())
            sys.stdout.write(f"{name}: {said}\n")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
