# Each target does everything on a machine that has python3 (3.11) and a way to its package registry.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-out
# Processes that share the tests, file by file, in the order of their folders: long ones first.
JOBS ?= 2

.PHONY: install demo test test-fast lint format bench constraints clean

install: .venv/.installed

# Exactly the versions of constraints.txt; a second call installs nothing.
.venv/.installed: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==0.13.9
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps -r constraints.txt
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	# Ray starts many processes; where Python may not write bytecode each would compile its imports anew.
	$(BIN)/python -m compileall -q -j 2 $$($(BIN)/python -c "import ray, aiohttp, google; print(ray.__path__[0], aiohttp.__path__[0], *google.__path__)") || true
	touch $@

demo: install
	$(BIN)/mgeldm demo --out $(OUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: install
	$(BIN)/python -m pytest -m "not slow and not ray"

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The loaders that the stream is timed beside want other versions of what is installed, but work without them.
LOADERS := mosaicml-streaming==0.13.0 litdata==0.2.76 brotli==1.2.1 catalogue==2.0.10 cramjam==2.14.0 python-snappy==0.7.3 zstd==1.5.7.2
bench: install
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --target build/loaders $(LOADERS)
	PYTHONPATH=build/loaders $(BIN)/python -m benchmarks --write

# Resolve the pins anew from pyproject.toml.
constraints: install
	$(BIN)/uv pip compile pyproject.toml --extra dev --override overrides.txt --no-header --no-annotate --quiet -o constraints.txt

clean:
	rm -rf .venv build *.egg-info demo-out
