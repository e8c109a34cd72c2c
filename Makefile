# make help       says what there is
# make pretrain   from nothing: environment, demo tiles, training on the CPU, cost table, picture
# make test       from nothing: environment, tests
# make check      lint, spelling, types, import direction, documentation
# make package    builds sdist and wheel, and tries them where nothing else is than they declare
# make docs       the site, in docs/_build/html; a warning is an error
# make linkcheck  asks every address that the site links to; needs the internet
# make notebooks  runs the notebooks, with their outputs in docs/_build/notebooks
# make mutations  breaks the code in each way that the tests must notice (minutes)
# make clean      removes what the others made
#
# PYTHON=/path/to/python    an environment that has everything is used as it is
# BASE_PYTHON=python3.13    makes .venv with this Python

CONFIG := configs/mmpretrain/_demo_/mae_prmim_demo.py
WORK := work_dirs/mae_prmim_demo

ifneq ($(origin PYTHON),command line)
PYTHON := .venv/bin/python
environment := .venv/installed
endif
BASE_PYTHON ?= python3
bin := $(dir $(or $(shell command -v $(PYTHON)),$(PYTHON)))
export PATH := $(abspath $(bin)):$(PATH)

.PHONY: help pretrain test check docs linkcheck notebooks package mutations clean FORCE

help:
	@awk '!/^#/ {exit} {sub(/^# ?/, ""); print}' $(firstword $(MAKEFILE_LIST))

pretrain: export PYTHONWARNINGS := ignore
pretrain: $(environment) data/demo/done
	mim train mmpretrain $(CONFIG) --work-dir $(WORK)
	prmim cost $(CONFIG)
	prmim show $(CONFIG) $$(cat $(WORK)/last_checkpoint) data/demo/val/*/128_*.png \
		--out $(WORK)/reconstruction.png --force

# Two workers on two cores: more threads in each would only wait for one another.
test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(environment)
	python -m pytest -n 2

check: $(environment)
	ruff check .
	ruff format --check .
	codespell
	mypy
	lint-imports
	python benchmarks/tables.py --check
	python tools/check_docs.py

package: $(environment)
	python -m pytest -m package tests/tools/test_wheel.py

docs: $(environment)
	sphinx-build -q -W --keep-going -b html docs docs/_build/html

linkcheck: $(environment)
	sphinx-build -q -b linkcheck docs docs/_build/linkcheck

NOTEBOOKS := $(patsubst docs/notebooks/%.py,docs/_build/notebooks/%.ipynb,$(wildcard docs/notebooks/*.py))

notebooks: $(environment) $(NOTEBOOKS)

docs/_build/notebooks/%.ipynb: docs/notebooks/%.py FORCE | $(environment)
	mkdir -p $(@D)
	jupytext -q --to ipynb $< -o $@
	PYTHONWARNINGS=ignore MPLBACKEND=module://matplotlib_inline.backend_inline jupyter-execute --inplace --timeout=120 $@

FORCE:

mutations: $(environment)
	python tools/mutations.py

data/demo/done: prmim_adapters/demo_data.py | $(environment)
	python -m prmim_adapters.demo_data data/demo
	touch $@

.venv/installed: setup.cfg pyproject.toml requirements/constraints.txt
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c requirements/constraints.txt -e '.[all,test,dev,docs]'
	touch $@

clean:
	rm -rf .venv build dist data/demo docs/_build $(WORK)
