# Everything a user types. Needs make, git and Python 3.10 or later; another Python: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PYTHONWARNINGS ?= ignore
export TOKENIZERS_PARALLELISM ?= false
.DELETE_ON_ERROR:
.PHONY: help soak demo test versions types audit fuzz test-oldest check notebooks tests docs lab explore browser

help: ## what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "installing into .venv (about 6 GB, mostly PyTorch; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -c "import matplotlib.font_manager" # its list of fonts, which the first to draw would announce
	@touch $@

demo: $(READY) ## draw the data, train CMLFA, search people it has never seen (runs/demo)
	@start=$$(date +%s); set -e; \
	$(BIN)/cmlfa_synth data --size demo --seed 0; \
	$(BIN)/cmlfa_train --config_file configs/demo.yaml --resume; \
	echo "drawn, trained and evaluated in $$(( $$(date +%s) - start )) s; look at runs/demo/ranking.png"

test: check types notebooks tests docs ## everything that CI runs

versions: $(READY) # of what the tests run on
	@$(BIN)/python -c "import platform, importlib.metadata as m; print('Python', platform.python_version(), *(f'{n} {m.version(n)}' for n in 'torch torchvision timm open_clip_torch accelerate faiss-cpu numpy pytest nbdev'.split()), sep=', ')"

check: $(READY) ## the package and the README are what the notebooks say; ruff
	$(BIN)/python tools/check.py
	$(BIN)/ruff check

types: $(READY) ## mypy over the package, its patched methods inside their classes
	$(BIN)/python tools/fold.py

audit: $(READY) ## known holes in what is installed; needs a network
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python tools/audit.py

fuzz: $(READY) ## look for inputs that break the readers, ten minutes each; make fuzz ARGS='config --seconds 60'
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tools/fuzz.py $(ARGS)

test-oldest: ## the oldest versions that settings.ini allows, in .venv-oldest; about 6 GB more
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' || { echo "the oldest versions are made for Python 3.10 and 3.11; name one: make test-oldest PYTHON=python3.10"; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tools/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e . pytest pytest-xdist hypothesis 'nbdev>=2.4,<3' 'execnb<0.2' onnx onnxscript onnxruntime
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n 2 --dist loadfile tests --ignore tests/test_explore.py # all but the page, which needs a browser

notebooks: $(READY) ## run every notebook
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python tools/offline.py --n_workers 2 --timing # two processes of two threads each would wait for each other; what is expected is what a CPU gives

browser: $(READY) # Chromium for the tests: the system's where one may install it, else Playwright's own
	@test -x /usr/bin/chromium || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || $(BIN)/playwright install chromium || echo "no browser can be had here; without CI the tests of the page are skipped"

tests: $(READY) browser ## what a notebook cannot test: processes, commands, faults
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 10 tests

soak: $(READY) ## kill it, fill it, load it, for some hours; the report goes into tests/faults/README.md
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/faults/soak.py $(ARGS)

explore: $(READY) ## search people on a web page; make explore ARGS='--store STORE' for your own
	$(BIN)/cmlfa_explore $(ARGS)

docs: $(READY) ## a site from the notebooks, with search and a reference (_docs/html), its links checked
	rm -rf _docs/html
	$(BIN)/python tools/docs.py
	$(BIN)/sphinx-build -q -W --keep-going -E -b html -c tools/site -d _docs/doctrees _docs/pages _docs/html
	$(BIN)/python tools/links.py _docs/html

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=nbs
