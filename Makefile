# The commands of the project; `make` lists them. Needs Python 3.11 or later and nothing else.

PYTHON = python3
DB =
SIZE = 1GB
ROUNDS = 3
KEPT = 10000
DATABASES = 1000
FOLLOWED = 60
ROWS =
NEW =
SCRATCH = build
MINUTES = 10
SEED =
ARGS =
CMD = --help

VENV = .venv
PYTEST = -n auto --dist worksteal
# Tests write and flush a lot, so `make test` does it in memory if 2 GB are free there; `make test-full` uses the disk.
IN_MEMORY = $(shell [ "$$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 2000 ] 2>/dev/null && echo TMPDIR=/dev/shm)
IN_VENV = $(VENV)/bin/python
BENCH = PYTHONPATH=tests $(IN_VENV) -m bench
BENCH_RUN = $(BENCH) run --size $(SIZE) --rounds $(ROUNDS) --kept $(KEPT) --databases $(DATABASES) --followed $(FOLLOWED) --rows '$(ROWS)' --scratch $(SCRATCH)
export DB

.DEFAULT_GOAL = help
.PHONY: help try test test-full coverage test-container check bench bench-peers bench-compare \
	bench-record bench-pages profile soak build clean
.DELETE_ON_ERROR:

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; \
	done

try: $(VENV)/.installed ## back up a sample database, or yours with DB=path, restore it, and show that it is equal
	@$(IN_VENV) tests/tryout.py "$$DB"

test: $(VENV)/.installed-test ## run the tests that every change needs; options of pytest go into ARGS='...'
	@$(IN_MEMORY) HYPOTHESIS_PROFILE=few $(IN_VENV) -m pytest $(PYTEST) -m "not slow" $(ARGS)

test-full: $(VENV)/.installed-test ## run what `make test` leaves out: kills and interleavings at every step, many random examples
	@HYPOTHESIS_PROFILE=many $(IN_VENV) -m pytest $(PYTEST) -m "slow or hypothesis" $(ARGS)

coverage: $(VENV)/.installed-test ## run `make test`, and print for each package how much of its code ran
	@mkdir -p build
	@HYPOTHESIS_PROFILE=few $(IN_VENV) -m pytest $(PYTEST) -m "not slow" --cov --cov-report=json:build/coverage.json $(ARGS)
	@$(IN_VENV) tests/coverage_by_package.py build/coverage.json

test-container: $(VENV)/.installed-dev ## test the image and the Compose file with the container engine of this machine, if any
	@PYTHONPATH=tests $(IN_VENV) -m container $(ARGS)

check: $(VENV)/.installed-dev ## lint, formatting, types, import layers, wording, container files
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(IN_VENV) tests/wording.py
	@$(VENV)/bin/hadolint Dockerfile tests/creditrobot/Dockerfile tests/container/seaweedfs/Dockerfile
	@$(VENV)/bin/docker-compose -f tests/creditrobot/docker-compose.yml -f docker-compose.override.yml config --quiet

bench: $(VENV)/.installed ## measure time, memory and bytes beside the usual method (SIZE=1GB ROUNDS=3 ROWS="first* list-kept")
	@$(BENCH_RUN) --output build/bench.json

bench-peers: $(VENV)/.installed ## measure backupd beside restic, Litestream and .backup with zstd, where they are installed
	@$(BENCH_RUN) --peers --output build/bench-peers.json

bench-compare: $(VENV)/.installed ## measure, and show what got worse than the committed figures (NEW=file takes an earlier run)
	@$(if $(NEW),,$(BENCH_RUN) --output build/bench.json)
	@$(BENCH) compare $(or $(NEW),build/bench.json)

bench-record: bench bench-peers ## measure everything, and put it into tests/bench/results, README and docs
	@$(BENCH) record build/bench.json build/bench-peers.json

bench-pages: $(VENV)/.installed ## draw the chart and the tables of README and docs from tests/bench/results
	@$(BENCH) pages

profile: $(VENV)/.installed-dev ## profile one command with its child processes: make profile CMD="now app.db"
	@mkdir -p build
	@$(VENV)/bin/py-spy record --subprocesses --rate 250 --format speedscope --output build/profile.speedscope.json \
		-- $(IN_VENV) -m backupd $(CMD)

soak: $(VENV)/.installed-test ## break everything on purpose, and check every snapshot (MINUTES=10 SEED=)
	@PYTHONPATH=tests $(IN_VENV) -m faults --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

build: $(VENV)/.installed-dev ## make wheel and sdist in dist/, and check that the wheel works by itself
	@rm -rf dist
	@$(IN_VENV) -m build --outdir dist .
	@$(IN_VENV) tests/wheel.py dist/*.whl

clean: ## remove the virtual environment and everything else that can be rebuilt; never ./backups
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
