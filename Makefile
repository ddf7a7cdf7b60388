# `make run` boots a machine, `make test` runs every check. Both need python3 (3.11 or newer) with venv, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the native helper is compiled of, when Xenolith is installed.
NATIVE := $(wildcard src/xenolith/*/*.[ch]) tools/build_native.py
# One apt-get download each; what cannot be had is skipped by the tests that want it.
TEST_KERNELS ?= debian debian-cloud debian-rt debian-backports debian-bullseye-cloud grub mach debian-dom0 passt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run test lint bench bench-plots docs guests clean

help:
	@echo 'make run      boot a machine; this terminal is its console (Ctrl-] leaves it). More options: make run ARGS="--memory 1GiB"'
	@echo 'make test     run every check: ruff, mypy, pytest (ENGINE=kvm: all guests of the tests on that engine)'
	@echo 'make lint     the checks without pytest'
	@echo 'make bench    measure Xenolith against QEMU and Xen (needs qemu-system-x86)'
	@echo 'make bench-plots  measure how boot time and memory grow, and plot it in docs/plots (a quarter of an hour)'
	@echo 'make docs     write the generated documents anew'
	@echo 'make guests   write docs/guests.md anew, from the tests that boot guests (minutes)'
	@echo 'make install  install into .venv only'
	@echo 'make clean    remove .venv and everything that was generated'

install: $(VENV)/compiled

run: $(VENV)/compiled
	@exec $(BIN)/xenolith boot $(ARGS)

test: export XENOLITH_ENGINE := $(ENGINE)
test: $(VENV)/installed-dev
	@tools/pull_test_kernels $(BIN)/xenolith $(TEST_KERNELS)
	@tools/check $(BIN) ruff format mypy pytest

lint: $(VENV)/installed-dev
	@tools/check $(BIN) ruff format mypy layers

bench: $(VENV)/compiled
	@$(BIN)/python -m benchmarks $(ARGS)

bench-plots: $(VENV)/compiled
	@$(BIN)/python -m benchmarks.growth $(ARGS)

docs: $(VENV)/installed
	@$(BIN)/python -m tools.abi_coverage docs/abi-coverage.md
	@$(BIN)/python -m tools.cli_reference docs/cli.md
	@$(BIN)/python -m tools.guest_reference docs/guest-config.md

guests: $(VENV)/installed-dev
	@tools/pull_test_kernels $(BIN)/xenolith $(TEST_KERNELS)
	@XENOLITH_GUESTS_PAGE=docs/guests.md $(BIN)/pytest -n 2 --dist worksteal tests/boot

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml $(NATIVE)
	@tools/install "$(PYTHON)" $(VENV) .
	@touch $@

# A start takes 0.2 s longer where Python may not write down what it compiles.
$(VENV)/compiled: $(VENV)/installed $(shell find src -name '*.py')
	@$(BIN)/python -m compileall -q src
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(NATIVE)
	@tools/install "$(PYTHON)" $(VENV) '.[dev]'
	@touch $(VENV)/installed $@
