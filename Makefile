# make train   train, register and fetch the model (ARGS="--epochs 2" passes flags on)
# make stack   Prefect, MLflow, an S3 store, PostgreSQL and a worker, with the schedule; Ctrl-C ends them
# make test    every test, against real parts on this machine
# make check   format, lint, types and import rules
# make torture kill it at 50 points and break every service, and compare with an undisturbed run
# make bench   the figures of the README, measured here
# make clean   remove what runs made, never the environment
# make lock    renew requirements.lock

SHELL := /bin/sh
ARGS ?=

# The stamp is written last and carries the lock's checksum: an environment is whole and of this
# very lock, or it is built again. A checksum, for a checkout changes the time of a file, not its text.
LOCK := $(shell cksum < requirements.lock | tr -c '0-9\n' '-')
STAMP := .venv/.complete-$(LOCK)
BIN := .venv/bin

.PHONY: train stack test check torture bench clean lock

train: $(STAMP)
	@$(BIN)/python -m flows.train_mnist $(ARGS)

stack: $(STAMP)
	@exec $(BIN)/python -m infra.stack

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_rules.py

torture: $(STAMP)
	@$(BIN)/python -m tests.torture $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf .pipeline model .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -print | xargs rm -rf

lock: $(STAMP)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-header --extra dev --extra stack --extra ray pyproject.toml -o requirements.lock

$(STAMP):
	@sh build_environment.sh "$(STAMP)"
