# A matching pair from one index; sam2 needs torchvision.
TORCH ?= torch==2.15.0 torchvision==0.29.2
PYTHON ?= python3
VENV := .venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1
BIN := $(VENV)/bin
# Of the page, over the other: gradio asks for an older Pillow.
APP := .venv-app
# Of the tests.
WORKERS ?= 2
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-app test-fast quality docs house clean

demo: $(VENV)/.installed
	@$(BIN)/python recipes/three_stage.py --config recipes/configs/tiny/three_stage.yaml --output_dir outputs/demo

# All of it, the longest first.
test: $(VENV)/.installed-test
	$(PYTEST) -n $(WORKERS) tests
	$(MAKE) test-app

# The page of `sa2va-trl app`, in a browser.
test-app: $(APP)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest --dist loadfile -n $(WORKERS) tests/app tests/scripts/test_app_script.py

# What one runs before a commit: without launches, official references and other tests of more than a second.
test-fast: $(VENV)/.installed-test
	$(PYTEST) -n $(WORKERS) -m "not slow and not longer" tests

quality: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages, into site/. (Material for MkDocs speaks of its successor, which is nothing to act on.)
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The picture of the package in CONTRIBUTING.md.
house:
	$(PYTHON) docs/house.py

$(VENV)/.torch:
	@echo "Installing torch, the Hugging Face libraries and SAM 2 into $(VENV), once: some 5 minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet $(TORCH) setuptools wheel packaging ninja
	@touch $@

# sam2 and deepspeed look at the installed torch while they are built. (The demo leaves a report.)
$(VENV)/.installed: $(VENV)/.torch setup.cfg
	@SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[report]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch setup.cfg
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[test,quality]'
	touch $@ $(VENV)/.installed

$(APP)/.installed: $(VENV)/.installed-test
	$(PYTHON) -m venv $(APP)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$($(APP)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(APP)/bin/pip install --quiet --no-build-isolation --editable '.[app]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.torch setup.cfg
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[docs,report]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(APP) outputs build site *.egg-info
