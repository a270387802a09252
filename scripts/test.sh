#!/bin/sh
# Sets up what is missing and runs the tests, several files at a time; arguments go to pytest.
#
#   sh scripts/test.sh [PYTEST ARGUMENTS]
set -eu
. "$(dirname "$0")/setup.sh"

setup dev
cd "$root"
# one more than cores, as tests wait for browsers, servers and Ray; a process takes up to 3 GB
processes=$(($(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) + 1))
[ "$processes" -le 4 ] || processes=4
export OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 # the processes share the cores
# glibc keeps what is freed: a quarter of the time of tests with large pictures went into getting the same pages anew
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 MALLOC_TOP_PAD_=67108864
unset PYTHONDONTWRITEBYTECODE # hundreds of processes import the same files: compiled once, not each time
exec "$venv/bin/python" -m pytest -n "$processes" --dist loadfile "$@"
