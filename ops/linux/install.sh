#!/bin/sh
# Installs the broker from this checkout, or brings an installation up to it. Safe to run again.
#
#   sudo ops/linux/install.sh                  program, user, units, settings that are not there yet
#   ops/linux/install.sh --root DIR            into DIR, for packages and images; starts nothing
#   ops/linux/install.sh --files-only          all but the program, where it is installed by other means
#
# It starts nothing: docs/operations-linux.md says what comes next.
set -eu
# Whatever root's own says: the services' user has to read the program.
umask 022

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

root=''
program=yes
while [ $# -gt 0 ]; do
    case $1 in
        --root) [ $# -ge 2 ] || die '--root takes a directory'; root=${2%/}; shift 2 ;;
        --files-only) program=no; shift ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1 (see --help)" ;;
    esac
done
here=$(CDPATH='' cd "$(dirname "$0")" && pwd -P)
checkout=$(dirname "$(dirname "$here")")
if [ -z "$root" ]; then
    [ "$(id -u)" = 0 ] || die 'run this as root, or with --root DIR'
    for tool in systemd-sysusers systemd-tmpfiles setpriv; do
        command -v "$tool" >/dev/null || die "needs $tool (Debian, Ubuntu: apt-get install -y systemd util-linux)"
    done
fi

find_python() {
    for python in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            return
        fi
    done
    die 'needs Python 3.11 or newer with venv (Debian, Ubuntu: apt-get install -y python3-venv)'
}

install_program() {
    find_python
    target=$root/opt/broker/venv
    mkdir -p "$root/opt/broker"
    chmod 0755 "$root/opt/broker"
    # Beside the old one, and put in its place when it is whole: running processes keep their files.
    fresh=$root/opt/broker/venv.new
    rm -rf "$fresh"
    say "making $target with $("$python" --version 2>&1)"
    "$python" -m venv "$fresh"
    pip="$fresh/bin/python -m pip install --quiet --disable-pip-version-check --no-input"
    # shellcheck disable=SC2086 # a command and its options
    $pip --require-hashes -r "$checkout/requirements.lock"
    # shellcheck disable=SC2086
    $pip --no-deps --no-build-isolation "$checkout"
    # Programs name their interpreter by its path, which is the final one.
    for file in "$fresh"/bin/*; do
        if [ -f "$file" ] && [ ! -L "$file" ]; then
            sed -i "1s|^#!$fresh/|#!${target#"$root"}/|" "$file"
        fi
    done
    if [ -e "$target" ]; then
        rm -rf "$target.old"
        mv "$target" "$target.old"
    fi
    mv "$fresh" "$target"
    rm -rf "$target.old"
}

# install -D MODE SOURCE TARGET
put() { install -D -m "$1" "$2" "$root$3"; }
put_once() {
    if [ -e "$root$3" ]; then
        say "kept $3"
    else
        put "$@"
    fi
}

install_files() {
    put 0755 "$here/broker" /usr/local/bin/broker
    put 0644 "$here/sysusers.conf" /usr/lib/sysusers.d/broker.conf
    put 0644 "$here/tmpfiles.conf" /usr/lib/tmpfiles.d/broker.conf
    for unit in "$here"/systemd/*.service "$here"/systemd/*.target "$here"/systemd/*.timer \
        "$here"/systemd/*.d/*.conf; do
        put 0644 "$unit" "/usr/lib/systemd/system/${unit#"$here/systemd/"}"
    done
    put_once 0640 "$here/etc/broker.toml" /etc/broker/broker.toml
    put_once 0640 "$here/etc/broker.env" /etc/broker/broker.env
}

if [ "$program" = yes ]; then
    install_program
fi
install_files
if [ -z "$root" ]; then
    systemd-sysusers broker.conf
    systemd-tmpfiles --create broker.conf
    # In a chroot or an image systemd is installed but does not run.
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
fi
say "installed. Next: /etc/broker/broker.env, then: broker prepare && broker preflight"
