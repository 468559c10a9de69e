#!/bin/sh
# `make demo-mlflow`: two evaluations logged as MLflow runs in a local SQLite file, then read back with MLflow.
set -eu
rag="$PWD/$1/rag"
python="$PWD/$1/python"
kb="$PWD/demo/mlflow"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

if [ ! -d "$kb/.plumbline" ]; then
    say rag init demo/mlflow
    "$rag" init "$kb"
    printf '\n[tracking]\nuri = "sqlite:///mlflow.sqlite"\n' >> "$kb/plumbline.toml"
    "$rag" ingest docs --exclude '*.sh' --exclude '*.yml' --no-gate --reason "the first release of a demo" --kb "$kb"
    say rag golden generate --number 20
    "$rag" golden generate --number 20 --kb "$kb"
    "$rag" golden review --all --approve --kb "$kb"
fi
say rag ingest
"$rag" ingest --kb "$kb"
say rag eval --again
"$rag" eval --again --kb "$kb"
say "MLflow's own client: runs and prompts"
MLFLOW_DISABLE_TELEMETRY=true "$python" -W ignore - "sqlite:///$kb/.plumbline/mlflow.sqlite" <<'PYTHON'
import sys

from mlflow import MlflowClient

client = MlflowClient(tracking_uri=sys.argv[1], registry_uri=sys.argv[1])
experiment = client.get_experiment_by_name("plumbline")
for run in client.search_runs([experiment.experiment_id]):
    shown = {name: round(run.data.metrics[name], 3) for name in ("context_recall", "faithfulness") if name in run.data.metrics}
    print(run.info.run_name, shown, [item.path for item in client.list_artifacts(run.info.run_id)])
for prompt in client.search_prompts():
    print("prompt", prompt.name, [version.tags for version in client.search_prompt_versions(prompt.name)])
PYTHON
