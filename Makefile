# Everything from a fresh checkout: `make train`, `make test`. Nothing to configure.
#
# A set-up step is repeated only where what it depends on is newer than its stamp in .venv.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
WORDS  ?=
OLD    ?=
NEW    ?=
ARGS   ?=
# How many random problems `make fuzz` draws for each of its tests.
FUZZ   ?= 5000
# Anything: `make asan` and `make tsan` with portable code alone and a few tests.
QUICK  ?=
# The columns of docs/compatibility.md, each an interpreter and a torch for it.
COMPAT ?= $(foreach torch,2.10.0 2.11.0 2.13.0 2.15.0,$(PYTHON):torch==$(torch))

VENV     := .venv
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES  := setup.py pyproject.toml $(shell find csrc -type f)
CPP_CODE := $(foreach kind,cpp h inl cu cuh,$(shell find csrc tests -name '*.$(kind)'))
# Read from pyproject.toml, so that the list stands in one place.
REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build train test test-models test-triton lint format clean
.PHONY: wheel dist test-dist compat asan tsan fuzz
.PHONY: bench bench-report bench-compare bench-sweep cuda-resources gpu-check gpu-bench

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26
	@echo 'Variables: WORDS=file|names (train, bench, docs), ARGS="..." (train, test, bench, gpu-check), PYTHON, TORCH.'

build: $(VENV)/.built  ## .venv with torch and the package, compiled in place

train: $(VENV)/.built  ## train the dilated language model, invent words, draw the loss curve
	$(BIN)/convlm train --model dilated $(if $(WORDS),--words '$(WORDS)') $(ARGS)

test: $(VENV)/.built $(VENV)/.test  ## the whole test suite
	$(BIN)/python -m pytest $(ARGS)

test-triton: $(VENV)/.built $(VENV)/.test  ## every case and configuration of the Triton kernels, some 20 minutes
	CONVLM_TRITON_EVERY_CASE=1 $(BIN)/python -m pytest tests/test_triton.py $(ARGS)

test-models: $(VENV)/.built $(VENV)/.test $(VENV)/.models  ## swap the layers of wav2vec 2.0, Whisper, Mamba, ... and compare
	$(BIN)/python -m pytest tests/models $(ARGS)

fuzz: $(VENV)/.built $(VENV)/.test  ## thousands of random calls, legal and not, against float64
	CONVLM_FUZZ=$(FUZZ) $(BIN)/python -m pytest -q tests/test_fuzz.py $(ARGS)

asan: $(VENV)/.built $(VENV)/.test  ## the CPU kernels' tests under AddressSanitizer, on a build of their own
	$(BIN)/python tests/sanitized.py $(if $(QUICK),--quick) address $(ARGS)

tsan: $(VENV)/.built $(VENV)/.test  ## and those of threads under ThreadSanitizer
	$(BIN)/python tests/sanitized.py $(if $(QUICK),--quick) thread $(ARGS)

wheel: $(VENV)/.built $(VENV)/.dev  ## dist/*.whl from what `make build` compiled
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m build --wheel --no-isolation

dist: $(VENV)/.built $(VENV)/.dev  ## dist/: the sources, and from them alone a wheel
	rm -rf dist
	$(BIN)/python -m build

test-dist: $(VENV)/.built  ## install the wheel in dist/ in a clean environment and test it there
	$(BIN)/python tests/compatibility.py '$(PYTHON):$(TORCH)' $(ARGS)

compat: dist  ## run one wheel with each torch of COMPAT and write docs/compatibility.md, 10 GB of downloads
	$(BIN)/python tests/compatibility.py $(COMPAT) --write docs/compatibility.md

lint: $(VENV)/.built $(VENV)/.dev  ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP_CODE)
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_CODE)

bench: $(VENV)/.built  ## every benchmark within 10 minutes: figures, plots and a page in benchmarks/results
	$(BIN)/python benchmarks/bench.py --threads 1 2 $(if $(WORDS),--words '$(WORDS)') $(ARGS)

bench-report: $(VENV)/.built  ## draw the stored figures again, and write them into README.md and docs
	$(BIN)/python benchmarks/report.py $(ARGS)

bench-compare: $(VENV)/.built  ## what has become slower from OLD=file.json to NEW=file.json
	$(BIN)/python benchmarks/compare.py '$(OLD)' '$(NEW)' $(ARGS)

bench-sweep: $(VENV)/.built  ## time random shapes against torch's and show the worst
	$(BIN)/python benchmarks/sweep.py --tuned-allocator $(ARGS)

# 9.0 beside the default: the PTX for later GPUs, assembled, so that there is something to look at.
cuda-resources: export CONVLM_CUDA = 1
cuda-resources: export CONVLM_CUDA_ARCHS = 8.0;9.0a;9.0;9.0+PTX
cuda-resources: $(VENV)/.built  ## registers and spills of every CUDA kernel, into docs/cuda-resources.md
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python tools/cuda_resources.py --write docs/cuda-resources.md

# The one warning that is switched off is about MkDocs' own future. No --quiet: it would hide the
# others from the strict mode that mkdocs.yml asks for.
.PHONY: docs
docs: export NO_MKDOCS_2_WARNING = 1
docs: export TUTORIAL_WORDS = $(WORDS)
docs: $(VENV)/.built $(VENV)/.docs  ## the documentation as a site in build/site, its tutorial run
	$(BIN)/python tools/website/figures.py --check
	$(BIN)/mkdocs build $(ARGS)

# With the interpreter that PYTHON names and what it has: a machine with a GPU may have no network.
gpu-check:  ## on a machine with a GPU: build there, test, sanitize and time, in 9 minutes
	@$(PYTHON) tools/gpu_check.py $(ARGS)

gpu-bench:  ## the same, but only to time, with more problems and peers
	@$(PYTHON) tools/gpu_check.py --stage build --stage bench --full $(ARGS)

clean:  ## remove everything that was built, .venv included
	rm -rf $(VENV) .venv-compat build dist *.egg-info convlm_kernels/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Set-up ---------------------------------------------------------------------------------------

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(TORCH)
	$(PIP) $$($(BIN)/python -c '$(REQUIRES)')
	@touch $@

$(VENV)/.built: $(SOURCES) | $(VENV)/.torch
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.%: pyproject.toml | $(VENV)/.built
	$(PIP) --no-build-isolation --editable '.[$*]'
	@touch $@
