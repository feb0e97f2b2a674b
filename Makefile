# Requirements: Python 3.11 or later, make and git. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out

.PHONY: install demo test test-slow test-oldest parity lint check coverage torture mutants problems fuzz crashes storage load docs references notebooks wheel bench bench-train clean

install: .venv/installed
demo: .venv/installed
	$(BIN)/rpo demo --out $(OUT)/demo
	@echo "open the report in a browser: $(abspath $(OUT))/demo/report.html"
	@echo "make the command rpo known to this shell: . $(BIN)/activate"

test: .venv/installed-test
	$(BIN)/python -m pytest

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

# Default tests, compiled with all optimizations, as users compile (tests/conftest.py).
test-oldest: .venv-oldest/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-oldest/bin/python -m pytest

parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest -m parity tests/parity

# All long reliability checks; they take hours and print their counts (docs/reliability.md).
torture: problems mutants fuzz crashes storage load

# Put one fault at a time into the formulas and masks; the tests must fail each time.
mutants: .venv/installed-test
	$(BIN)/python tests/mutation/run.py --jobs 2

problems: .venv/installed-test
	$(BIN)/python tests/torture/problems.py --problems 1000000 --spot-checks 1000 --out $(OUT)/problems

fuzz: .venv/installed-test
	$(BIN)/python tests/torture/fuzz.py --inputs 1000000 --out $(OUT)/fuzz

crashes: .venv/installed-test
	$(BIN)/python tests/torture/crashes.py

storage: .venv/installed-test
	$(BIN)/python tests/torture/storage.py

load: .venv/installed-test
	$(BIN)/python tests/torture/load.py --fits 10000000 --pairs 1000000 --minutes 30

# Line coverage of the default tests, for each package.
coverage: .venv/installed-test
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/python -m coverage report --include='rpo_theory/*' --fail-under=95
	$(BIN)/python -m coverage report --include='bandits/*' --fail-under=95
	$(BIN)/python -m coverage report --include='llm/*' --fail-under=90

# Everything but the tests that a change must pass.
lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python tests/language/check.py
	$(BIN)/pyright
	$(BIN)/python tests/typing/check.py
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir $(OUT)/site

check: lint test

docs: .venv/installed-test
	$(BIN)/mkdocs build --strict --site-dir $(OUT)/site

# Write the references of commands and configuration keys again, from the code.
references: .venv/installed
	$(BIN)/python docs/hooks.py

notebooks: .venv/installed-test
	$(BIN)/python notebooks/make.py

# Build the wheel, install it into an empty environment, and run two commands far from the checkout.
wheel: .venv/installed-test
	rm -rf dist $(OUT)/wheel
	$(BIN)/python -m hatchling build -t sdist -t wheel
	$(PYTHON) -m venv --upgrade-deps $(OUT)/wheel/venv
	$(OUT)/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(OUT)/wheel && venv/bin/rpo verify --instances 50 --out verify && venv/bin/rpo demo --out demo

bench: .venv/installed-test
	$(BIN)/python benchmarks/exact_solver.py --out $(OUT)/bench
	$(BIN)/python benchmarks/studies.py --out $(OUT)/bench
	$(BIN)/python benchmarks/row_memory.py --out $(OUT)/bench
	$(if $(RPO_SMOLLM2),$(MAKE) bench-train,@echo "against TRL: make bench RPO_SMOLLM2=FOLDER, of SmolLM2-135M-Instruct")

bench-train: .venv/installed .venv-parity/installed
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench --remat dots
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench --pairs 8 --steps 5 --max-length 512 --max-prompt 512
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python benchmarks/profile_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench

clean:
	rm -rf .venv .venv-oldest .venv-parity $(OUT) dist .coverage

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv --upgrade-deps .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,notebooks,docs]'
	touch $@ .venv/installed

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --upgrade-deps .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test,notebooks,docs]'
	touch $@

# torch, transformers and trl, for the parity tests. pip's own configuration selects torch's build.
.venv-parity/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --upgrade-deps .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,parity]'
	touch $@
