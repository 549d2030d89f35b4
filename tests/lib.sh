# shellcheck shell=bash
# Shared by the beds: finding Pythons, saying what is missing. Sourced, not run.

TOOL_MISSING=77
# shellcheck disable=SC2034 # the scripts that source this use it
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/hvsock

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

# What a build needs, apart from the checkout and what earlier builds left there.
copy_source() { # copy_source PROJECT TARGET
    rm -rf "$2"
    mkdir -p "$2"
    cp -r "$1"/{LICENSE,README.md,pyproject.toml,setup.py,hvsock,src} "$2"
    find "$2/hvsock" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -r {} +
}
