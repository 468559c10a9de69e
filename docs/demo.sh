#!/bin/sh
# `make demo`: Plumbline's main job on documents that every installation has: this project's own docs and
# the descriptions that the installed packages carry. A second run finds nothing changed.
set -eu
rag="$PWD/$1/rag"
python="$PWD/$1/python"
kb="$PWD/demo/kb"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

mkdir -p demo
"$python" - demo/packages <<'PYTHON'
import sys
from importlib.metadata import distributions
from pathlib import Path

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for distribution in distributions():
    text = distribution.metadata.get_payload() or distribution.metadata.get("Description") or ""
    name = distribution.metadata["Name"]
    if len(text) > 400 and name != "plumbline":
        (folder / f"{name.lower()}.md").write_text(text, encoding="utf-8")
PYTHON

if [ ! -d "$kb/.plumbline" ]; then
    say rag init demo/kb
    "$rag" init "$kb"
fi
say rag ingest README.md CHANGELOG.md CONTRIBUTING.md docs --prefix plumbline --prune --exclude demo.sh --exclude '"*.png"' --exclude '"*.svg"'
"$rag" ingest README.md CHANGELOG.md CONTRIBUTING.md docs --prefix plumbline --prune --exclude demo.sh --exclude "*.png" --exclude "*.svg" --kb "$kb"
say rag ingest demo/packages --prefix packages --prune
"$rag" ingest demo/packages --prefix packages --prune --kb "$kb"
say rag log
"$rag" log --kb "$kb"
for question in \
    "What does one commit pin?" \
    "How do I install FastAPI?" \
    "Who won the football world cup in 1998?"; do
    say rag ask "\"$question\""
    "$rag" ask "$question" --kb "$kb"
done
printf '\nThe knowledge base is in demo/kb. Try: .venv/bin/rag search "how do I split documents" --kb demo/kb\n'
