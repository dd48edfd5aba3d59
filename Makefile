# Everything a person or a machine does with this project. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 4
NODE := tests/clients/javascript/node_modules

# The tests start some 400 Python processes: without bytecode, each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test test-cluster lint types unit exhaustive soak chaos load screenshots fuzz clients bench lock clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.serve  ## install what the server needs and start it (ARGS="--port 8080 ...")
	$(BIN)/llm-server serve $(ARGS)

test: lint types unit clients  ## lint, types and tests: what CI runs

lint: $(VENV)/.dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

unit: $(VENV)/.dev  ## pytest, the default suite
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

exhaustive: $(VENV)/.dev  ## pytest, one after the other, with all that is left out or sampled by default
	EXHAUSTIVE=1 $(BIN)/pytest tests/chat tests/faults $(ARGS)

clients: $(VENV)/.dev $(VENV)-clients/.done $(VENV)-clients-openai-2/.done $(NODE)/.done  ## pytest, with frameworks and JavaScript packages as clients
	$(BIN)/pytest tests/clients/test_javascript.py
	SERVER_PYTHON=$(BIN)/python $(VENV)-clients/bin/python -m pytest -c tests/clients/pytest.ini \
	  $(addprefix tests/clients/test_,langchain.py openai_agents.py pydantic_ai.py smolagents.py)
	SERVER_PYTHON=$(BIN)/python $(VENV)-clients-openai-2/bin/python -m pytest -c tests/clients/pytest.ini \
	  $(addprefix tests/clients/test_,instructor.py litellm.py llama_index.py)

test-cluster: $(VENV)-cluster/.done  ## pytest on a Ray cluster of several nodes on this machine
	$(VENV)-cluster/bin/python -m pytest tests/cluster -m "slow or not slow" $(ARGS)
	TEST_ON_CLUSTER=1 $(VENV)-cluster/bin/python -m pytest -W default $(addprefix tests/api/test_, \
	  access.py anthropic.py cache.py chat.py completions.py edge.py embeddings.py errors.py \
	  metrics.py models.py native.py ollama.py openai.py rerank.py responses.py status.py tokens.py \
	  ui.py)

soak: $(VENV)/.dev  ## 10,000 mixed requests: what they leave behind (ARGS=20000 for more)
	$(BIN)/python -m tests.endurance.soak $(ARGS)

chaos: $(VENV)/.dev  ## five minutes of disasters under load (ARGS=600 for ten)
	$(BIN)/python -m tests.endurance.chaos $(ARGS)

bench: $(VENV)/.bench  ## this server against its peers (ARGS="--llama-server PATH ...")
	$(BIN)/python -m bench.compare $(ARGS)

screenshots: $(VENV)/.dev  ## pictures of the page for README (needs chromium)
	$(BIN)/python -m tests.web.screenshots docs/ui

load: $(VENV)/.dev  ## too much of everything: requests, idle connections, switches (ARGS=5000 for more)
	$(BIN)/python -m tests.endurance.load $(ARGS)

fuzz: $(VENV)/.dev  ## hostile bytes and texts, for many minutes
	$(BIN)/pytest tests/fuzz --hypothesis-profile=fuzz --timeout=3600 $(ARGS)

lock:  ## resolve the dependencies anew into requirements/ (needs uv and npm)
	uv pip compile -q --upgrade --generate-hashes --no-header --no-annotate --universal \
	  --python-version 3.11 pyproject.toml --group build -o requirements/serve.txt
	uv pip compile -q --upgrade --generate-hashes --no-header --no-annotate --universal \
	  --python-version 3.11 pyproject.toml --group build --group dev -c requirements/serve.txt \
	  -o requirements/dev.txt
	uv pip compile -q --upgrade --generate-hashes --no-header --no-annotate --universal \
	  --python-version 3.11 pyproject.toml --group build --group dev --group bench \
	  -c requirements/dev.txt -o requirements/bench.txt
	uv pip compile -q --upgrade --generate-hashes --no-header --no-annotate --universal \
	  --python-version 3.11 pyproject.toml --extra cluster --group build --group cluster-tests \
	  -c requirements/dev.txt -o requirements/cluster.txt
	for group in clients clients-openai-2; do \
	  uv pip compile -q --upgrade --generate-hashes --no-header --no-annotate --universal \
	    --python-version 3.11 --only-binary :all: --group $$group -o requirements/$$group.txt; \
	done
	npm update --prefix tests/clients/javascript --package-lock-only --omit-lockfile-registry-resolved

clean:  ## remove the virtual environment and the caches of the tools
	rm -rf $(VENV) $(VENV)-* $(NODE) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.X")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(BIN)/python
	@echo "Installing; llama.cpp is compiled once, which takes about three minutes on two cores."
# What pip keeps of an earlier build has the arguments of that one.
	CMAKE_ARGS="$$($(BIN)/python -m llm_server.doctor.build)" \
	  $(BIN)/python -m pip install -q --disable-pip-version-check $${CMAKE_ARGS:+--no-cache-dir} \
	  --require-hashes -r requirements/serve.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)-cluster/.done: requirements/cluster.txt pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)-%/.done: requirements/%.txt | $(BIN)/python
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@touch $@

$(NODE)/.done: tests/clients/javascript/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm > /dev/null; \
	then npm ci --prefix $(<D) --ignore-scripts --no-audit --no-fund --loglevel=error; \
	else echo "npm is not installed: the JavaScript clients are not tested"; fi
	@touch $@
