# Set-up, training and tests in one command each. `make help` lists them.
# Works with GNU make 3.81 and BSD tools, as macOS has them.

SHELL = /bin/sh
VENV = .venv
CONFIG = configs/dit_cfg.py
WORKDIR =
ARGS =
PYTEST_ARGS =
JOBS = 2

BIN = $(VENV)/bin
RUN = $(BIN)/python -m jaxdiff.main
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Looking for Python and for an accelerator takes a moment; `make help` and `make clean` need neither.
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)

# Run each candidate: a python3.12 on the PATH may be a launcher (pyenv's shims) for a version that is not there.
IS_FIT = -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
CHOICES = $(or $(PYTHON),python3.12 python3.13 python3.11 python3 python)
FOUND := $(shell for p in $(CHOICES); do if $$p $(IS_FIT); then echo $$p; break; fi; done)

# TPU chips are told by their PCI ids, as JAX does it; older virtual machines show them as /dev/accel0.
ifeq ($(origin ACCELERATOR),undefined)
  ACCELERATOR := $(shell \
    if [ "`uname -s`" = Darwin ]; then echo cpu; \
    elif nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then echo cuda12; \
    elif [ -e /dev/accel0 ] || cat /sys/bus/pci/devices/*/uevent 2>/dev/null \
      | grep -Eqi '^PCI_ID=1AE0:00(27|56|5E|62|63|6F|76|7C|83)'; then echo tpu; \
    else echo cpu; fi)
endif
REQUIREMENTS_cpu = requirements-cpu.txt
REQUIREMENTS_cuda12 = requirements.txt
REQUIREMENTS_tpu = requirements-tpu.txt
REQUIREMENTS := $(REQUIREMENTS_$(ACCELERATOR))
ifeq ($(REQUIREMENTS),)
  $(error ACCELERATOR=$(ACCELERATOR) is not known. Use cpu, cuda12 or tpu)
endif

endif

# Empty files that say what is installed. They are older than a requirements file that changed since.
INSTALLED = $(VENV)/.installed-$(ACCELERATOR)
TESTABLE = $(VENV)/.installed-$(ACCELERATOR)-test

.PHONY: help train sample evaluate doctor test test-all lint format install clean

help:
	@echo 'make train    set up .venv for this machine (CPU, NVIDIA GPU or TPU) and train'
	@echo '              CONFIG=configs/unet_cfg.py  ARGS="--config.train.steps=500"'
	@echo 'make sample   draw images with a trained model          WORKDIR=checkpoints/dit_digits'
	@echo 'make evaluate score a trained model                    WORKDIR=checkpoints/dit_digits'
	@echo 'make doctor   say what this machine has, how fast it is and what to mend'
	@echo 'make test     set up, and run the tests, JOBS=2 at once   PYTEST_ARGS="-k samplers"'
	@echo 'make test-all those too that train or start processes'
	@echo 'make lint     ruff (lint and format) and mypy'
	@echo 'make format   let ruff rewrite what make lint complains about'
	@echo 'make install  only set up'
	@echo 'make clean    remove .venv and caches; trained models stay'
	@echo
	@echo 'ACCELERATOR=cpu|cuda12|tpu and PYTHON=python3.12 override what make finds by itself.'

train: $(INSTALLED)
	$(RUN) --config "$(CONFIG)" $(if $(WORKDIR),--workdir "$(WORKDIR)") $(ARGS)

sample: $(INSTALLED)
	$(RUN) --mode sample $(if $(WORKDIR),--workdir "$(WORKDIR)",--config "$(CONFIG)") $(ARGS)

evaluate: $(INSTALLED)
	$(RUN) --mode evaluate $(if $(WORKDIR),--workdir "$(WORKDIR)",--config "$(CONFIG)") $(ARGS)

doctor: $(INSTALLED)
	$(RUN) --mode doctor

test: $(TESTABLE)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: $(TESTABLE)
	$(PYTEST) $(PYTEST_ARGS)

lint: $(TESTABLE)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TESTABLE)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(INSTALLED)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find jaxdiff configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z '$(FOUND)' ]; then \
	  echo 'jaxdiff needs Python 3.11, 3.12 or 3.13 with its venv module; none of these is it: $(CHOICES).' \
	    'Install one (Debian, Ubuntu: python3-venv too), or name it: make PYTHON=/path/to/python3.12 ...' >&2; \
	  exit 1; fi
	$(FOUND) -m venv $(VENV)

$(INSTALLED): requirements-cpu.txt $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing $(REQUIREMENTS) into $(VENV). This takes a few minutes, once.'
	$(BIN)/python -m pip install --disable-pip-version-check -r $(REQUIREMENTS)
	@touch $@

$(TESTABLE): requirements-test.txt requirements-gcs.txt $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.txt
	@touch $@
