#!/usr/bin/env bash
# Prints the version of a package that is built from this checkout: that of debian/changelog where its tag is checked
# out, else with the time and the commit behind it, so that apt takes a later build for a newer one. With uncommitted
# changes it is the time of the latest of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

release=$(sed -n '1s/^[^(]*(\([^)]*\)).*/\1/p' packaging/debian/changelog)
changed=()
while IFS= read -r -d '' entry; do
    changed+=("${entry:3}")
done < <(git status --porcelain --no-renames -z)
if [ "${#changed[@]}" = 0 ] && [ -n "$(git tag --points-at HEAD --list "v$release")" ]; then
    printf '%s\n' "$release"
    exit
fi
seconds=$(git log -1 --format=%ct) suffix=
for file in "${changed[@]}"; do
    suffix=.modified
    at=$(stat --format=%Y "$file" 2>/dev/null || stat --format=%Y .) # removed: the directory knows when
    [ "$at" -le "$seconds" ] || seconds=$at
done
printf '%s+git%s.%s%s\n' "$release" "$(date --utc --date="@$seconds" +%Y%m%d.%H%M%S)" \
    "$(git rev-parse --short=9 HEAD)" "$suffix"
