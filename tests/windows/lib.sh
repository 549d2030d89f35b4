# shellcheck shell=bash
# Shared by run and compile-check: where things are, and what is missing. Sourced, not run.

TOOL_MISSING=77
# shellcheck disable=SC2034 # the scripts that source this use it
WORK=${HVSOCK_BENCH_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hvsock/windows}

missing() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit "$TOOL_MISSING"
}

need() { # need TOOL PACKAGE...
    local tool=$1
    shift
    command -v "$tool" >/dev/null || missing "$tool is missing: apt-get install $*"
}

# The path of a CPython of one minor version: HVSOCK_PYTHON_3_13 if set, else python3.13 if it runs
# (pyenv puts a file of that name on the path that may only print an error), else pyenv's own.
find_python() { # find_python 3.13
    local version=$1 setting="HVSOCK_PYTHON_${1//./_}" candidate
    local candidates=("${!setting:-}" "python$version")
    if command -v pyenv >/dev/null; then
        for candidate in "$(pyenv root)/versions/$version".*/bin/python; do
            candidates+=("$candidate")
        done
    fi
    for candidate in "${candidates[@]}"; do
        if [[ -n $candidate ]] && "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null; then
            return
        fi
    done
    missing "Python $version is missing: install it, or set $setting to its path"
}

# One process at a time uses a work directory. Sets `lock`, the descriptor that holds it.
take_directory() { # take_directory DIRECTORY
    mkdir -p "$1"
    exec {lock}>"$1/lock"
    flock "$lock"
}
