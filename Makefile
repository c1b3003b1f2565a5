# `make help` lists what there is. Every target sets itself up first, into .venv.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { echo $$p; break; }; done)
BIN := .venv/bin
DONE := .venv/.set-up
DEMO := runs/demo

.PHONY: help setup demo test slow bench docs lint format constraints

help:  ## list the targets (the default)
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | \
		while read -r make target text; do printf '  %s %-12s %s\n' "$$make" "$$target" "$$text"; done

setup: $(DONE)  ## install everything into .venv, with uv where there is one, else with pip

# Re-done only when what is to be installed changes. `--clear`d: a half-made .venv is no start.
$(DONE): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
		set -x; uv venv --quiet --clear --python '>=3.11,<3.14' .venv && \
		uv pip install --quiet --python $(BIN)/python -e '.[dev]' -c constraints.txt; \
	elif [ -n "$(PYTHON)" ]; then \
		set -x; $(PYTHON) -m venv --clear .venv && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check \
			-e '.[dev]' -c constraints.txt; \
	else \
		echo "jaxrl needs Python 3.11, 3.12 or 3.13 and found none:" \
			"install one, or uv, or run 'make PYTHON=/path/to/python3.12 ...'" >&2; exit 1; \
	fi
	@touch $@

demo: setup  ## the main job: PPO on CartPole-v1, 16 learning rates x 4 seeds
	@rm -rf $(DEMO)
	$(BIN)/jaxrl sweep ppo CartPole-v1 learning_rate=log:1e-4:1e-2:16 --seeds 4 --steps 100000 --out $(DEMO)

test: setup  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup  ## the slow tests alone
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --timeout 1800

bench: setup  ## speed beside rejax, measured: all rows, or one by ROW=NAME
	@$(BIN)/python -c 'import rejax' 2>/dev/null || { command -v uv >/dev/null 2>&1 \
		&& uv pip install --quiet --python $(BIN)/python -e '.[bench]' -c constraints.txt \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check \
			-e '.[bench]' -c constraints.txt; }
	@rm -rf runs/bench
	$(BIN)/jaxrl reproduce speed$(if $(ROW),/$(ROW)) --out runs/bench

docs: setup  ## the site, into site/: strict, with the figures that it lacks
	@$(BIN)/python docs/figures.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup  ## style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: setup  ## put the style right where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Exact versions of the core and the dev extra for every Python that is supported (needs uv).
constraints:  ## pin exact versions anew (needs uv)
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --quiet \
		--extra dev --output-file constraints.txt pyproject.toml
