# The whole project from a clean checkout. Every target makes .venv when it is missing; stamp files
# keep repeated runs quick. Variables: PYTHON=, TORCH="torch==... --index-url ...", VLARFT_CUDA=ON|OFF,
# ARGS= (added to the command of demo, demo-from-scratch, test and bench).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := .venv/bin
NATIVE := $(shell find csrc -type f)

.PHONY: help demo demo-from-scratch test bench lint format native-test sanitize cuda clean
help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: .venv/.runtime ## fine-tune the bundled small policy and write an HTML report
	$(BIN)/vlarft demo $(ARGS)

demo-from-scratch: .venv/.runtime ## the same, pre-training every model first
	$(BIN)/vlarft demo --from-scratch $(ARGS)

test: .venv/.dev native-test ## native and Python tests
	$(BIN)/python -m pytest $(ARGS)

bench: .venv/.dev ## token generation beside its baselines, into benchmarks/results/ (at most 10 minutes)
	$(BIN)/vlarft bench run --case small-1x16 --stage imagine,rollout --json benchmarks/results/local.json $(ARGS)

lint: .venv/.dev ## ruff, mypy, clang-format; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

format: .venv/.dev ## rewrite files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

native-test: .venv/.dev ## C++ unit tests
	@$(call native_tests,release,Release,)

sanitize: .venv/.dev ## C++ unit tests under AddressSanitizer + UBSan, then ThreadSanitizer
	@$(call native_tests,asan,RelWithDebInfo,address;undefined)
	@$(call native_tests,tsan,RelWithDebInfo,thread)

cuda: .venv/.dev ## compile the CUDA code for sm_80 and sm_90a, which needs nvcc and no GPU; spills fail
	@if ! command -v nvcc > /dev/null; then echo "== nvcc is not here: the CUDA code was not compiled"; exit 0; fi; \
	export PATH="$(CURDIR)/$(BIN):$$PATH"; mkdir -p build/cuda; \
	echo "== CUDA code, for sm_80 and sm_90a"; \
	cmake -G Ninja -S . -B build/cuda -DVLARFT_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real" \
	    -DCMAKE_CUDA_FLAGS=-Xptxas=-v -DVLARFT_BUILD_TESTS=ON --log-level=WARNING \
	    "-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python" "-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)"; \
	cmake --build build/cuda > build/cuda/log.txt 2>&1 || { tail -n 60 build/cuda/log.txt; exit 1; }; \
	$(BIN)/python scripts/check_gpu_resources.py build/cuda/log.txt; \
	PYTHONPATH=build/cuda $(BIN)/python -c "import _native; _native.CudaImaginer"

clean: ## remove what builds and tests leave; runs/ and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find benchmarks csrc kernels scripts tests vlarft -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1) folder under build/, $(2) build type, $(3) sanitizers
define native_tests
	export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	echo "== native tests: $(1)"; \
	cmake -G Ninja -S . -B build/$(1) -DCMAKE_BUILD_TYPE=$(2) "-DVLARFT_SANITIZE=$(3)" \
	    -DVLARFT_PYTHON=OFF -DVLARFT_BUILD_TESTS=ON -DVLARFT_CUDA=$(or $(VLARFT_CUDA),AUTO) --log-level=WARNING; \
	cmake --build build/$(1); \
	ctest --test-dir build/$(1) --output-on-failure --parallel "$$(nproc)"
endef

.venv/.runtime: pyproject.toml CMakeLists.txt scripts/setup_venv.sh scripts/constraints.txt $(NATIVE)
	@bash scripts/setup_venv.sh runtime
	@touch $@

.venv/.dev: .venv/.runtime
	@bash scripts/setup_venv.sh dev
	@touch $@
