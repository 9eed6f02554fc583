# make train   train, register and fetch the model (ARGS="--epochs 2" passes flags on)
# make search  the best of 20 trainings in the tutorial's space, poor ones stopped early (ARGS as of train)
# make stack   Prefect, MLflow, an S3 store, PostgreSQL and a worker, with the schedule; Ctrl-C ends them
# make serve   the champion as a web service, and the next one; Ctrl-C ends it (ARGS="--model-name fashion" and so on)
# make quick   the tests that start no server and import no TensorFlow: a minute, after each change
# make test    every test, against real parts on this machine
# make check   format, lint, types and import rules
# make fix     format, and mend what the linter can
# make torture kill a training at 50 points, stop, hang and break what it needs, and compare with an undisturbed run
# make bench   the figures of docs/figures.md, measured here
# make clean   remove what runs made, never the environment
# make lock    renew requirements.lock and requirements-cuda.lock

SHELL := /bin/sh
ARGS ?=

# Where the driver shows an NVIDIA GPU, its libraries are wanted too: 3 GB.
LOCKS := requirements.lock $(if $(shell nvidia-smi -L 2>/dev/null | grep '^GPU '),requirements-cuda.lock)
# The stamp is written last and carries the locks' checksum: an environment is whole and of these
# very locks, or it is built again. A checksum, for a checkout changes the time of a file, not its text.
STAMP := .venv/.complete-$(shell cat $(LOCKS) | cksum | tr -c '0-9\n' '-')
EXTRAS := --extra dev --extra stack --extra ray
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: train search stack serve quick test check fix torture bench clean lock

train: $(STAMP)
	@$(BIN)/python -m flows.train_mnist $(ARGS)

search: $(STAMP)
	@$(BIN)/python -m flows.search $(ARGS)

stack: $(STAMP)
	@exec $(BIN)/python -m infra.stack

serve: $(STAMP)
	@exec $(BIN)/python -m flows.serve $(ARGS)

quick: $(STAMP)
	@$(PYTEST) -m "not slow" $(ARGS)

test: $(STAMP)
	@$(PYTEST) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_rules.py

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

torture: $(STAMP)
	@$(BIN)/python -m tests.torture $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf .pipeline model .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -print | xargs rm -rf

lock: $(STAMP)
	$(COMPILE) --upgrade $(EXTRAS) pyproject.toml -o requirements.lock
# What CUDA adds, and that alone: the other lock pins the rest.
	cp requirements.lock .venv/cuda.txt
	$(COMPILE) $(EXTRAS) --extra cuda pyproject.toml -o .venv/cuda.txt
	awk '/^[a-z]/ {keep = /^nvidia-/} keep' .venv/cuda.txt > requirements-cuda.lock

$(STAMP):
	@sh build_environment.sh "$(STAMP)" $(LOCKS)
