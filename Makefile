# `make bench` and `make test` build what they need on a fresh clone: a virtual environment from the pinned requirements.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/ready

.PHONY: bench test hub clean

bench: $(READY)
	$(VENV)/bin/selkey bench

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto -q

# what the Hugging Face kernels hub publishes: the folder must not be there yet
HUB ?= dist/hub
hub: $(READY)
	$(VENV)/bin/python -m selkey.bench.hub $(HUB)

$(READY): requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV)
