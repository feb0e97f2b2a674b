# Needs Python 3.11 or later, make and git; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out

.PHONY: install demo test test-slow test-parity problems fuzz check docs notebooks bench bench-train crashes storage clean

install: .venv/installed
demo: .venv/installed
	$(BIN)/rpo demo --out $(OUT)/demo

test: .venv/installed-test
	$(BIN)/python -m pytest

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

test-parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest -m parity tests/parity

problems: .venv/installed-test
	$(BIN)/python tests/torture/problems.py --problems 1000000 --spot-checks 1000 --out $(OUT)/problems

fuzz: .venv/installed-test
	$(BIN)/python tests/torture/fuzz.py --inputs 1000000 --out $(OUT)/fuzz

crashes: .venv/installed-test
	$(BIN)/python tests/torture/crashes.py

storage: .venv/installed-test
	$(BIN)/python tests/torture/storage.py

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir $(OUT)/site
	$(BIN)/python -m pytest

docs: .venv/installed-test
	$(BIN)/mkdocs build --strict --site-dir $(OUT)/site

notebooks: .venv/installed-test
	$(BIN)/python notebooks/make.py

bench: .venv/installed-test
	$(BIN)/python benchmarks/exact_solver.py --out $(OUT)/bench
	$(BIN)/python benchmarks/studies.py --out $(OUT)/bench
	$(BIN)/python benchmarks/row_memory.py --out $(OUT)/bench
	$(if $(RPO_SMOLLM2),$(MAKE) bench-train,@echo "against TRL: make bench RPO_SMOLLM2=FOLDER, of SmolLM2-135M-Instruct")

bench-train: .venv/installed .venv-parity/installed
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench --remat products
	$(BIN)/python benchmarks/trl_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench --pairs 8 --steps 5 --max-length 512 --max-prompt 512
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python benchmarks/profile_step.py --model $(RPO_SMOLLM2) --out $(OUT)/bench

clean:
	rm -rf .venv .venv-parity $(OUT)

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,notebooks,docs]'
	touch $@ .venv/installed

# torch, transformers and trl: only what the parity tests compare with.
.venv-parity/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,parity]'
	touch $@
