#!/usr/bin/env bash
# Installs what makes and runs the machines, as far as it is missing (root).
set -euo pipefail
[ "$(id -u)" = 0 ] || {
    printf 'vm: this needs root\n' >&2
    exit 3
}
missing=()
for each in qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm depmod:kmod mke2fs:e2fsprogs \
    mmdebstrap:mmdebstrap; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
done
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
[ "${#missing[@]}" -eq 0 ] && exit 0
printf 'vm: installing %s\n' "${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=(apt-get -qq install --yes --no-install-recommends "${missing[@]}")
"${install[@]}" </dev/null >/dev/null 2>&1 && exit 0
apt-get -qq update </dev/null >/dev/null 2>&1 || true
"${install[@]}" </dev/null >/dev/null || {
    printf 'vm: could not install %s\n' "${missing[*]}" >&2
    exit 3
}
