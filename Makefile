# make demo   installs into .venv, trains and evaluates mini-P3, writes runs/t0_mini/report.html
# make test   installs into .venv and runs every test
# make faults injects every fault into real runs and prints what was lost
# make lint   checks style, formatting, the direction of imports and types

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/t0_mini

.PHONY: demo test faults lint clean
.DEFAULT_GOAL := demo

# A stamp for each set of requirements, remade when they change; the package itself is editable.
.venv/.with-%: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or later is needed; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing t0x and what '$*' needs into .venv (a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: .venv/.with-report
	@rm -rf $(RUN)
	@$(BIN)/python -m t5x.train --gin_file=t0_mini.gin --gin.MODEL_DIR='"$(RUN)"'
	@$(BIN)/python -m t5x.eval --gin_file=eval_t0_mini.gin --gin.MODEL_DIR='"$(RUN)"'
	@$(BIN)/t0x report $(RUN) --out $(RUN)/report.html

# A file is one worker's; in their order, as the longest are in tests/e2e.
test: .venv/.with-test
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: .venv/.with-test
	@T0X_ALL_FAULTS=1 $(BIN)/python -m pytest tests/e2e/test_faults.py tests/e2e/test_restarts.py

lint: .venv/.with-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@rm -rf build/installed && $(BIN)/python setup.py -q build_py --build-lib build/installed
	@cd build/installed && PYTHONPATH=../.. ../../$(BIN)/lint-imports --no-cache ../../pyproject.toml
	@$(BIN)/pyrefly check --output-format min-text

clean:
	rm -rf .venv build *.egg-info runs
