# Sourced by demo.sh and test.sh: makes the environment and installs the project into it, once.
# FACEFIX_PYTHON names the interpreter, FACEFIX_VENV the folder of the environment.

root=$(cd "$(dirname "$0")/.." && pwd)
venv=${FACEFIX_VENV:-$root/.venv}

usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${FACEFIX_PYTHON:-}" ]; then
        usable "$FACEFIX_PYTHON" && echo "$FACEFIX_PYTHON" && return
        echo "facefix: FACEFIX_PYTHON=$FACEFIX_PYTHON is no Python 3.11 to 3.14" >&2
        return 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        usable "$candidate" && echo "$candidate" && return
    done
    echo "facefix: expected Python 3.11 to 3.14 on the PATH, found none; install one or set FACEFIX_PYTHON" >&2
    return 1
}

# setup EXTRAS: the environment with facefix[EXTRAS]; does nothing where that was done and pyproject.toml is no newer.
setup() {
    stamp="$venv/.facefix-$1"
    if [ -f "$stamp" ] && [ ! "$root/pyproject.toml" -nt "$stamp" ]; then
        return
    fi
    if [ ! -x "$venv/bin/pip" ]; then
        python=$(find_python)
        echo "facefix: making the environment $venv with $("$python" --version)" >&2
        "$python" -m venv "$venv" || {
            echo "facefix: this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    echo "facefix: installing facefix and what it needs (PyTorch is large: this takes some minutes)" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e "$root${1:+[$1]}"
    touch "$stamp"
}
