# Everything a developer runs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bump by content: a changed pyproject or constraints file reinstalls, nothing else does.
INSTALLED := $(VENV)/.installed
# An index to take torch from, such as https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# A terminal is shown what pip does; a log only what is said here.
PIP = $(BIN)/python -m pip install --disable-pip-version-check $$(test -t 1 || echo --quiet)
AUDIT := .audit

.DEFAULT_GOAL := help
.PHONY: help install demo up test lint compose consumers families quantised fuzz fuzz-files chaos soak fix bench bench-gpu docs web site sbom audit constraints clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## Create .venv and install everything into it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fimlora needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Installing fimlora, its tests and torch into $(VENV): about a minute once pip has the packages,"
	@echo "longer while it fetches them."
	@test -n "$(TORCH_INDEX)" || command -v nvidia-smi >/dev/null || printf '%s\n' \
		"No GPU is seen here, and on Linux the torch of PyPI brings CUDA, about 6 GB. To fetch the small one:" \
		"    make install TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test,lint]'
	@touch $@
	@echo "Installed."

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

# Packers pin versions of torch, transformers and numpy that they run without. GPT-QModel builds with our torch.
PACKERS := 'bitsandbytes>=0.46,<1' 'torchao>=0.15,<1' 'compressed-tensors>=0.20,<1' 'hqq>=0.2.8,<1' \
	'optimum-quanto>=0.2.7,<1' 'optimum>=1.24,<3' 'autoawq>=0.2.9,<1' 'auto-gptq>=0.7.1,<1' \
	loguru termcolor pypcre logbar tokenicer device-smi defuser threadpoolctl dill pillow
quantised: $(INSTALLED) ## Measure and read bases that the packers of the field have packed
	$(BIN)/python -m venv --clear build/quantised
	ls -d $(abspath $(VENV))/lib/python*/site-packages > $$(ls -d build/quantised/lib/python*/site-packages)/all.pth
	build/quantised/bin/python -m pip install --quiet 'setuptools>=80,<82' wheel
	build/quantised/bin/python -m pip install --quiet --no-deps $(PACKERS)
	BUILD_CUDA_EXT=0 build/quantised/bin/python -m pip install --quiet --no-deps --no-build-isolation 'gptqmodel>=7,<8'
	build/quantised/bin/python -m pytest -q -W ignore --disable-warnings tests/engine/laws/test_quantised.py \
		tests/engine/laws/test_quantised_trained.py tests/engine/laws/test_real_packers.py tests/worker/test_logs.py

fuzz-files: $(INSTALLED) ## Send damaged files of every kind through service and worker (ONLY="csv config")
	$(BIN)/python tests/fuzz/files/run.py $(ONLY)
	$(if $(ONLY),,$(BIN)/python tests/fuzz/files/bombs.py)

chaos: $(INSTALLED) ## Inject every fault at many moments; writes build/chaos/report.html (ONLY="--rows 'link*'")
	$(BIN)/python tests/chaos/run.py $(ONLY)

soak: $(INSTALLED) ## Run 1,000 jobs through one worker and see that nothing grows (ONLY="--jobs 300")
	$(BIN)/python tests/soak/run.py $(ONLY)

fuzz: $(INSTALLED) ## 10,000 requests made from docs/openapi.json, to the real service
	$(BIN)/python tests/fuzz/api/run.py

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
	$(BIN)/python benchmarks/scale.py
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
	$(BIN)/python benchmarks/what_if.py

bench-gpu: $(INSTALLED) ## All that is asked of a GPU, in ten minutes; small shapes without one (ONLY="--sections resident")
	$(BIN)/python benchmarks/gpu $(ONLY)

docs: $(INSTALLED) ## Regenerate the reference pages and the blocking client
	$(BIN)/python docs/generate.py

web: ## Build the page from web/ into the service (needs Node 20 or newer and npm)
	cd web && npm ci && npm run build

site: $(INSTALLED) ## Build the documentation into build/site, strictly; open build/site/index.html
	$(BIN)/python docs/build_site.py

# Tools that look at what we depend on, apart from it: their own packages are not ours.
$(AUDIT)/.installed: Makefile
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

sbom: $(INSTALLED) $(AUDIT)/.installed ## Write build/sbom.cdx.json: every package that is installed (CycloneDX)
	mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.cdx.json

audit: $(AUDIT)/.installed ## Ask for known vulnerabilities of the pinned versions (needs the internet)
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

constraints: $(INSTALLED) ## Rewrite constraints.txt from the installed versions
	$(BIN)/python -m pip freeze --exclude-editable --exclude torch | sed '1i # Versions every check runs with; wide ranges live in pyproject.toml.\ntorch==2.13.0' > constraints.txt

clean: ## Remove the environment and what the demo wrote
	rm -rf $(VENV) .consumers .audit demo-output .fimlora
