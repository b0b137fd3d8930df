# make demo: install and run the demonstration.  make docs: build the documentation.  make test: install and run the tests; make test-cluster: those that start clusters; make coverage: the share of lines they reach; make mutants: the share of small changes of the code that they notice.  Nothing but python3 is needed.
SHELL = /bin/bash
VENV ?= .venv
PYTHON ?= python3
RAYPFT = $(VENV)/bin/raypft

.PHONY: install demo docs test test-cluster coverage mutants check

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/installed

demo: install
	$(RAYPFT) tune demo storage=demo
	$(RAYPFT) report "$$(ls -td demo/demo-* | head -n 1)" --out demo/report
	@echo "open demo/report/index.html in a browser; then try, with your own rows:  $(RAYPFT) init YOUR.csv"

# into site/, to be opened as a file or put on a server
docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# files side by side in two processes, but for those that start Ray
test: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not ray"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m ray

coverage: install
	OMP_NUM_THREADS=1 $(VENV)/bin/coverage run -m pytest
	@echo "coverage: $$($(VENV)/bin/coverage report --format=total) % of raypft's lines, in the tests' own process"

# for MINUTES, in one process
MINUTES ?= 10
mutants: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/mutants.py --minutes $(MINUTES)

test-cluster: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m cluster

check: install
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
