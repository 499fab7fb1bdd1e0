# The front door; `make` says what there is. Needs Python 3.11 or later and nothing else.

PYTHON = python3
DB =
SIZE = 1GB
ROUNDS = 3
MINUTES = 10
SEED =
ARGS =

VENV = .venv
IN_VENV = $(VENV)/bin/python
export DB

.DEFAULT_GOAL = help
.PHONY: help try test test-container check bench soak clean
.DELETE_ON_ERROR:

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; \
	done

try: $(VENV)/.installed ## back up a sample database, or yours with DB=path, restore it, and show that it is equal
	@$(IN_VENV) tests/tryout.py "$$DB"

test: $(VENV)/.installed-test ## run the tests; options of pytest go into ARGS='...'
	@$(IN_VENV) -m pytest -n auto --dist loadfile $(ARGS)

test-container: $(VENV)/.installed-dev ## try the image and the Compose file with the container engine of this machine, if any
	@PYTHONPATH=tests $(IN_VENV) -m container $(ARGS)

check: $(VENV)/.installed-dev ## lint, formatting, types, import layers, container files
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/hadolint Dockerfile tests/creditrobot/Dockerfile tests/container/seaweedfs/Dockerfile
	@$(VENV)/bin/docker-compose -f tests/creditrobot/docker-compose.yml -f docker-compose.override.yml config --quiet

bench: $(VENV)/.installed ## compare time, memory and bytes with the usual method (SIZE=1GB ROUNDS=3)
	@mkdir -p build
	@PYTHONPATH=tests $(IN_VENV) -m bench --size $(SIZE) --rounds $(ROUNDS) --scratch build

soak: $(VENV)/.installed-test ## break everything on purpose, and check every snapshot (MINUTES=10 SEED=)
	@PYTHONPATH=tests $(IN_VENV) -m faults --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## remove the virtual environment and whatever else can be made again; never ./backups
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find backupd tests -name __pycache__ -prune -exec rm -rf {} +

# Each stamp stands for what has been installed; the order-only chain keeps `make -j` from running two pips at once.

$(IN_VENV):
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: there is no $(PYTHON)" >&2; \
		echo "hint: install Python 3.11 or later, or name yours: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: backupd needs Python 3.11 or later, and $(PYTHON) is `$(PYTHON) -V 2>&1`" >&2; \
		echo "hint: name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments" >&2; \
		echo "hint: on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(IN_VENV)
	@echo "installing (about a minute the first time)"
	@PIP_USER=0 $(IN_VENV) -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what the tests need (about a minute the first time)"
	@PIP_USER=0 $(IN_VENV) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "installing linters"
	@PIP_USER=0 $(IN_VENV) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
