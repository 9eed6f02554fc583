#!/bin/sh
# Builds .venv from locks, every package checked by its hash. Called by make with the name of the
# stamp, which is written last (an interrupted build is never taken for a finished one), and the locks.
set -eu

stamp=$1
shift

for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "${python:-}" ]; then
    echo "No Python 3.11, 3.12 or 3.13 with venv was found (looked for: ${PYTHON:-python3 python3.13 python3.12 python3.11})." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi

echo "Building .venv from $* with $("$python" --version); this happens once." >&2
case $* in
    *cuda*) echo "For a GPU: $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)" >&2 ;;
esac
rm -rf .venv
"$python" -m venv .venv

# uv installs in seconds what takes pip minutes. It comes from the same lock, by its hash.
if ! command -v uv >/dev/null 2>&1; then
    awk '/^uv==/ {keep=1; print; next} /^ +--hash/ {if (keep) print; next} {keep=0}' \
        requirements.lock >.venv/uv.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
    PATH="$PWD/.venv/bin:$PATH"
fi
for lock in "$@"; do
    set -- "$@" -r "$lock"
    shift
done
# Compiled here, once and on every core: else the first run does it one module after the other, and every
# run does where PYTHONDONTWRITEBYTECODE is set (an empty Prefect flow then takes 25 s instead of 17 s).
VIRTUAL_ENV="$PWD/.venv" uv pip install --quiet --compile-bytecode --require-hashes "$@"
VIRTUAL_ENV="$PWD/.venv" uv pip install --quiet --no-deps --no-build-isolation --editable .

touch "$stamp"
echo "The environment is ready." >&2
