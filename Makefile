# Loupe. `make` alone prints every target.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 3000
VENV := .venv
BIN := $(VENV)/bin
# The GPU runtime if nvidia-smi finds a GPU. `make setup RUNTIME=cpu` overrides this.
RUNTIME ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU 0' && echo gpu || echo cpu)
OTHER_RUNTIME := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
REQUIREMENTS := requirements/dev-$(RUNTIME).txt
STAMP := $(VENV)/installed-$(RUNTIME)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint check format data-check train evaluate export retrain edge serve score bench image lock clean
.DELETE_ON_ERROR:

help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv from the locked requirements, if they changed

# The stamp comes last, so an interrupted installation starts again. Both runtimes own the folder
# onnxruntime/, so the other one is removed first.
$(STAMP): $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; choose one with make setup PYTHON=..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/installed-*
	@echo "Installing $(REQUIREMENTS) (torch alone is some gigabytes; about two minutes on a fast line)"
	@$(BIN)/python -m pip uninstall --quiet --yes $(OTHER_RUNTIME) 2>/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(REQUIREMENTS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Train, export, publish, serve and classify over HTTP (PORT=3000; CHECK=1 stops afterwards)
	@$(BIN)/loupe demo --port $(PORT) $(if $(CHECK),--check)

test: setup ## Run the tests (about six minutes on two cores)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup ## Run the tests that take minutes each
	@$(BIN)/python -m pytest -m slow

lint: setup ## Lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test ## Lint, format, types and tests

format: setup ## Format the code and fix what the linter can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

data-check: setup ## Check a data set (DATA=folder HTML=file ARGS=...)
	@$(BIN)/loupe data check $(call need,DATA) $(if $(HTML),--html $(HTML)) $(ARGS)

train: setup ## Train a run (DATA=folder RECIPE=finetune ARGS=...)
	@$(BIN)/loupe train --data $(call need,DATA) --recipe $(or $(RECIPE),finetune) $(ARGS)

evaluate: setup ## Evaluate a package (PACKAGE=folder DATA=folder OUT=folder)
	@$(BIN)/loupe evaluate $(call need,PACKAGE) --data $(call need,DATA) --out $(call need,OUT)

export: setup ## Export a run (RUN=folder OUT=folder PRECISION=fp32|fp16|int8 ARGS=...)
	@$(BIN)/loupe export $(call need,RUN) --out $(call need,OUT) $(if $(PRECISION),--precision $(PRECISION)) $(ARGS)

retrain: setup ## Train, export, evaluate, publish; promote if not worse (DATA=folder NAME=model RECIPE=finetune ARGS=...)
	@$(BIN)/loupe retrain --data $(call need,DATA) --name $(or $(NAME),model) --recipe $(or $(RECIPE),finetune) $(ARGS)

# One shell, so the default folder is computed once.
edge: setup ## Train a small network, export it in int8, build its bundle (DATA=folder TEACHER=package OUT=folder ARGS=... EXPORT_ARGS=...)
	@data=$(call need,DATA) && out=$(or $(OUT),artifacts/edge/$$(date +%Y%m%d-%H%M%S)) && \
	$(BIN)/loupe train --data "$$data" --recipe edge $(if $(TEACHER),--set teacher=$(TEACHER)) --out "$$out/run" $(ARGS) && \
	$(BIN)/loupe export "$$out/run" --precision int8 --out "$$out/package" $(EXPORT_ARGS) && \
	$(BIN)/loupe edge build "$$out/package" --out "$$out/bundle.zip" && \
	$(BIN)/loupe edge bench "$$out/bundle.zip"

serve: setup ## Serve a model from the store (MODEL=name PORT=3000)
	@$(BIN)/loupe serve --port $(PORT) $(if $(MODEL),--model $(MODEL)) $(ARGS)

score: setup ## Score many images (INPUT=folder, table, archive or URL MODEL=name OUT=file ARGS=--resume)
	@$(BIN)/loupe score $(call need,INPUT) --model $(call need,MODEL) --out $(call need,OUT) $(ARGS)

bench: setup ## Compare serving with other servers (BENCH=serve ARGS=...; loupe bench lists all)
	@$(BIN)/loupe bench $(or $(BENCH),serve) $(ARGS)

image: ## Build the CPU image (DOCKER=docker, or podman)
	@$(or $(DOCKER),docker) build --file docker/Dockerfile --tag loupe:cpu .

lock: ## Resolve the locked requirements again (needs uv)
	@requirements/lock.sh

clean: ## Remove .venv and caches; artifacts/ stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

need = $(or $($(1)),$(error $(1) is missing; say make $@ $(1)=...))
