# Everything runs in .venv, which these rules make. Needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-fast test-kills test-browser lint types architecture check wheel size lock clean

demo: $(VENV)/.runtime  ## set up and watch four ems talk until their budget is spent
	@$(BIN)/mesh demo

test: $(VENV)/.dev  ## every test, the live ones included
	$(BIN)/python -m pytest -q

test-fast: $(VENV)/.dev  ## without the live ones
	$(BIN)/python -m pytest -q --ignore=tests/live

test-kills: $(VENV)/.dev  ## 200 random schedules of kill -9 over three owners, and a link cut for a minute; 10 minutes
	AMPMESH_KILLS=200 AMPMESH_CUT_S=60 $(BIN)/python -m pytest -q tests/live -k "random_kills_lose_double or link_that_is_cut"

test-browser: $(VENV)/.browser  ## ems in Matrix rooms, as two web clients see them; needs npm and chromium
	$(BIN)/python -m pytest -q tests/browser

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/basedpyright --level error

architecture: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types architecture test

wheel: $(VENV)/.dev  ## build the wheel and run it alone in a new environment
	$(BIN)/python -m build --no-isolation --wheel --outdir build/dist . >/dev/null
	rm -rf build/alone && $(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip --disable-pip-version-check -q install --require-hashes -r requirements.txt
	build/alone/bin/python -m pip --disable-pip-version-check -q install --no-deps build/dist/ampmesh-*.whl
	cd build && alone/bin/mesh demo --fast

size: $(VENV)/.dev  ## what an installation of the runtime takes
	rm -rf build/size && $(PYTHON) -m venv --without-pip build/size
	$(PIP) --python build/size/bin/python install --no-compile --require-hashes -r requirements.txt
	$(BIN)/python -m build --no-isolation --wheel --outdir build/dist . >/dev/null
	$(PIP) --python build/size/bin/python install --no-compile --no-deps build/dist/ampmesh-*.whl
	@build/size/bin/python bench/size.py

lock: $(VENV)/.dev  ## pin again; needs uv
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group build -o requirements-build.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements.txt --group build --group dev -o requirements-dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements-dev.txt --group browser -o requirements-browser.txt

clean:
	rm -rf build $(VENV) tests/browser/node_modules

$(VENV)/.runtime: requirements.txt requirements-build.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ampmesh needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile --require-hashes -r requirements.txt -r requirements-build.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(PIP) install --no-compile --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.dev requirements-browser.txt tests/browser/package-lock.json
	$(PIP) install --no-compile --require-hashes -r requirements-browser.txt
	! command -v npm >/dev/null || npm --prefix tests/browser ci
	@command -v npm >/dev/null && touch $@ || echo "npm IS NOT INSTALLED: nobody looks at a room in a browser"
