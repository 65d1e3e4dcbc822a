# InferenceGym JAX. `make` lists the targets.
#
# Each target makes .venv if there is none and installs what it needs, once: a stamp file per set of extras in
# .venv/.stamps says that it is there, and is older than pyproject.toml or constraints.txt when it must be done again.
# A fresh machine needs Python 3.11 or later, make and git.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV ?= .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
PYTEST_ARGS ?=
ARGS ?=

# The first interpreter that is 3.11 or later; `make PYTHON=/path/to/python test` overrules it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)

# Extras of each set, and the packages that it takes without their dependencies. rich draws the progress of every script.
EXTRAS_all := server,demo,train,gym,render,client,cli,live,openenv
EXTRAS_demo := demo
EXTRAS_test := server,demo,train,gym,client,cli,live,dev
EXTRAS_ci := server,demo,train,gym,client,cli,live,rejax,dev
EXTRAS_bench := bench,train,server,client
EXTRAS_table := demo
EXTRAS_serve := server
EXTRAS_policies := train
EXTRAS_docs := docs
EXTRAS_live := live,train
EXTRAS_rejax := rejax
EXTRAS_sb3 := sb3
EXTRAS_stoa := rejax,train
EXTRAS_torchrl := torchrl
EXTRAS_notebook := notebook,train,gym,client,server
NODEPS_all := openenv aiconfigurator-core
NODEPS_test := openenv
NODEPS_ci := openenv aiconfigurator-core
NODEPS_table := aiconfigurator-core
NODEPS_bench := openenv
NODEPS_serve := openenv
NODEPS_notebook := openenv
NODEPS_stoa := stoa-env
# Everything in the lock but what is installed without dependencies.
LOCKED := server demo train gym render client cli live openenv tensorboard sb3 torchrl rejax bench docs notebook dev
# Not locked: rejax needs gymnax before 1.0, other trainers 1.x; the extras' own bounds choose, and a lock would forbid one.
# Nor gymnasium, of which gymnax 1.0.1 wants one before 1.4.
UNLOCKED := gymnax gymnasium
LOCKED_NODEPS := openenv==0.10.0 aiconfigurator-core==0.12.0 stoa-env==0.1.2

# A test that is stuck in compiled code hears no --timeout: its worker is ended after so long, and with it the run (a worker
# that took the place of an ended one would wait for ever: pytest-xdist, issue 784).
END_STUCK = -o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true

RUN_TESTS = JAX_PLATFORMS=cpu $(PY) -m pytest -q -n 2 --dist worksteal --max-worker-restart 0 --timeout 240 $(END_STUCK)

# uv where pip could fetch it (ten times faster), pip otherwise.
INSTALL = $$( [ -x $(VENV)/bin/uv ] && echo $(VENV)/bin/uv pip install --quiet --python $(PY) || echo $(PY) -m pip install --quiet ) -c constraints.txt
export UV_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-ci test-slow lint lint-style lint-types lint-strict lint-names format bench table serve policies docs notebook release audit recipes live install-% lock wheel clean
.PRECIOUS: $(STAMPS)/%

help: ## Show this list
	@echo "InferenceGym JAX: an RL environment for LLM inference control. make TARGET:"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Each target installs what it needs into $(VENV), once."

install: $(STAMPS)/all ## Install every command of the README into .venv (then: . .venv/bin/activate)
	@echo "Ready. Now: . $(VENV)/bin/activate"

demo: $(STAMPS)/demo ## Score the policies on the short tasks, lease a second GPU, draw demo.png (under 3 minutes from a fresh clone)
	$(PY) -m training.demo $(ARGS)

test: $(STAMPS)/test ## Run the tests on both cores (PYTEST_ARGS="-k grader" narrows them)
	$(RUN_TESTS) -m "not slow and not ci and not browser" $(PYTEST_ARGS)

test-ci: $(STAMPS)/test ## Run what CI runs: those that take longer and those that drive a browser too
	$(RUN_TESTS) -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMPS)/test ## Run the tests that are marked slow (each CI run takes a part of them)
	JAX_PLATFORMS=cpu $(PY) -m pytest -q -n 2 --max-worker-restart 0 --timeout 900 $(END_STUCK) -m "slow and not release" $(PYTEST_ARGS)

lint: lint-style lint-types lint-strict lint-names ## Check style, formatting and types; the library strictly, and every public name

lint-style: $(STAMPS)/test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lint-types: $(STAMPS)/test
	$(PY) -m pyright

lint-strict: $(STAMPS)/test
	$(PY) -m pyright -p pyrightstrict.json

lint-names: $(STAMPS)/test
	$(PY) tests/tools/public_types.py

format: $(STAMPS)/test ## Mend style and formatting in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMPS)/bench ## Measure speed against other environments
	$(PY) -m benchmarks $(ARGS)

table: $(STAMPS)/table ## Build the latency table from measured kernels (ARGS="--system h100_sxm" for another GPU)
	$(PY) data/build_table.py $(ARGS)

serve: $(STAMPS)/serve ## Start the server and its page on port 7860
	$(PY) -m server $(ARGS)

policies: $(STAMPS)/policies ## Train the policies that ship in data/policies
	$(PY) -m training policies $(ARGS)

docs: $(STAMPS)/docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

notebook: $(STAMPS)/notebook ## Run the notebook against a server of its own (under 3 minutes)
	$(PY) notebooks/run.py $(ARGS)

release: $(STAMPS)/test ## Build wheel and sdist, check them as an index does, try both in empty environments of Python 3.11 to 3.13
	JAX_PLATFORMS=cpu $(PY) -m pytest -q --timeout 900 tests/release $(PYTEST_ARGS)

audit: $(STAMPS)/test ## Look for known vulnerabilities in everything that is locked
	$(INSTALL) pip-audit
	$(PY) -m pip_audit --strict --progress-spinner off --no-deps --disable-pip -r constraints.txt $(ARGS) || \
	  { echo "'could not be audited' means that the index serves no vulnerability data, not that there is none to report: see CONTRIBUTING.md, A release." >&2; exit 1; }

recipes: $(STAMPS)/test $(STAMPS)/rejax $(STAMPS)/stoa $(STAMPS)/sb3 $(STAMPS)/torchrl ## Run every recipe of examples/ (brings torch)
	JAX_PLATFORMS=cpu $(PY) -m pytest -q --timeout 900 tests/test_examples.py tests/adapters/test_stable_baselines.py $(PYTEST_ARGS)

live: $(STAMPS)/live ## Run the benchmarks against a real engine
	$(PY) -m benchmarks.live $(ARGS)

install-%: $(STAMPS)/% ; @echo "$(VENV) holds what '$*' needs"

lock: $(STAMPS)/uv ## Bring constraints.txt up to date (commit the result)
	{ echo "# Exact versions of everything that any extra installs but gymnax (either line may be wanted) and gymnasium, made by \`make lock\`."; \
	  echo "# Use: pip install -c constraints.txt -e '.[dev]'"; \
	  $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate $(LOCKED:%=--extra %) pyproject.toml \
	    | grep -v $(UNLOCKED:%=-e '^%=='); \
	  echo "# Installed with --no-deps only: what they use of their own dependencies is among the extras."; \
	  printf '%s\n' $(LOCKED_NODEPS); } > constraints.new
	mv constraints.new constraints.txt

wheel: $(STAMPS)/test ## Build the wheel and the source archive into dist/
	$(PY) -m build --no-isolation --outdir dist .

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/uv:
	@if [ -z "$(PYTHON)" ]; then echo "No Python 3.11 or later with the venv module was found. Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@$(PY) -m pip install --quiet -c constraints.txt uv || echo "uv could not be installed; going on with pip, which is slower." >&2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/uv
	@[ -n "$(EXTRAS_$*)" ] || { echo "There is no set of extras named '$*'." >&2; exit 1; }
	@echo "Installing the library with [$(EXTRAS_$*)]$(if $(NODEPS_$*), and $(NODEPS_$*)) into $(VENV)"
	@$(INSTALL) -e ".[$(EXTRAS_$*)]"
	@$(if $(NODEPS_$*),$(INSTALL) --no-deps $(NODEPS_$*),true)
	@touch $@

# The CPU build of torch, a tenth of the size, where its index can be reached; PyPI's otherwise.
$(STAMPS)/sb3 $(STAMPS)/torchrl: $(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/uv
	@echo "Installing the library with [$(EXTRAS_$*)] into $(VENV)"
	@$(VENV)/bin/uv pip install --quiet --python $(PY) -c constraints.txt --torch-backend cpu -e ".[$(EXTRAS_$*)]" \
	  || $(INSTALL) -e ".[$(EXTRAS_$*)]"
	@touch $@
