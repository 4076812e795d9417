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
BINDING := tools/binding.py
NATIVE_INPUTS := CMakeLists.txt $(BINDING) $(shell find native -type f -not -path '*/tests/*')
STUBS := uffdballoon/_native.pyi uffdballoon/bench/_bench.pyi

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: build ## Make .venv/ with the uffdballoon command in it, system packages included
	@echo "Ready: $(BIN)/uffdballoon"

.PHONY: build
build: $(BUILT) $(STUBS) ## Build the C library, the binding and the micro-guest into .venv/

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
	! pkg-config --exists libvirt 2>/dev/null || \
		$(INSTALL) --build-constraint $(PINS) --group libvirt || \
		echo "Going on without libvirt's binding: no domain's monitor is had by libvirt." >&2
	@touch $@

# The editable install has a list of the packages: a new one is found only after another install.
PACKAGES := $(shell find uffdballoon -name __init__.py)

$(BUILT): $(DEPENDENCIES) $(NATIVE_INPUTS) $(PACKAGES) | system-packages
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# Those that are installed lie beside the extensions; type checkers want these, beside the sources.
uffdballoon/_native.pyi: native/include/uffdballoon.h
uffdballoon/bench/_bench.pyi: native/bench/bench.h
$(STUBS): $(BINDING) | $(DEPENDENCIES)
	$(BIN)/python $(BINDING) $(filter %.h,$^) --stub $@

# Every worker, and every command that a test runs, imports the same modules; where the environment
# forbids Python to keep what it compiled, each would compile them for itself.
WARM := build/warm
$(WARM): $(BUILT) $(shell find uffdballoon tests tools examples -name '*.py') | build-native
	@$(BIN)/python -m compileall -q uffdballoon tests tools examples
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --collect-only -qq >$@.log || \
		{ cat $@.log; false; }
	@touch $@

# Tests mostly wait, for a guest that boots or for nothing to happen: three at a time keep a CPU busy.
WORKERS ?= $(shell expr $(JOBS) \* 3)

.PHONY: test
test: build build-native $(WARM) ## Run every test, the C library's among them
	@echo "Every test: about 8 minutes on two CPUs that have nothing else to do."
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

N ?= 20
TESTS ?= tests/system

.PHONY: flaky
flaky: build build-native ## Repeat C tests 10 x N=20 times and TESTS=tests/system N times, see tools/flaky
	tools/flaky $(N) $(TESTS)

SEED ?= 1

.PHONY: campaign
campaign: build ## Kill managers and targets 4,800 and 350 times, and what else repeats; SEED=1
	UFFDBALLOON_SEED=$(SEED) $(BIN)/python -m pytest -m campaign -s tests/campaign \
		tests/system/test_hold.py tests/system/test_rcu_thread.py tests/system/test_attach_matrix.py \
		tests/system/test_monitor_linux.py

RELEASE ?= trixie
ROUNDS ?= tests/system/test_rcu_thread.py tests/system/test_ram_or_refusal.py \
	tests/system/test_enforcement.py tests/system/test_balloon_life.py \
	tests/system/test_linux_balloon.py tests/campaign/test_machine_types.py

.PHONY: newer-qemu
newer-qemu: build ## Try the QEMU of another Debian: RELEASE=trixie, ROUNDS=tests
	qemu=$$($(BIN)/python -m tests.support.other_qemu $(RELEASE)) && export PATH=$$qemu:$$PATH && \
		qemu-system-x86_64 --version && \
		UFFDBALLOON_ATTACHES=200 UFFDBALLOON_RAM_TIMES=50 $(BIN)/python -m pytest \
			--numprocesses $(JOBS) --dist loadgroup -m "campaign or not campaign" $(ROUNDS)

MINUTES ?= 30

.PHONY: soak
soak: build ## Two guests, storms, cycles and restarts for MINUTES=30; the plot is build/soak.png
	@mkdir -p build
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --plot build/soak.png

# $(call cmake,DIRECTORY,OPTIONS): the C library alone, without Python; silent but for a failure.
define cmake
@mkdir -p build
@cmake -S native -B $(1) $(2) >$(1).log || { cat $(1).log; false; }
@cmake --build $(1) --parallel $(JOBS) >$(1).log || { cat $(1).log; false; }
endef

# $(call ctest,DIRECTORY,PREFIX): run the C tests that are built there.
ctest = $(2) ctest --test-dir $(1) --parallel $(JOBS) --output-on-failure

.PHONY: build-native
build-native: | system-packages
	$(call cmake,build/native,-DUFFDB_TESTS=ON)

.PHONY: test-native
test-native: build-native ## Run the C library's tests without Python
	$(call ctest,build/native)

# One after the other they are built, and then run together: they mostly wait.
.PHONY: sanitize
sanitize: build-asan build-tsan ## Run the C library's tests under ASan with UBSan, and under TSan
	@$(MAKE) --jobs 2 --output-sync=target test-asan test-tsan

.PHONY: build-asan build-tsan test-asan test-tsan
build-asan: | system-packages
	$(call cmake,build/asan,-DUFFDB_TESTS=ON -DUFFDB_SANITIZE=address$(comma)undefined)

build-tsan: build-asan
	$(call cmake,build/tsan,-DUFFDB_TESTS=ON -DUFFDB_SANITIZE=thread)

test-asan:
	$(call ctest,build/asan)

# TSan of this age cannot place its shadow when addresses are randomised by 32 bits.
test-tsan:
	$(call ctest,build/tsan,setarch --addr-no-randomize)

comma := ,

.PHONY: analyze
analyze: | system-packages ## Have gcc look for faults on every path of the C library and its benchmarks
	$(call cmake,build/analyze,-DUFFDB_ANALYZE=ON -DUFFDB_TESTS=OFF)

# Those that need nothing of the host: valgrind 3.19 knows neither userfaultfd(2) nor pidfd_open(2).
PURE_TESTS := contract decisions ledger log_lines parking planner records version

.PHONY: valgrind
valgrind: build-native ## Run those C tests under valgrind that it can run
	printf 'build/native/tests/test_%s\n' $(PURE_TESTS) | xargs -P $(JOBS) -n 1 \
		valgrind --quiet --error-exitcode=1 --leak-check=full --show-leak-kinds=all

.PHONY: failures
failures: build-asan ## Let every call of the C library fail with every errno, one at a time
	build/asan/tests/test_failures all

RUNS ?= 0
SECONDS ?= 60

.PHONY: fuzz
fuzz: build ## Fuzz all that parses, for SECONDS=60 or RUNS=inputs, all targets together
	tools/system-packages clang libclang-rt-dev
	$(INSTALL) --group fuzz
	@mkdir -p build/fuzz
	$(call cmake,build/fuzz/native,-DCMAKE_C_COMPILER=clang -DUFFDB_TESTS=OFF -DUFFDB_FUZZ=ON \
		-DUFFDB_SANITIZE=address$(comma)undefined)
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

.PHONY: json-docs
json-docs: build ## Write docs/json.md anew, of what the records say
	$(BIN)/python -m tools.json_docs

.PHONY: plots
plots: build ## Draw benchmarks/results/ anew, of the JSON there
	$(BIN)/python -m tools.redraw

.PHONY: pins
pins: | system-packages ## Move every development tool to its newest version, in tools/pins.txt
	@tools/move-pins

.PHONY: share
share: build ## Write share/ anew, manual pages and completions, of what the commands say
	$(BIN)/python -m tools.share

# The sdist, and a wheel of that, built as the editable install is. auditwheel says by its name which
# glibc it needs, and wants patchelf on PATH.
.PHONY: wheel
wheel: build ## Make the sdist, and of that a manylinux wheel, in dist/
	rm -rf dist build/wheel
	@mkdir -p build
	@$(BIN)/python -m build --no-isolation --outdir build/wheel . >build/wheel.log 2>&1 || \
		{ cat build/wheel.log; false; }
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

.PHONY: package
package: build ## Run the wheel with the lowest versions, and on every Python
	@$(MAKE) --jobs 2 --output-sync=target lowest pythons

.PHONY: pythons
pythons: wheel ## Run the wheel on the Pythons from 3.11 that this machine has
	tools/try-wheel $(BIN)/python $(PINS) dist/*.whl

# The pinned pip reaches into an environment that has none of its own. It is built there with the
# lowest versions as well, of the sdist. What else has to be built is built by the pinned setuptools.
LOWEST := build/lowest
.PHONY: lowest
lowest: wheel ## Build and run it with the lowest versions of what it depends on
	rm -rf $(LOWEST)
	@mkdir -p $(LOWEST)
	$(BIN)/python -m venv --without-pip $(LOWEST)/venv
	$(BIN)/python tools/dependencies.py --lowest >$(LOWEST)/constraints.txt
	{ $(BIN)/python tools/dependencies.py --build --lowest && grep ^setuptools== $(PINS); } \
		>$(LOWEST)/build-constraints.txt
	$(PIP) --python $(LOWEST)/venv/bin/python install \
		--build-constraint $(LOWEST)/build-constraints.txt \
		--constraint $(LOWEST)/constraints.txt "$$(echo dist/*.tar.gz)[plots]"
	$(LOWEST)/venv/bin/python tools/dependencies.py --check
	@# From elsewhere, so that nothing of the checkout is found.
	cd / && $(CURDIR)/$(LOWEST)/venv/bin/uffdballoon doctor
	cd / && $(CURDIR)/$(LOWEST)/venv/bin/uffdballoon scenario run touch-after-inflate --quick
	cd / && $(CURDIR)/$(LOWEST)/venv/bin/uffdballoon bench zap --rounds 1 --size 2M \
		--plot $(CURDIR)/$(LOWEST)/zap.png

.PHONY: demo
demo: build ## Show the whole of it on a real QEMU
	@$(BIN)/python -m examples.demo

.PHONY: clean
clean: ## Remove what was built, .venv/ included
	rm -rf build dist $(VENV) $(STUBS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
