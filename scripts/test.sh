#!/bin/sh
# Sets up what is missing and runs the tests, a file at a time on each core; arguments go to pytest.
#
#   sh scripts/test.sh [PYTEST ARGUMENTS]
set -eu
. "$(dirname "$0")/setup.sh"

setup dev
cd "$root"
processes=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
[ "$processes" -le 4 ] || processes=4 # a process takes up to 3 GB
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # hundreds of processes import the same files: compiled once, not each time
exec "$venv/bin/python" -m pytest -n "$processes" --dist loadfile "$@"
