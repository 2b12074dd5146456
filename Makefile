# Everything from a fresh clone with python3 (3.11 or newer), make and git. `make` lists the targets.
PYTHON ?= python3
PY := .venv/bin/python
PYTEST_ARGS ?=
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-quick truth photo emoji jacobian bench-peers clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

install: .venv/.installed ## make .venv with the package (editable) and all that the tests need

.venv/.installed: pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "adhere needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name a newer one: make install PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv .venv; \
	fi
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e ".[test]"
	@touch $@

demo: install ## repair photographs and complete emoji into out/
	$(PY) -m examples.demo

test: install ## run the tests; PYTEST_ARGS='-m "not slow"' leaves out the shipped models
	$(PY) -m pytest $(PYTEST_ARGS)

lint: install ## ruff check, ruff format --check, pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: install ## let ruff mend and format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: truth photo emoji jacobian ## measure everything: hours; what a killed run has finished is not run again
bench-quick: install ## a look at truth, photo and emoji in ten minutes: few items, no page is changed
	$(PY) -m benchmarks.truth --json out/quick/truth.json --images 2 --samples 16 --noises 0.05
	$(PY) -m benchmarks.photo --json out/quick/photo.json --methods moment_matching_calm --seeds 0
	$(PY) -m benchmarks.emoji --json out/quick/emoji.json --items 10 --nfe 40 --tasks half x8

truth: install ## measure methods against exact posteriors
	$(PY) -m benchmarks.truth --json benchmarks/results/truth.json
	$(PY) -m benchmarks.rows benchmarks/results/truth.json --intervals --embed docs/measured.md
	$(PY) -m benchmarks.rows benchmarks/results/truth.json --embed README.md \
	  --tasks "left half, noise 0.05" "down-sampling x4, noise 0.05"

photo: install ## measure methods on photographs
	$(PY) -m benchmarks.photo --json benchmarks/results/photo.json
	$(PY) -m benchmarks.rows benchmarks/results/photo.json --intervals --embed docs/measured.md
	$(PY) -m benchmarks.rows benchmarks/results/photo.json --embed README.md

emoji: install ## measure methods on held-out emoji, and their peak memory
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 40
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 24 --methods moment_matching_calm
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 220 --methods inexact_newton
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 100 --tasks half \
	  --methods moment_matching_calm inexact_newton dps
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 40 --prompts with --tasks half x8
	$(PY) -m benchmarks.peak --json benchmarks/results/peak.json
	$(PY) -m benchmarks.rows benchmarks/results/emoji.json --intervals --embed docs/measured.md
	$(PY) -m benchmarks.rows benchmarks/results/peak.json --embed docs/measured.md
	$(PY) -m benchmarks.rows benchmarks/results/emoji.json --embed README.md --tasks half x8
	$(PY) -m benchmarks.rows benchmarks/results/emoji.json --tasks half x8 \
	  --metric feature_distance --plot docs/images/emoji-nfe.png

jacobian: install ## symmetry, spectrum and calibration of the denoisers' Jacobians: half an hour
	$(PY) -m benchmarks.jacobian --json benchmarks/results/jacobian.json --figures docs/images

bench-peers: .venv-peers/.installed ## run deepinv, azula and diffusers on our models and problems
	.venv-peers/bin/python -m benchmarks.peers truth --json benchmarks/results/peers_truth.json
	.venv-peers/bin/python -m benchmarks.peers photo --json benchmarks/results/peers_photo.json --work 100
	.venv-peers/bin/python -m benchmarks.rows benchmarks/results/peers_truth.json --embed docs/measured.md
	.venv-peers/bin/python -m benchmarks.rows benchmarks/results/peers_photo.json --embed docs/measured.md

.venv-peers/.installed: pyproject.toml # no constraints: deepinv chooses torch and torchvision
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q deepinv azula
	.venv-peers/bin/python -m pip install -q -e ".[style,text]" scikit-image scikit-learn opencv-python-headless
	@touch $@

clean: ## remove .venv, caches and demo output; data/ stays
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
