#!/usr/bin/env bash
# Tries the Debian package in a Debian 12 of its own, booted under systemd in a container (make test-deb; root).
#
# Builds the package, and a next version whose programs differ; makes the Debian tree once (build/debian-12-*.tar, from
# the mirrors of /etc/apt); then runs tests/deb.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'test-deb: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || {
    say "this needs root"
    exit 1
}
missing=()
for each in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container lintian:lintian; do
    command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

packaging/deb.sh
deb=$(ls "$PWD"/dist/revproxy_*.deb)

next=build/next
rm -rf "$next" build/next.deb
dpkg-deb --raw-extract "$deb" "$next"
version=$(dpkg-deb --field "$deb" Version)
sed -i "s/^Version: .*/Version: $version+next/" "$next/DEBIAN/control"
printf '/* another version */\n' >>"$next/usr/share/revproxy/bpf/revproxy.c"
(cd "$next" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb --root-owner-group --build "$next" build/next.deb >/dev/null

# What the package depends on comes from Debian, nothing else does.
depends=$(dpkg-deb --field "$deb" Depends | sed -e 's/([^)]*)//g' -e 's/|[^,]*//g' -e 's/:any//g' -e 's/ //g')
packages=systemd,systemd-sysv,dbus,procps,git,curl,iproute2,man-db,bash-completion,$depends
tree=build/debian-12-$(sha256sum <<<"$packages" | cut -c 1-12).tar
if [ ! -s "$tree" ]; then
    say "making $tree"
    rm -f build/debian-12-*.tar
    mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "${tree%.tar}.new.tar"
    mv "${tree%.tar}.new.tar" "$tree"
fi
export REVPROXY_DEB=$deb REVPROXY_NEXT_DEB=$PWD/build/next.deb REVPROXY_TREE=$PWD/$tree
.venv/bin/python -m pytest tests/deb -x "$@"
