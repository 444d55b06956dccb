#!/usr/bin/env bash
# README's second command: installs what the tests need, checks the tree, and runs the tests. CI runs it, too.
#
# The Debian packages of tests/packages.txt that are not there are named, then installed: with sudo where the user is
# not root. Where there is no apt-get, or no right to run it, they are only named; tests that need them are skipped and
# counted at the end. With CI=true a package that cannot be installed is a failure, unless the archive has none.
# Python packages go to .venv: the newest, or with --oldest the oldest that pyproject.toml allows, whose types differ.
#
# usage: tests/run.sh [--oldest]
set -euo pipefail
cd "$(dirname "$0")/.."

is_there() { # a package, and its programs, each with others that serve as well behind |
    local package=$1 word program
    shift
    if [ "$package" = python3-venv ]; then
        python3 -c 'import ensurepip, venv' 2>/dev/null
        return
    fi
    if [ $# = 0 ]; then # headers: dpkg knows, and nothing else is asked
        ! command -v dpkg-query >/dev/null || dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$'
        return
    fi
    for word; do
        for program in ${word//|/ }; do
            ! command -v "$program" >/dev/null || continue 2
        done
        return 1
    done
}

list_missing() { # their names, one a line, with the others that serve as well
    local package programs
    while read -r package programs; do
        # shellcheck disable=SC2086 # programs are words
        is_there "$package" $programs || echo "$package"
    done < <(grep -v '^#' tests/packages.txt)
}

in_archive() {
    LC_ALL=C apt-cache policy "$1" | grep -q 'Candidate: [^(]'
}

choose() { # of each line of packages the first one that the archive has
    local line package
    while read -r line; do
        for package in ${line//|/ }; do
            ! in_archive "$package" || { echo "$package"; continue 2; }
        done
    done
}

install() { # what is missing, as far as the archive has it
    local root='' wanted
    command -v apt-get >/dev/null || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "Neither root nor sudo: nothing is installed." >&2; return 1; }
        root=sudo
    fi
    $root apt-get -q update >/dev/null || return
    wanted=$(choose <<<"$missing" | xargs)
    [ -n "$wanted" ] || return 0
    echo "Installing Debian packages: $wanted"
    # shellcheck disable=SC2086 # a name a word
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $wanted >/dev/null
}

named() {
    paste -sd, <<<"${missing//|/ or }" | sed 's/,/, /g'
}

missing=$(list_missing)
if [ -n "$missing" ]; then
    echo "Not installed: $(named)"
    install || [ "${CI:-}" != true ]
    missing=$(list_missing)
    [ -z "$missing" ] || echo "Not to be had here; tests that need them are skipped: $(named)"
fi
# pytest tells by this what may be skipped in CI, too.
PACKAGES_NOT_TO_BE_HAD=$(sed 's/|.*//' <<<"$missing" | xargs)
export PACKAGES_NOT_TO_BE_HAD

python3 -m venv .venv
oldest=''
[ "${1:-}" != --oldest ] || oldest=1
.venv/bin/pip install -q ${oldest:+-c tests/constraints-oldest.txt} -e '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
[ -n "$oldest" ] || .venv/bin/mypy
.venv/bin/coverage erase
.venv/bin/coverage run -m pytest -q -n auto
if [ -z "$missing" ]; then
    .venv/bin/python -m tests.measured
else
    echo "Coverage is not held against tests/COVERAGE.md, as tests were skipped."
fi
