.PHONY: install test slow reliability mutation audit lint format

install: ## everything needed to develop
	pip install -e '.[dev]'

test: ## the default tests, a few minutes
	pytest

slow: ## the long campaigns too
	pytest -m 'slow and not alone'
	pytest -m 'slow and alone' -n 0

reliability: ## faults on purpose, in their long form: it goes on where it was interrupted
	PYTHONPATH=scripts python -m reliability

mutation: ## small errors on purpose, of which each must make a test fail: it goes on where it was interrupted
	python scripts/mutation.py

audit: ## known vulnerabilities of the installed packages; says so where advisories cannot be reached
	python scripts/audit.py

lint: ## style and types, as CI checks them
	ruff check . && ruff format --check . && mypy

format: ## mend what can be mended
	ruff check --fix . && ruff format .
