#!/usr/bin/env bash
# Makes this checkout ready to run and to test: Debian's packages, then .venv from the lock file (make setup).
#
# Run it as often as you like: when nothing has changed since the last time it only looks. As root it installs
# what is missing; without root it goes on when the system has everything, and says what to install otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=/usr/bin/python3 # bcc's binding comes from Debian and belongs to Debian's interpreter
lock=packaging/requirements.lock
venv_stamp=.venv/.setup-venv       # what the packages in .venv were installed from
package_stamp=.venv/.setup-package # what this package's own entry in .venv was made from

# What is needed: the Debian package that brings it, and how to see that it is there.
needs=(
    "python3         | test -x $python"
    "python3-venv    | $python -c 'import ensurepip, venv'"
    "python3-bpfcc   | $python -c 'import importlib.util as u; raise SystemExit(u.find_spec(\"bcc\") is None)'"
    "linux-libc-dev  | test -e /usr/include/linux/bpf.h"
    "iproute2        | command -v ip && command -v tc"
    "ethtool         | command -v ethtool"
    "curl            | command -v curl"
    "ca-certificates | test -s /etc/ssl/certs/ca-certificates.crt"
)
# What single tests need, which say so where it is missing: nobody is kept from his work by it.
[ "$(id -u)" != 0 ] || needs+=(
    "nftables        | command -v nft"
    "openssh-client  | command -v ssh-keygen"
    "gnupg           | command -v gpg"
)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

# Prints the packages whose thing is missing. Administrators' directories count although a user's PATH lacks them.
missing_packages() {
    local need package
    for need in "${needs[@]}"; do
        package=${need%%|*}
        PATH="$PATH:/usr/sbin:/sbin" bash -c "${need#*|}" >/dev/null 2>&1 </dev/null || printf '%s\n' "${package// /}"
    done
}

install_packages() {
    local command="apt-get install --no-install-recommends $*" output
    command -v apt-get >/dev/null ||
        fail "missing: $*. There is no apt-get here, so this is not Debian: install what corresponds to these Debian" \
            "packages, then run make setup again."
    [ "$(id -u)" = 0 ] ||
        fail "missing: $*. Installing them takes root: run '$command' as root, then make setup again."
    say "installing from Debian: $*"
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
    # The first try fails where the package lists are missing or old: only the second one counts.
    "${apt[@]}" install --yes --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return
    output=$("${apt[@]}" update </dev/null 2>&1) || say "apt-get update failed: $(head -n 3 <<<"$output")"
    output=$("${apt[@]}" install --yes --no-install-recommends "$@" </dev/null 2>&1) ||
        fail "could not install: $*. apt-get said: $(head -n 3 <<<"$output")
setup: check the network and /etc/apt, try '$command', then run make setup again."
}

make_venv() {
    say "making .venv from $lock"
    rm -f "$venv_stamp" "$package_stamp" # they come last, so that an interrupted run is made anew
    "$python" -m venv --clear --system-site-packages .venv || fail "could not make .venv: see python3's words above."
    .venv/bin/python -m pip -qq --no-input install --require-hashes --only-binary :all: -r "$lock" </dev/null ||
        fail "could not install the packages of $lock: see pip's words above. It takes PyPI or a mirror of it" \
            "(pip config set global.index-url URL)."
    printf '%s\n' "$1" >"$venv_stamp"
}

# An entry that points at this checkout, with the two programs.
install_this() {
    .venv/bin/python -m pip -qq --no-input install --no-deps --no-build-isolation --no-index --editable . </dev/null ||
        fail "could not install this package into .venv: see pip's words above."
    printf '%s\n' "$1" >"$package_stamp"
}

same() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

exec 9<"$lock"
flock 9 # two set-ups of one checkout at the same time take turns

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -gt 0 ]; then
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] || fail "installed, and still not usable: ${missing[*]}"
fi
"$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) at $python is too old: 3.11 is needed, which Debian 12 has."

venv_wanted=$({ cat "$lock" && "$python" --version && pwd; } | sha256sum)
package_wanted=$(sha256sum <pyproject.toml)
if same "$venv_stamp" "$venv_wanted" && .venv/bin/python -c 'import bcc, click, pytest' 2>/dev/null; then
    if same "$package_stamp" "$package_wanted" && [ -x .venv/bin/revproxyd ] && [ -x .venv/bin/revproxyctl ]; then
        say "everything is in place"
        exit 0
    fi
else
    make_venv "$venv_wanted"
fi
install_this "$package_wanted"
say "ready: .venv/bin/revproxyctl, .venv/bin/revproxyd"
