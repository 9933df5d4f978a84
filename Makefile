.PHONY: install test slow reliability lint format

install: ## everything needed to develop
	pip install -e '.[dev]'

test: ## the default tests, a few minutes
	pytest

slow: ## the long campaigns too
	pytest -m 'slow and not alone'
	pytest -m 'slow and alone' -n 0

reliability: ## faults on purpose, in their long form: it goes on where it was interrupted
	PYTHONPATH=scripts python -m reliability

lint: ## style and types, as CI checks them
	ruff check . && ruff format --check . && mypy

format: ## mend what can be mended
	ruff check --fix . && ruff format .
