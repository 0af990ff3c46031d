# From a fresh clone to a result: each target sets up .venv by itself, from nothing but Python >= 3.11 with pip.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check clean

UV_VERSION := 0.13.9
STAMP := .venv/.synced
BIN := .venv/bin
TEST_PROCESSES ?= 2
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv
export PYTHONSAFEPATH := 1
# trust what the machine trusts, a mirror's own certificate included
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt),)
export UV_SYSTEM_CERTS := 1
endif

# The first Python that fits `requires-python`; name another with `make PYTHON=/path/to/python3.12 ...`
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything that uv.lock names into .venv

quickstart: $(STAMP) ## run the quickstart recipe: real pairs in, a trained and evaluated CLIP and its report out
	@$(BIN)/clipworks run quickstart

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## style, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## remove what set-up and tools made; runs/ stays
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist

$(STAMP): pyproject.toml uv.lock
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11, < 3.14 found (python3 is $$(python3 --version 2>&1));" \
		"install one or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@uv=$$(command -v uv) && $$uv --version >/dev/null 2>&1 || uv=.tools/bin/uv; \
	if [ $$uv = .tools/bin/uv ] && [ ! -x $$uv ]; then \
		echo "setup: uv $(UV_VERSION) -> .tools"; \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv==$(UV_VERSION) || exit 2; \
	fi; \
	echo "setup: packages of uv.lock -> .venv (the first time this takes a minute or two)"; \
	$$uv sync --quiet --frozen --all-extras --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@
