#!/usr/bin/env bash
# README's two commands, verbatim, on fresh machines: Debian 12 (Python 3.11), 13 (3.13) and unstable (3.14).
#
# usage: tests/fresh.sh [--oldest] FOLDER [SUITE...]
#
# As root, with debootstrap. Each suite gets a minimal Debian of its own in FOLDER, with nothing but git, python3-venv
# and sudo; there an ordinary user runs both commands in a clone of HEAD, which has no ../shared. Then the first one
# again, with Debian's own numpy. --oldest takes the oldest Python packages that pyproject.toml allows. A suite takes
# some 20 minutes of two processors and 4 GB; FOLDER is kept, and begins anew if it is removed.
set -euo pipefail
cd "$(dirname "$0")/.."

oldest=''
[ "${1:-}" != --oldest ] || { oldest=--oldest; shift; }
folder=${1:?usage: tests/fresh.sh [--oldest] FOLDER [SUITE...]}
shift
[ $# != 0 ] || set -- bookworm trixie sid
[ "$(id -u)" = 0 ] || { echo "root makes the machines" >&2; exit 1; }

# Everything in README that begins as its two commands do: there must be one of each.
mapfile -t commands < <(sed -n '/^```sh$/,/^```$/p' README.md | grep -E '^(python3 -m venv|tests/run\.sh)')
[ ${#commands[@]} = 2 ] || { echo "README has not two commands: ${commands[*]}" >&2; exit 1; }

make_machine() { # its folder, its suite
    debootstrap --variant=minbase --include=ca-certificates,git,python3-venv,sudo "$2" "$1" >"$1.log"
    # What this machine needs to reach the archives, that one needs, too.
    cp /etc/resolv.conf "$1/etc/resolv.conf"
    cp -r /usr/local/share/ca-certificates/. "$1/usr/local/share/ca-certificates/"
    chroot "$1" update-ca-certificates >>"$1.log" 2>&1
    chroot "$1" useradd -m -s /bin/bash user
    echo 'user ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/user"
    touch "$1/made"
}

as_user() { # the machine's folder, a command
    # Its own file systems end with the command, and so does every process.
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --pid --fork bash -euc '
        mount -t proc proc "$1/proc"
        mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$1/dev/pts"
        chroot "$1" su - user -c "cd vmcore2core && export PIP_CERT=/etc/ssl/certs/ca-certificates.crt && $2"
    ' - "$1" "$2" </dev/null
}

timed() { # what it is, the machine's folder, a command
    local begin=$SECONDS
    echo "$ $3"
    as_user "$2" "$3" 2>&1 | tail -n 25 || { echo "$1: has failed after $((SECONDS - begin)) s"; failed=1; return 0; }
    echo "$1: passed in $((SECONDS - begin)) s"
}

offline='.venv/bin/pip wheel -q -w wheels . && sudo unshare --net su user -c "
    python3 -m venv .venv-offline && .venv-offline/bin/pip install -q --no-index --find-links wheels vmcore2core
    .venv-offline/bin/vmcore2core fixtures/debian-6.1-amd64/vmcore --pid 86 -o offline.core" && cmp app.core offline.core'
own_numpy='sudo apt-get -q install -y --no-install-recommends python3-numpy >/dev/null
    python3 -m venv --system-site-packages .venv-debian && .venv-debian/bin/pip install -q . &&
    .venv-debian/bin/vmcore2core fixtures/debian-6.1-amd64/vmcore --pid 86 -o debian.core && cmp app.core debian.core &&
    .venv-debian/bin/python -c "import numpy; print(numpy.__version__, numpy.__file__)"'

failed=''
for suite; do
    machine=$(realpath -m "$folder/$suite")
    mkdir -p "$machine"
    [ -e "$machine/made" ] || make_machine "$machine" "$suite"
    rm -rf "$machine/home/user/vmcore2core"
    git clone -q --no-hardlinks . "$machine/home/user/vmcore2core"
    chroot "$machine" chown -R user: /home/user
    echo "== $suite: Debian $(cat "$machine/etc/debian_version"), $(chroot "$machine" python3 --version)${oldest:+, oldest packages}"
    timed "$suite, first command" "$machine" "${commands[0]}"
    timed "$suite, second command" "$machine" "${commands[1]}${oldest:+ --oldest}"
    # What README says of a machine without a network, and of the distribution's numpy: the core is the same.
    timed "$suite, offline" "$machine" "$offline"
    timed "$suite, with Debian's numpy" "$machine" "$own_numpy"
done
[ -z "$failed" ]
