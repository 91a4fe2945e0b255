#!/usr/bin/env bash
# Tries the libraries at both ends of what is allowed (make test-versions; root): those that Debian 12 has, as the Debian
# package uses them, and the newest of PyPI. The tools of the tests are those of the lock file in both. Runs the tests
# that need no kernel, and a few with one; arguments go to pytest instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'test-versions: %s\n' "$*" >&2; }
python=/usr/bin/python3
own=$(sed -n 's/^    "\([a-zA-Z0-9_.]*\)>=.*/\1/p' <(sed -n '/^dependencies = \[/,/^\]/p' pyproject.toml))
tests=(tests/unit tests/kernel/test_netlink.py tests/kernel/test_maps.py tests/kernel/test_xdp.py
    tests/e2e/test_traffic.py tests/e2e/test_daemon.py tests/e2e/test_metrics.py tests/e2e/test_readme_tasks.py)
[ $# -eq 0 ] || tests=("$@")

# What the tests need beside the package, with the versions of the lock file and without what that would bring along.
tools() {
    .venv/bin/python -m pip list --format freeze |
        grep -E '^(pytest|pytest-timeout|pytest-xdist|pluggy|iniconfig|packaging|execnet|hypothesis|sortedcontainers|scapy|trustme|cryptography|cffi|pycparser|idna|hatchling|editables|pathspec|trove-classifiers)=='
}

environment() { # NAME PIP-ARGUMENT...: with the system's packages, those of pip, and this checkout
    local place=build/versions/$1
    rm -rf "$place"
    "$python" -m venv --system-site-packages "$place"
    "$place/bin/pip" --quiet install "${@:2}"
    "$place/bin/pip" --quiet install --no-deps --no-build-isolation --editable .
}

show() { # NAME
    say "$1: $("build/versions/$1/bin/python" - $own <<'PY'
import importlib.metadata as m, sys
print(", ".join(f"{name} {m.version(name)}" for name in sys.argv[1:]))
PY
    )"
}

try() { # NAME PYTEST-ARGUMENT...
    show "$1"
    PATH="$PWD/build/versions/$1/bin:$PATH" "build/versions/$1/bin/python" -m pytest -q "${tests[@]}" "${@:2}"
}

missing=()
for each in $(sed -n '/^Depends:/,/^Recommends:/s/^ \(python3-[a-z0-9.-]*\).*/\1/p' packaging/debian/control); do
    dpkg --status "$each" 2>/dev/null | grep -q '^Status: .* installed' || missing+=("$each")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { say "install first: ${missing[*]}" && exit 1; }
    say "installing Debian's ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi
failed=0
environment debian --no-deps -r <(tools)
try debian --ignore tests/unit/api/test_openapi.py || failed=1 # its tool needs a newer rich
environment newest --upgrade --upgrade-strategy eager '.[dev]'
try newest || failed=1
exit "$failed"
