# Set-up steps that ci/demo and ci/test share: each says what it does, and does nothing the second time.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*" >&2; }

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || die "this needs root: run it as root, or install sudo. The command: $*"
        sudo "$@"
    fi
}

# Install the Debian packages named, those that are missing.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing Debian packages: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# To build the native engine.
native_packages() { echo gcc libc6-dev python3-dev liburing-dev; }

image_packages() { grep -v '^#' images/packages.txt; }

# Make .venv/ with pyvmm in it; *$1* names extras, such as "[test]".
make_venv() {
    local python=/usr/bin/python3 stamp
    [ -x "$python" ] || python=python3
    stamp=$(cat pyproject.toml setup.py vmm/__init__.py vmm/native/{build.py,*.[ch]} - <<<"$1" | sha256sum | cut -d' ' -f1)
    if [ "$(cat .venv/pyvmm-stamp 2>/dev/null)" != "$stamp" ]; then
        say "making .venv/ with pyvmm and its Python packages"
        [ -x .venv/bin/pip ] || "$python" -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check --editable ".$1"
        echo "$stamp" >.venv/pyvmm-stamp
    fi
    # Start-up time counts: compile once, also where PYTHONDONTWRITEBYTECODE is set.
    .venv/bin/python -m compileall -q vmm
}

# Build images/$1 (cached) and print its directory.
build_image() {
    say "guest image $1 (built once; the first time takes some minutes)"
    "images/$1/build"
}
