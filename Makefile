# Everything a developer runs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bump by content: a changed pyproject or constraints file reinstalls, nothing else does.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test lint compose consumers families fix bench docs constraints clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## Create .venv and install everything into it

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fimlora needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

demo: $(INSTALLED) ## Calibrate a real pretrained model through the whole service
	$(BIN)/python -m demo

up: $(INSTALLED) ## Start the embedded stack: Valkey, API, one worker
	$(BIN)/fimlora up

test: $(INSTALLED) ## Run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

compose: $(INSTALLED) ## Build the images and run docker-compose.yml for real (needs Docker)
	$(BIN)/python tests/docker/run.py

consumers: $(INSTALLED) ## Run what reads exports for real (ONLY="axolotl vllm")
	$(BIN)/python tests/consumers/run.py $(ONLY)

families: $(INSTALLED) ## Check every family of models (ONLY="llama qwen3_moe" for some)
	$(BIN)/python tests/families/run.py $(ONLY)

lint: $(INSTALLED) ## ruff check and format, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED) ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## Run the benchmarks behind the README's figures
	$(BIN)/python benchmarks/allocate.py
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/estimators.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/task_signal.py
	$(BIN)/python benchmarks/reallocation.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/service.py
	$(BIN)/python benchmarks/many_jobs.py
	$(BIN)/python benchmarks/burst.py
	$(BIN)/python benchmarks/warm_job.py

docs: $(INSTALLED) ## Regenerate the reference pages and the blocking client
	$(BIN)/python docs/generate.py

constraints: $(INSTALLED) ## Rewrite constraints.txt from the installed versions
	$(BIN)/python -m pip freeze --exclude-editable --exclude torch | sed '1i # Versions every check runs with; wide ranges live in pyproject.toml.\ntorch==2.13.0' > constraints.txt

clean: ## Remove the environment and what the demo wrote
	rm -rf $(VENV) .consumers demo-output .fimlora
