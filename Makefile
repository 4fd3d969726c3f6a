# make demo   set up, serve, post the example patches, write masks and overlays to demo-out/, stop
# make test   set up with the training extra and run the tests
PYTHON ?= python3
JOBS ?= 3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
SOURCES := app model_export tests examples benchmarks

.PHONY: help setup setup-dev programs demo serve test explore bench check format lock sbom clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tessera needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements/serve.txt
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/train.txt $(VENV)/.serve
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	$(PIP) install --quiet -r requirements/train.txt
	@touch $@

setup: $(VENV)/.serve ## Virtual environment with what the service needs
setup-dev: $(VENV)/.dev ## The same with what training and the tests need

programs: ## Debian packages with the programs that some tests run: archive, browser, Prometheus and more (needs root)
	@dpkg-query --show $$(cat requirements/debian.txt) >/dev/null 2>&1 || { apt-get update --quiet=2 && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends \
		$$(cat requirements/debian.txt); }

demo: setup ## Segment the example patches over HTTP; results in demo-out/
	$(BIN)/python examples/demo.py

serve: setup ## Run the service on http://127.0.0.1:8000
	$(BIN)/tessera serve

# On two cores three files at a time: many tests wait for programs. In the order of their names: the longest, of browsers,
# archives and trainings, so do not come last. A test process that dies is a failure; another one in its place would wait
# for ever for what it had left to do.
test: setup-dev ## Run the tests, JOBS files at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

explore: setup-dev ## Look for faults: the property tests with new examples each time
	$(BIN)/python -m pytest --hypothesis-profile=explore tests/property

bench: setup-dev ## Measure tessera beside its peers (needs wrk and nghttp2-client); ARGS=--quick for a first look
	$(BIN)/python -m benchmarks.serving $(ARGS)

check: setup-dev ## Format, lint, types and import rules
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev ## Rewrite the sources in the project's format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header
# torch is pinned and not hashed: its build (CPU, CUDA) is the user's choice, and brings its own pins of CUDA packages.
CUDA := $(addprefix --no-emit-package ,triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas \
	cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
	nvjitlink nvshmem-cu13 nvtx))

EXTRAS := --extra dicom --extra oidc --extra slides --extra sectra --extra wsi

lock: setup-dev ## Resolve the locked versions anew
	$(PIP) install --quiet uv
	$(LOCK) --upgrade --generate-hashes pyproject.toml -o requirements/serve.txt
	$(LOCK) --upgrade --generate-hashes pyproject.toml --extra cuda -c requirements/serve.txt -o requirements/cuda.txt
	$(LOCK) --upgrade --generate-hashes pyproject.toml $(EXTRAS) -c requirements/serve.txt -o requirements/integrations.txt
	$(LOCK) --upgrade --generate-hashes pyproject.toml $(EXTRAS) --extra dev -c requirements/integrations.txt -o requirements/dev.txt
	echo setuptools | $(LOCK) --upgrade --generate-hashes - -o requirements/build.txt
	echo cyclonedx-bom | $(LOCK) --upgrade --generate-hashes - -o requirements/sbom.txt
	$(LOCK) --upgrade --no-annotate $(CUDA) pyproject.toml --extra train -c requirements/dev.txt -o requirements/train.txt

# Of an environment that holds nothing but what is shipped: licences and hashes come from what is installed.
SHIPPED ?= requirements/serve.txt
sbom: ## List what the service is made of in sbom.cdx.json (CycloneDX); SHIPPED=requirements/integrations.txt with all extras
	rm -rf build/shipped build/sbom
	$(PYTHON) -m venv build/shipped
	build/shipped/bin/pip --disable-pip-version-check install --quiet --require-hashes -r $(SHIPPED)
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip --disable-pip-version-check install --quiet --require-hashes -r requirements/sbom.txt
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.cdx.json \
		build/shipped/bin/python

clean: ## Remove what the targets made
	rm -rf $(VENV) demo-out build dist sbom.cdx.json *.egg-info docker/pacs/viewer/node_modules \
		benchmarks/serving/.environments
