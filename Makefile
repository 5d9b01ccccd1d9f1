# Two commands do all the set-up: `make serve` and `make test`. No virtual environment has to be active.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SERVER := $(VENV)/.server

# Tests start hundreds of Python processes, each of which would compile all modules of shared/ and services/ again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup pins prices serve demo test test-fast test-all coverage docs page screenshots check fmt bench up down

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY) ## make the virtual environment in .venv and install everything into it

define install
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; fi
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(READY): pyproject.toml constraints.txt
	$(call install,dev)
	@touch $(SERVER) $(READY)

$(SERVER): pyproject.toml constraints.txt
	$(call install,server)
	@touch $(SERVER)

pins: $(READY) ## write constraints.txt anew: the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(VENV)/pins
	$(VENV)/pins/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	{ head -n 2 constraints.txt; $(VENV)/pins/bin/python -m pip freeze --exclude-editable | sort -f; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

prices: $(READY) ## write the price list anew from the installed genai-prices
	$(BIN)/python tools/make_prices.py

serve: $(SERVER) ## run the whole pipeline on this machine; ARGS="--addr :8700" for flags
	$(BIN)/tokentrace serve $(ARGS)

demo: $(SERVER) ## run the pipeline with a week of traffic in it on 127.0.0.1:8700, in a temporary directory, until Ctrl-C
	$(BIN)/tokentrace demo --serve --history 7d --rate 0.1 $(ARGS)

test: $(READY) ## run all tests with a sixth of the random examples and of the long stories; ARGS="-k name" for flags
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(READY) ## run the tests that need no broker, with few random examples: less than a minute
	TOKENTRACE_PROFILE=fast $(BIN)/python -m pytest -n 2 tests/unit tests/component tests/contract $(ARGS)

test-all: $(READY) ## run all tests with all random examples and matrices: takes long
	TOKENTRACE_PROFILE=all $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(READY) ## run all tests and list the lines of shared and services that none ran; fails below 90 %; ARGS="tests/unit" for a part
	rm -rf .coverage
	mkdir .coverage
	$(BIN)/coverage run -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(READY) ## build docs/ as a site into site/, with a reference of the HTTP routes and of the Python client
	$(BIN)/mkdocs build --quiet $(ARGS)

page: $(READY) ## test and build the page of services/api/page; needs Node 20.19 or later
	$(BIN)/python tools/page.py build

screenshots: $(READY) ## write the pictures of the page in docs/images anew; needs Chromium
	$(BIN)/python tools/screenshots.py $(ARGS)

check: $(READY) ## lint, types, architecture, and whether the committed page is what its sources make
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/page.py check

fmt: $(READY) ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: $(READY) ## measure the budgets; exits 1 where one is missed; ARGS="--list", "--only core", "--json FILE", "--against FILE"
	$(BIN)/python -m bench $(ARGS)

up: ## build and start the containers: docker compose
	docker compose up -d --build --wait

down: ## stop the containers; their data stays
	docker compose --profile monitoring down
