# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test test-slow bench k8s manifests lint format run clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.created:
	@python=$$(for each in python3.12 python3.11 python3; do \
	  $$each -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	    && echo $$each && break; done); \
	if [ -z "$$python" ]; then \
	  echo "Headrace needs Python 3.11 or 3.12 with its venv module (bytewax has no wheels for others); found none" >&2; \
	  exit 1; fi; \
	$$python -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

# The lock is a constraint: it says which version, pyproject.toml says what.
$(VENV)/.runtime: $(VENV)/.created pyproject.toml requirements.lock
	@echo "Installing Headrace with its embedded parts into $(VENV) (PyTorch is large: about 3 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[embedded]'
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --group dev
	@touch $@

setup: $(VENV)/.development ## Create .venv with everything for development

lock: $(VENV)/.development ## Write requirements.lock anew; UPGRADE=1: with the newest versions that fit
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --group dev \
	  --no-annotate --custom-compile-command 'make lock' --output-file requirements.lock $(if $(UPGRADE),--upgrade)

demo: $(VENV)/.runtime ## Everything local: ingest the sample documents, ask, print the answer
	@$(BIN)/headrace demo

run: $(VENV)/.runtime ## Everything local, until Ctrl-C
	@$(BIN)/headrace up

test: $(VENV)/.development ## Run the tests; Apache Kafka's need Java 17 and Maven
	@$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.development ## Run the tests that take minutes
	@$(BIN)/pytest -m slow

bench: $(VENV)/.development ## Run a benchmark: make bench NAME=offload; without NAME, list them
	@$(BIN)/headrace bench $(or $(NAME),--help)

k8s: $(VENV)/.development ## Render and check manifests, compose, image, alerts and dashboards
	@$(BIN)/pytest tests/k8s

manifests: $(VENV)/.runtime ## Write the manifests that are made of the code and of other files
	@$(BIN)/headrace topics export --format strimzi > k8s/base/strimzi/kafkatopics.yaml
	@{ printf '%s\n' '# Made by `make manifests` from rules.yml.' 'apiVersion: monitoring.coreos.com/v1' \
	  'kind: PrometheusRule' 'metadata:' '  name: headrace' 'spec:'; \
	  sed -e '/^#/d' -e 's/^/  /' k8s/base/monitoring/rules.yml; } > k8s/base/monitoring/prometheusrule.yaml

lint: $(VENV)/.development ## Format check, lint, types, layers, schemas
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/headrace schemas check

format: $(VENV)/.development ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/kafka/.jars
