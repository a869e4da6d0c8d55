# Each target sets up what it needs in .venv; the second time that costs nothing.
.PHONY: help demo serve test format doctor clean

help:
	@echo "make demo     serve a small model, ask it some questions, show what the prefix cache saved"
	@echo "make serve    serve it, and keep serving  (ARGS='--port 9000 ...' for sapwood serve)"
	@echo "make test     formatter, linter, types, import contracts and all tests"
	@echo "make format   mend what the formatter and the linter can mend"
	@echo "make doctor   what was found on this machine, what is missing, and how to mend it"
	@echo "make clean    remove .venv and caches; models stay in the model cache"

demo:
	@scripts/install
	@.venv/bin/python scripts/demo.py

serve:
	@scripts/install
	@.venv/bin/sapwood serve $(ARGS)

test:
	@scripts/install test
	@scripts/lint
	@scripts/verify

format:
	@scripts/install test
	@scripts/lint --fix

doctor:
	@scripts/install
	@.venv/bin/sapwood doctor

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
