# The verbs of the project. Each does all of its own set-up.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check bench chaos chaos-quick chaos-kills dashboard docs lock format clean model
help:  ## List the verbs
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "edgefleet needs Python >= 3.11; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "The venv module is missing: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

model: $(STAMP)  ## Build the default model into the user's cache folder
	@$(BIN)/python -m models build

demo: model  ## Start a fleet on this machine and put real questions to it
	@$(BIN)/fleet demo

# Three files at a time, each in one process: most of the long ones wait for brokers, restarts and leases.
test: model  ## Run all tests
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

ANSIBLE := .venv-ansible
.PHONY: ansible boards boards-arm64
$(ANSIBLE)/.installed: deploy/ansible/requirements.txt
	@$(PYTHON) -m venv $(ANSIBLE)
	@$(ANSIBLE)/bin/python -m pip install --quiet -r deploy/ansible/requirements.txt
	@touch $@

# Ansible wants to know in which letters everybody writes.
ansible: $(STAMP) $(ANSIBLE)/.installed  ## Lint playbooks and roles, render every template
	@cd deploy/ansible && LC_ALL=C.UTF-8 PATH="$(CURDIR)/$(ANSIBLE)/bin:$$PATH" yamllint --strict . ../monitoring
	@cd deploy/ansible && LC_ALL=C.UTF-8 PATH="$(CURDIR)/$(ANSIBLE)/bin:$$PATH" ansible-lint -q
	@$(BIN)/python -m pytest -m ansible tests/deploy

# Two sites at a time, each in one process: they mostly wait for each other's machines.
boards: model $(ANSIBLE)/.installed  ## Set up, upgrade and reset a site of test boards (root, Debian)
	@$(BIN)/python -m pytest -m boards -n 2 --dist loadfile tests/deploy

boards-arm64: model $(ANSIBLE)/.installed  ## Flash an emulated ARM board and ask it (root, Debian, QEMU)
	@$(BIN)/python -m pytest -m boards_arm64 -s tests/deploy

CLIENTS := .venv-clients
.PHONY: clients
$(CLIENTS)/.installed: tests/clients/requirements.txt
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet -r tests/clients/requirements.txt
	@touch $@

clients: $(STAMP) $(CLIENTS)/.installed  ## Ask a fleet with LiteLLM and llm
	@$(BIN)/python -m pytest -m clients tests/clients

EXAMPLES := .venv-examples
.PHONY: examples
NODE_RED := tests/examples/node_red.sh $(wildcard tests/examples/node_red/*.json)
$(EXAMPLES)/.installed: tests/examples/requirements.txt tests/examples/umqtt.txt tests/examples/umqtt.sh $(NODE_RED)
	@$(PYTHON) -m venv $(EXAMPLES)
	@$(EXAMPLES)/bin/python -m pip install --quiet -r tests/examples/requirements.txt
	@bash tests/examples/umqtt.sh $(EXAMPLES)/bin/python $(EXAMPLES)/lib-micropython
	@bash tests/examples/node_red.sh $(EXAMPLES) $(EXAMPLES)/node_red
	@touch $@

examples: $(STAMP) $(EXAMPLES)/.installed  ## Run the examples for microcontrollers and Node-RED (g++, libmosquitto-dev)
	@$(BIN)/python -m pytest -m examples tests/examples

check: $(STAMP)  ## Lint, types, floors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: model  ## Run every benchmark beside its peers and print the table
	@$(BIN)/python -m pip install --quiet -r bench/requirements.txt
	@$(BIN)/python -m bench $(BENCH)

# SEED=7 repeats the faults of a run.
DRILL = $(BIN)/fleet drill $(if $(SEED),--seed $(SEED))

chaos: $(STAMP)  ## Half an hour of random faults on a real fleet, with an audit
	@$(DRILL) --duration 900 --every 3
	@$(DRILL) --duration 900 --every 3 --broker-kind mosquitto --keeps

chaos-quick: $(STAMP)  ## Two minutes of them; part of `make test`
	@$(if $(SEED),CHAOS_SEED=$(SEED)) $(BIN)/python -m pytest -q tests/chaos

chaos-kills: $(STAMP)  ## kill -9 of dispatcher and broker, a hundred of each, with an audit
	@$(DRILL) --faults kill-dispatcher,kill-broker --count 200 --every 2 --duration 3000

dashboard:  ## Build the dashboard's page from dashboard/ (Node 20.19 or later, else one from PyPI)
	@bash dashboard/build.sh

docs: $(STAMP)  ## Render the derived parts of the documents
	@$(BIN)/python -m docs.render

SITE := .venv-site
.PHONY: site
$(SITE)/.installed: docs/requirements.txt
	@$(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --quiet -r docs/requirements.txt
	@touch $@

site: $(STAMP) $(SITE)/.installed  ## Build the documents as a site, into build/site
	@$(BIN)/python -m docs.site_folder build/site-source
	@NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet -f docs/mkdocs.yml

format: $(STAMP)  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(STAMP)  ## Renew requirements.lock from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --extra dev --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean:  ## Remove what the verbs made here
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
