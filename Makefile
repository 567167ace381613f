# Two commands: `make book` and `make test`. What they need, they install: Debian packages where
# they are missing, and Python packages, exactly those of constraints.txt, into .venv.

PYTHON := $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && echo $$p && break; done)
ifeq ($(PYTHON),)
$(error The book needs Python 3.11 or 3.12: put one on the PATH as python3, python3.12 or python3.11)
endif
BIN := .venv/bin
# In CI nothing is tangled again: what was committed must be what the chapters say.
TANGLE := $(if $(CI),check,tangle)
export OMP_NUM_THREADS := 1
# In two processes, each of which takes whole files; those of the site first (tests/conftest.py).
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: book html test unit artifacts tangle check serve clean
.DEFAULT_GOAL := book

book: ## the site and the print edition
	@$(PYTHON) -m loom.bootstrap apt-book.txt
	@$(BIN)/loom make $(TANGLE) run html pdf seconds

html: ## the site alone, without TeX
	@$(PYTHON) -m loom.bootstrap
	@$(BIN)/loom make $(TANGLE) run html

test: ## check, build the book, run every test
	@$(PYTHON) -m loom.bootstrap apt-book.txt apt-test.txt
	@$(MAKE) --no-print-directory check book
	@$(PYTEST)

unit: ## the tests that need no built book
	@$(PYTHON) -m loom.bootstrap
	@$(PYTEST) --ignore tests/site

artifacts: ## the weights that chapters share
	@$(PYTHON) -m loom.bootstrap
	@$(BIN)/loom make $(TANGLE) artifacts

tangle: ## the package from the chapters
	@$(PYTHON) -m loom.bootstrap
	@$(BIN)/loom tangle

check: ## lint, types, and the package against the chapters
	@$(PYTHON) -m loom.bootstrap
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/loom check

serve: ## the site in a browser, rebuilt while one writes
	@$(PYTHON) -m loom.bootstrap
	@$(BIN)/loom serve

clean: ## everything that was built; .venv and tangled/ stay
	@rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
