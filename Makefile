# make demo   from nothing to a trained model and a sample of its writing
# make test   lint and all tests
# make lint   only the first half of that
# make gpu    speed on one GPU in nine minutes, with the Python that is there
# make test-slow   the sweeps that make test leaves out

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STEPS := 320

.PHONY: demo test test-slow lint gpu format clean

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ingot needs Python 3.11 or newer; say make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# The corpus is the source of Python's own standard library. An interrupted run goes on to DEMO_STEPS; a finished one trains as many more.
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(VENV)/.installed
	python launcher/prepare.py --config configs/demo-corpus.yaml \
		--input "$$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')"
	done=$$(sed 's/step-0*//' runs/demo/checkpoints/LATEST 2>/dev/null || echo 0); \
	gpus=$$(python -c 'import torch; print(torch.cuda.device_count())'); \
	deepspeed --num_gpus $$([ "$$gpus" = 1 ] && echo 1 || echo 2) launcher/pretrain.py --config configs/demo.yaml \
		--run.steps $$(( (done / $(DEMO_STEPS) + 1) * $(DEMO_STEPS) ))
	@echo; echo "A sample of what it writes after \"import os\":"; echo
	@python launcher/generate.py --checkpoint runs/demo --prompt "import os" --max_tokens 120 --temperature 0.6 --top_p 0.9
	@echo; echo "Look at:"
	@echo "  runs/demo/log.txt, runs/demo/metrics.jsonl     what happened, for people and for programs"
	@echo "  runs/demo/checkpoints                          the model and the optimizer; make demo again goes on from here"
	@echo "  corpora/demo                                   the corpus: plain webdataset tars"
	@echo "  $(BIN)/tensorboard --logdir runs/demo/tensorboard"

# A thread for each worker: more threads than cores wait for each other, and tests take four times as long.
test test-slow: export OMP_NUM_THREADS := 1
test test-slow: export OMP_WAIT_POLICY := passive
# One ninja for all: DeepSpeed's extension is built again for each version of it.
test test-slow: export PATH := $(CURDIR)/$(BIN):$(PATH)

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadscope -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# mypy finds a package by its folder: it is shown the clone as it will lie once it is installed
	@mkdir -p build/types/ingot && for name in launcher model data parallel; do ln -sfn ../../../$$name build/types/ingot/$$name; done
	@for file in ingot/*.py; do ln -sfn ../../../$$file build/types/$$file; done
	MYPYPATH=build/types $(BIN)/mypy -p ingot

# With the Python of the image, which has torch for its GPU.
gpu:
	$(PYTHON) benchmarks/gpu.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
