# What can be done in a checkout. `make` alone lists it. Everything that needs set-up does it by itself.

PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo lab lab-down test test-vm unit lint format bench soak man wheel deb test-deb test-versions lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is needed: Debian's packages (as root) and .venv
	@packaging/setup.sh

demo: setup ## the main job shown step by step in network namespaces (root; under a minute)
	@$(PYTHON) packaging/lab/demo.py

lab: setup ## namespaces with a client, a proxy and backends, left standing to play with (root)
	@$(PYTHON) packaging/lab/lab.py up

lab-down: setup ## take the lab down
	@$(PYTHON) packaging/lab/lab.py down

# They start hundreds of Python processes, each of which would compile all that it imports.
test unit: export PYTHONDONTWRITEBYTECODE :=

test: setup ## all tests; without root those that need none
	@# Twice as many at once as there are processors, since many wait. (Three times as many saved half a minute, and three
	@# tests failed meanwhile.) What fails is tried once more, alone: some wait for real time limits.
	@$(PYTHON) -m pytest -n $$((2 * $$(nproc))) --dist worksteal || $(PYTHON) -m pytest --last-failed --last-failed-no-failures none

test-vm: setup ## listed tests under another kernel, emulated (root; KERNEL=5.10|6.1|6.12|newest|all ARCH=amd64|arm64)
	@tests/vm/test --kernel "$(or $(KERNEL),6.1)" --arch "$(or $(ARCH),amd64)"

unit: setup ## the tests that need neither root nor a kernel
	@$(PYTHON) -m pytest tests/unit

lint: setup ## ruff and mypy, as CI runs them
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy --strict

format: setup ## put the Python files into shape
	@$(PYTHON) -m ruff check --fix --select I .
	@$(PYTHON) -m ruff format .

bench: setup ## measure (root; ARGS="lab --cell pps --json FILE" for a part)
	@$(PYTHON) -m tests.bench $(ARGS)

soak: setup ## edits, git, drift, kills under traffic for ten minutes (root; ARGS="--minutes 2 --seed 7")
	@$(PYTHON) -m tests.soak $(ARGS)

man: setup ## write the manual pages to build/man
	@$(PYTHON) packaging/manpages.py build/man

wheel: setup ## build dist/revproxy-*.whl
	@$(PYTHON) -m hatchling build --target wheel

deb: ## build dist/revproxy_*.deb (as root it installs what that needs)
	@packaging/deb.sh

test-deb: setup ## install, use, upgrade, purge the package in a Debian 12 tree under systemd (root; minutes)
	@packaging/test-deb.sh

test-versions: setup ## the tests with Debian 12's libraries and with the newest of PyPI (root; minutes)
	@packaging/test-versions.sh $(ARGS)

lock: ## write packaging/requirements.lock from pyproject.toml (UPGRADE=1: newest versions)
	@packaging/lock.sh

clean: ## remove everything made here, .venv included
	rm -rf .venv dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
