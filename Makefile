# Two commands do all the set-up: `make demo` and `make test`. Both install into .venv under constraints.txt,
# which pins torch so that no CUDA build is pulled on a CPU machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One constraints file in force for every install, build environments included.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-intelligent-masking test slow browser lint results clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python setup.cfg setup.py pyproject.toml constraints.txt maskaug/_version.py
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[test]"
	touch $@

# Ray runs only in the slow tests: 70 MB and a second of import that the others can do without.
$(VENV)/.installed-slow: $(VENV)/.installed-test
	$(BIN)/pip install -q -e ".[test,cluster]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m maskaug.benchmarks.demo --out demo

demo-intelligent-masking: $(VENV)/.installed
	$(BIN)/python -m maskaug.benchmarks.demo_intelligent_masking --out demo-intelligent-masking

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

# Debian's chromium, in which the slow tests look at `maskaug report`.
browser:
	command -v chromium || (apt-get update && apt-get install -y chromium)

slow: $(VENV)/.installed-slow browser
	$(BIN)/pytest -m slow

# README's results section, from the tables in benchmarks/results.
results: $(VENV)/.installed
	$(BIN)/python -m maskaug.benchmarks.results_section

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo demo-intelligent-masking
