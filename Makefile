# SPDX-License-Identifier: GPL-2.0-or-later
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

JOBS ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINS := tools/pins.txt
INSTALL := $(PIP) install --constraint $(PINS)

# Stamps live in what they speak of: a .venv that is removed takes them along.
CREATED := $(VENV)/.created
DEPENDENCIES := $(VENV)/.dependencies
BUILT := $(VENV)/.built

C_FILES = $(shell find native -name '*.[ch]')
NATIVE_INPUTS := CMakeLists.txt $(shell find native -type f -not -path '*/tests/*')

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: build ## Make .venv/ with the uffdballoon command in it, system packages included
	@echo "Ready: $(BIN)/uffdballoon"

.PHONY: build
build: $(BUILT) ## Build the C library, the binding and the micro-guest into .venv/

.PHONY: system-packages
system-packages:
	@tools/system-packages

$(CREATED): | system-packages
	rm -rf $(VENV)
	python=$$(tools/find-python) && $$python -m venv $(VENV)
	@touch $@

# pip first and alone: the one that a venv begins with may not know --group.
$(DEPENDENCIES): pyproject.toml $(PINS) $(CREATED)
	$(INSTALL) pip
	$(INSTALL) --group dev
	@touch $@

$(BUILT): $(DEPENDENCIES) $(NATIVE_INPUTS) uffdballoon/__init__.py | system-packages
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

.PHONY: test
test: test-native build ## Run every test: the C library's, then Python's
	$(BIN)/python -m pytest

SEED ?= 1

.PHONY: campaign
campaign: build ## Kill managers and targets 3,800 and 350 times, and what else repeats; SEED=1
	UFFDBALLOON_SEED=$(SEED) $(BIN)/python -m pytest -m campaign -s tests/campaign \
		tests/system/test_hold.py

MINUTES ?= 30

.PHONY: soak
soak: build ## Two guests, storms, cycles and restarts for MINUTES=30; the plot is build/soak.png
	@mkdir -p build
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --plot build/soak.png

# $(call ctest,DIRECTORY,SANITIZERS): the C library alone, without Python.
define ctest
cmake -S native -B $(1) -DUFFDB_TESTS=ON -DUFFDB_SANITIZE=$(2) >$(1).log || { cat $(1).log; false; }
cmake --build $(1) --parallel $(JOBS) >$(1).log || { cat $(1).log; false; }
$(3) ctest --test-dir $(1) --parallel $(JOBS) --output-on-failure
endef

.PHONY: test-native
test-native: | system-packages ## Run the C library's tests
	@mkdir -p build
	$(call ctest,build/native,)

.PHONY: sanitize
sanitize: | system-packages ## Run the C library's tests under ASan with UBSan, then under TSan
	@mkdir -p build
	$(call ctest,build/asan,address$(comma)undefined)
	@# TSan of this age cannot place its shadow when addresses are randomised by 32 bits.
	$(call ctest,build/tsan,thread,setarch --addr-no-randomize)

comma := ,

.PHONY: analyze
analyze: | system-packages ## Have gcc look for faults on every path of the C library and its benchmarks
	@mkdir -p build
	cmake -S native -B build/analyze -DUFFDB_ANALYZE=ON -DUFFDB_TESTS=OFF >build/analyze.log || { cat build/analyze.log; false; }
	cmake --build build/analyze --parallel $(JOBS) >build/analyze.log || { cat build/analyze.log; false; }

# Those that need nothing of the host: valgrind 3.19 knows neither userfaultfd(2) nor pidfd_open(2).
PURE_TESTS := contract ledger planner records version

.PHONY: valgrind
valgrind: | system-packages ## Run those C tests under valgrind that it can run
	@mkdir -p build
	cmake -S native -B build/native -DUFFDB_TESTS=ON >build/native.log || { cat build/native.log; false; }
	cmake --build build/native --parallel $(JOBS) >build/native.log || { cat build/native.log; false; }
	printf 'build/native/tests/test_%s\n' $(PURE_TESTS) | xargs -P $(JOBS) -n 1 \
		valgrind --quiet --error-exitcode=1 --leak-check=full --show-leak-kinds=all

.PHONY: failures
failures: | system-packages ## Let every call of the C library fail with every errno, one at a time
	@mkdir -p build
	cmake -S native -B build/asan -DUFFDB_TESTS=ON -DUFFDB_SANITIZE=address$(comma)undefined >build/asan.log || { cat build/asan.log; false; }
	cmake --build build/asan --parallel $(JOBS) >build/asan.log || { cat build/asan.log; false; }
	build/asan/tests/test_failures all

RUNS ?= 0
SECONDS ?= 60

.PHONY: fuzz
fuzz: build ## Fuzz all that parses, for SECONDS=60 or RUNS=inputs, all targets together
	tools/system-packages clang libclang-rt-dev
	$(INSTALL) --group fuzz
	CC=clang cmake -S native -B build/fuzz/native -DUFFDB_TESTS=OFF -DUFFDB_FUZZ=ON \
		-DUFFDB_SANITIZE=address$(comma)undefined >build/fuzz.log || { cat build/fuzz.log; false; }
	cmake --build build/fuzz/native --parallel $(JOBS) >build/fuzz.log || { cat build/fuzz.log; false; }
	$(BIN)/python -m tests.fuzz --runs $(RUNS) $(if $(filter 0,$(RUNS)),--seconds $(SECONDS))

.PHONY: lint
lint: build ## Check style and the order of the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/lint-imports

.PHONY: format
format: build ## Put every file into its format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_FILES)

.PHONY: types
types: build ## Check types
	$(BIN)/mypy

.PHONY: pins
pins: | system-packages ## Move every development tool to its newest version, in tools/pins.txt
	@tools/move-pins

# The pinned pip reaches into an environment that has none of its own. The wheel is built
# as the editable install is; what else has to be built is built by the pinned setuptools.
LOWEST := build/lowest
.PHONY: lowest
lowest: build ## Run the wheel with the lowest versions of what it depends on
	rm -rf $(LOWEST)
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir $(LOWEST) .
	$(BIN)/python -m venv --without-pip $(LOWEST)/venv
	$(BIN)/python tools/dependencies.py --lowest >$(LOWEST)/constraints.txt
	$(PIP) --python $(LOWEST)/venv/bin/python install --build-constraint $(PINS) \
		--constraint $(LOWEST)/constraints.txt $(LOWEST)/*.whl
	$(LOWEST)/venv/bin/python tools/dependencies.py --check
	@# From elsewhere, so that nothing of the checkout is found.
	cd / && $(CURDIR)/$(LOWEST)/venv/bin/uffdballoon doctor
	cd / && $(CURDIR)/$(LOWEST)/venv/bin/uffdballoon scenario run touch-after-inflate --quick

.PHONY: demo
demo: build ## Show the whole of it on a real QEMU
	@$(BIN)/python -m examples.demo

.PHONY: clean
clean: ## Remove what was built, .venv/ included
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
