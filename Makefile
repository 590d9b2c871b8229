# A matching pair from one index; sam2 needs torchvision.
TORCH ?= torch==2.15.0 torchvision==0.29.2
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of the tests.
WORKERS ?= 2

.PHONY: demo test quality clean

demo: $(VENV)/.installed
	$(BIN)/python recipes/three_stage.py --config recipes/configs/tiny/three_stage.yaml --output_dir outputs/demo

test: $(VENV)/.installed-test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests

quality: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) setuptools wheel packaging ninja
	touch $@

# sam2 and deepspeed look at the installed torch while they are built.
$(VENV)/.installed: $(VENV)/.torch setup.cfg
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.torch setup.cfg
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[test,quality]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) outputs build *.egg-info
