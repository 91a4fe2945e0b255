#!/usr/bin/env bash
# Builds dist/revproxy_VERSION_all.deb from what git has of this checkout (make deb). As root it installs what the build
# needs; without root it says what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'deb: %s\n' "$*" >&2; }

tree=build/deb/revproxy
rm -rf build/deb dist/revproxy_*.deb
mkdir -p "$tree" dist
git ls-files --cached --others --exclude-standard -z | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar --null --files-from=- -cf - | tar -xf - -C "$tree"
cp -r packaging/debian "$tree/debian"

# Package and programs tell which build they are.
release=$(sed -n '1s/^[^(]*(\([^)]*\)).*/\1/p' packaging/debian/changelog)
version=$(packaging/version.sh)
if [ "$version" != "$release" ]; then
    {
        printf 'revproxy (%s) bookworm; urgency=medium\n\n  * Built from commit %s.\n\n' "$version" "$(git rev-parse HEAD)"
        printf ' -- The revproxy authors <revproxy@revproxy.example>  %s\n\n' "$(git log -1 --format=%cD)"
        cat packaging/debian/changelog
    } >"$tree/debian/changelog"
    sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$tree/reconciler/__init__.py"
    sed -i "0,/\"version\": \"$release\"/s//\"version\": \"$version\"/" "$tree/schema/revproxy-api-v1.openapi.json"
fi

if ! command -v dpkg-buildpackage >/dev/null || ! (cd "$tree" && dpkg-checkbuilddeps) 2>/dev/null; then
    [ "$(id -u)" = 0 ] || {
        (cd "$tree" && dpkg-checkbuilddeps) || true
        say "install what is missing (apt-get build-dep ./$tree), or run this as root"
        exit 1
    }
    say "installing what the build needs"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends dpkg-dev fakeroot build-essential >/dev/null
    apt-get -qq build-dep --yes --no-install-recommends "./$tree" >/dev/null
fi
# The same sources give the same package: times are the change log's.
(cd "$tree" && env -u PYTHONPATH PATH="${PATH//"$PWD/.venv/bin:"/}" dpkg-buildpackage --build=binary --no-sign) \
    >build/deb/log 2>&1 || {
    tail -n 30 build/deb/log >&2
    exit 1
}
mv build/deb/*.deb dist/
say "built $(ls dist/*.deb)"
