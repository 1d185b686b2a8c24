# make run                      generate, train, evaluate, segment; draws results/overview.png (a quarter of an hour on 2 cores)
# make run SCAN=scan.tif VOXEL_SIZE_UM=0.05     the same, and segments your scan
# make test                     environment and all tests
# make tensorboard              watch the runs in a browser
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: run test lint tensorboard clean
.DELETE_ON_ERROR:

run: $(READY)
	$(RUN) scripts/quickstart.py $(if $(SCAN),--scan "$(SCAN)") $(if $(VOXEL_SIZE_UM),--voxel-size-um $(VOXEL_SIZE_UM))

test: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .

tensorboard: $(READY)
	$(VENV)/bin/tensorboard --logdir runs

clean:
	rm -rf results .pytest_cache .ruff_cache

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@
