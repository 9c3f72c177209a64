# portalpatch: every target installs what it needs (Debian packages when root, a venv per Python).
#
#   PYTHON=python3.12  the Python to build for and test on (default: python3)
#   ALL=1              with `make test`: every CPython >= 3.10 found on this machine
#   TESTS="..."        arguments for pytest
#   RUNS=100           with `make stress`: how many seeds
#
# Each Python has its own venv (.venv/<version>) and build folder (build/<version>), so builds for
# several Pythons never meet. The stamps in the venv say what has been done and is still current.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ifeq ($(filter help clean,$(or $(MAKECMDGOALS),help)),)
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
ifeq ($(VERSION),)
$(error portalpatch: no Python ($(PYTHON)): install the Debian package python3)
endif
endif

VENV := .venv/$(VERSION)
RUN := $(VENV)/bin/python
BUILD := build/$(VERSION)
# Quiet, and never from a wheel cached for another tree.
PIP := $(RUN) -m pip --disable-pip-version-check install -qq
TESTS ?=
C_TESTS := $(wildcard tests/interpose/Makefile)

SOURCES := setup.py pyproject.toml $(wildcard interpose/*.[ch] interpose/*.def interpose/*.map) \
    $(wildcard pyglue/*.[ch] pyglue/*.py pyglue/*.pyi pyglue/_autostart/*.py patches/*.py)

## help: this list
help:
	@sed -n 's/^## \([a-z-]*\): /\1\t/p' Makefile | while IFS=$$'\t' read -r name what; do \
	    printf '  make %-13s %s\n' "$$name" "$$what"; done

## build: install into .venv/<version> (only when something changed)
build: $(VENV)/.installed

$(VENV)/.venv:
	@.ci/debian build $(PYTHON)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=70.1' 'greenlet>=3.1'
	@touch $@

$(VENV)/.installed: $(VENV)/.venv $(SOURCES)
	@.ci/debian build $(PYTHON)
	@echo "building portalpatch for Python $(VERSION)"
	@mkdir -p $(BUILD)
	@PORTALPATCH_BUILD_BASE=$(BUILD) $(PIP) --no-build-isolation --no-deps --force-reinstall . \
	    >$(BUILD)/log 2>&1 || { grep -E 'error|portalpatch:' $(BUILD)/log || cat $(BUILD)/log; \
	    echo 'portalpatch: build failed, see $(BUILD)/log' >&2; exit 1; }
	@touch $@

$(VENV)/.testing: $(VENV)/.venv pyproject.toml
	@.ci/debian test $(PYTHON)
	@$(PIP) $$($(RUN) .ci/requirements test)
	@touch $@

$(VENV)/.linting: $(VENV)/.venv pyproject.toml
	@$(PIP) $$($(RUN) .ci/requirements lint)
	@touch $@

# One by one: a peer that cannot be had is reported missing by the benchmarks, not in their way.
$(VENV)/.benching: $(VENV)/.venv pyproject.toml
	@for peer in $$($(RUN) .ci/requirements bench); do $(PIP) "$$peer" \
	    || echo "portalpatch: $$peer could not be installed" >&2; done
	@touch $@

## check: build and run the Python tests on $(PYTHON); TESTS= for pytest's arguments
check: $(VENV)/.installed $(VENV)/.testing
	@.ci/debian test $(PYTHON)
	@echo "testing on Python $(VERSION)"
	$(RUN) -m pytest -q -p no:cacheprovider $(TESTS)

## check-c: build and run the C tests of interpose/
check-c:
ifneq ($(C_TESTS),)
	@.ci/debian build $(PYTHON)
	@$(MAKE) -C tests/interpose check
endif

# The C tests do not depend on the Python, and `make conformance ALL=1` is for CPython's own: the other
# Pythons leave both out. Two Pythons run at a time (the tests mostly wait), each with its output in
# one piece, once what all of them need is installed.
ONCE = --ignore=tests/interpose --ignore=tests/conformance
OTHERS = $$(.ci/pythons $(PYTHON) | tail -n +2)

## test: check-c and check; ALL=1 on every CPython >= 3.10 found
test: check-c
ifneq ($(ALL),1)
	@$(MAKE) check
else
	@$(MAKE) $(VENV)/.installed $(VENV)/.testing
	@pythons=$$(.ci/pythons $(PYTHON)); export default=$${pythons%%$$'\n'*}; \
	xargs -P 2 -I {} $(SHELL) -c \
	    'log=$$(mktemp); result=0; leave_out="$(ONCE)"; [ {} != "$$default" ] || leave_out=; \
	    $(MAKE) check PYTHON={} TESTS="$(TESTS) $$leave_out" >$$log 2>&1 </dev/null || result=1; \
	    cat $$log; rm -f $$log; exit $$result' <<<"$$pythons"
endif

## demo: an unmodified crawler, plain and under portalpatch, side by side
demo: $(VENV)/.installed
	@$(RUN) bench/demo.py

## conformance: CPython's own tests, plain against portalpatch; MODULES="test_queue ...", ALL=1
conformance: $(VENV)/.installed
	@.ci/debian test $(PYTHON) || true
	@status=0; $(RUN) tests/conformance/run.py $(MODULES) || status=1; \
	if [ "$(ALL)" = 1 ]; then \
	    for python in $(OTHERS); do $(MAKE) conformance ALL= PYTHON=$$python || status=1; done; \
	fi; exit $$status

## packages: test suites of client libraries, plain against portalpatch; SUITES="redis psycopg2"
packages: $(VENV)/.installed $(VENV)/.testing
	@.ci/debian test $(PYTHON)
	@.ci/debian packages $(PYTHON)
	@$(RUN) tests/conformance/packages.py $(SUITES)

## conformance-c: CPython's own tests of blocking calls, plain against the C portal
conformance-c:
	@.ci/debian build $(PYTHON)
	@$(MAKE) -C tests/interpose all
	@$(PYTHON) tests/interpose/conformance.py build/c-tests

## bench: every benchmark beside its peers, with table and plots in bench/ (about an hour)
bench: $(VENV)/.installed $(VENV)/.benching
	@.ci/debian test $(PYTHON) || true
	@$(RUN) bench/run.py

## bench-quick: every benchmark once, in at most 3 minutes, recording nothing
bench-quick: $(VENV)/.installed $(VENV)/.benching
	@.ci/debian test $(PYTHON) || true
	@$(RUN) bench/run.py --quick

## asan: C tests under AddressSanitizer and UBSan, leaks included
asan:
	@.ci/debian build $(PYTHON)
	@$(MAKE) -C tests/interpose asan

PORTAL_TESTS = $(wildcard tests/test_portal_*.py) tests/test_future.py
# Not test_mutex_guard and test_hooked_slots: where ASan's functions come first, other slots are rewritten.
CROSSING_TESTS = $(patsubst %,tests/test_%.py,loops_in_threads c_mutexes reports forks_and_threads fd_numbers)

## asan-crossing: the tests of what the C halves do together under AddressSanitizer and UBSan
asan-crossing: $(VENV)/.installed $(VENV)/.testing
	.ci/asan $(RUN) build/asan-$(VERSION) -m pytest -q -p no:cacheprovider $(CROSSING_TESTS)

## asan-portal: the portal's tests under AddressSanitizer and UBSan, then with PYTHONMALLOC=debug
asan-portal: $(VENV)/.installed $(VENV)/.testing
	.ci/asan $(RUN) build/asan-$(VERSION) -m pytest -q -p no:cacheprovider $(PORTAL_TESTS)
	PYTHONMALLOC=debug $(RUN) -X dev -m pytest -q -p no:cacheprovider $(PORTAL_TESTS)

## refcounts: the portal's leak tests with reference counts: PYTHON=python3.11-dbg (Debian)
refcounts: $(VENV)/.installed $(VENV)/.testing
	@$(RUN) -c 'import sys; hasattr(sys, "gettotalrefcount") or sys.exit("refcounts: $(PYTHON) is \
	no debug build of CPython (Debian: python3.11-dbg, python3.11-venv)")'
	$(RUN) -m pytest -q -p no:cacheprovider tests/test_portal_leaks.py

## fuzz: random C programs, plain against the parking path; SEEDS=first,count
fuzz:
	@.ci/debian build $(PYTHON)
	@$(MAKE) -C tests/interpose fuzz

# The stress program has OS threads and workers that wake the hub's green threads. A greenlet leaves
# functions it never entered: no shadow stack.
TSAN_FLAGS := -fsanitize=thread --param=tsan-instrument-func-entry-exit=0
TSAN_RUNS ?= 5

## tsan: ThreadSanitizer on the worker pool, closing fds, the hub's wake-ups and offload; TSAN_RUNS=5
tsan:
	@.ci/debian build $(PYTHON)
	@$(MAKE) -C tests/interpose tsan
	@PORTALPATCH_CFLAGS='$(TSAN_FLAGS)' PORTALPATCH_LDFLAGS=-fsanitize=thread \
	    $(MAKE) build VENV=.venv/$(VERSION)-tsan BUILD=build/$(VERSION)-tsan
	nice .venv/$(VERSION)-tsan/bin/python tests/stress/run.py --runs $(TSAN_RUNS) --jobs 1 --preload \
	    "$$(gcc -print-file-name=libtsan.so)"

# Greenlets move slices of the C stack, so nothing may be poisoned there.
ASAN_FLAGS := -fsanitize=address,undefined -fno-omit-frame-pointer --param=asan-stack=0 \
    --param=asan-instrument-allocas=0
RUNS ?= 100

## stress: everything that waits mixed by a seed, under -X dev and under ASan; RUNS= for how many
stress: $(VENV)/.installed
	nice $(RUN) tests/stress/run.py --runs $(RUNS) -X dev
	@PORTALPATCH_CFLAGS='$(ASAN_FLAGS)' PORTALPATCH_LDFLAGS='$(ASAN_FLAGS)' \
	    $(MAKE) build VENV=.venv/$(VERSION)-asan BUILD=build/$(VERSION)-asan
	nice .venv/$(VERSION)-asan/bin/python tests/stress/run.py --runs $(RUNS) --preload \
	    "$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libstdc++.so.6)"

## valgrind: C tests under valgrind, definite leaks included
valgrind:
	@.ci/debian valgrind $(PYTHON)
	@$(MAKE) -C tests/interpose valgrind

C_FILES = $(wildcard interpose/*.[ch] pyglue/*.[ch] tests/interpose/*.[ch] bench/programs/*.[ch])

## lint: ruff, mypy --strict, clang-format
lint: $(VENV)/.linting $(VENV)/.testing
	@.ci/debian lint $(PYTHON)
	@rm -rf build/types && mkdir -p build/types/portalpatch
	@ln -s $(CURDIR)/pyglue/*.py $(CURDIR)/pyglue/*.pyi $(CURDIR)/pyglue/py.typed $(CURDIR)/patches \
	    build/types/portalpatch
	@status=0; set -x; \
	$(RUN) -m ruff check . || status=1; \
	$(RUN) -m ruff format --check . || status=1; \
	MYPYPATH=build/types $(RUN) -m mypy -p portalpatch || status=1; \
	clang-format --dry-run -Werror $(C_FILES) || status=1; \
	{ set +x; } 2>/dev/null; exit $$status

## format: rewrite the sources as ruff and clang-format want them
format: $(VENV)/.linting
	@.ci/debian lint $(PYTHON)
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .
	clang-format -i $(C_FILES)

## clean: remove venvs and what was built
clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f pyglue/*.so
	@if [ -n "$(C_TESTS)" ]; then $(MAKE) -C tests/interpose clean; fi

.PHONY: refcounts help build check check-c test demo conformance packages conformance-c bench bench-quick asan asan-crossing asan-portal fuzz tsan stress \
    valgrind lint format clean
