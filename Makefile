# SPDX-License-Identifier: GPL-2.0-or-later
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

JOBS ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

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
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(DEPENDENCIES): pyproject.toml $(CREATED)
	$(PIP) install --group dev
	@touch $@

$(BUILT): $(DEPENDENCIES) $(NATIVE_INPUTS) uffdballoon/__init__.py | system-packages
	$(PIP) install --no-build-isolation --editable .
	@touch $@

.PHONY: test
test: test-native build ## Run every test: the C library's, then Python's
	$(BIN)/python -m pytest

# $(call ctest,DIRECTORY,SANITIZERS): the C library alone, without Python.
define ctest
cmake -S native -B $(1) -DUFFDB_TESTS=ON -DUFFDB_SANITIZE=$(2) >$(1).log || { cat $(1).log; false; }
cmake --build $(1) --parallel $(JOBS) >$(1).log || { cat $(1).log; false; }
$(3) ctest --test-dir $(1) --output-on-failure
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

.PHONY: demo
demo: build ## Show the whole of it on a real QEMU
	@$(BIN)/python -m examples.demo

.PHONY: clean
clean: ## Remove what was built, .venv/ included
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
