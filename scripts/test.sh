#!/bin/sh
# Sets up what is missing and runs the tests; arguments go to pytest.
#
#   sh scripts/test.sh [PYTEST ARGUMENTS]
set -eu
. "$(dirname "$0")/setup.sh"

setup dev
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
