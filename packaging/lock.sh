#!/usr/bin/env bash
# Writes packaging/requirements.lock from pyproject.toml, with hashes (make lock). What is pinned stays as it is while
# it fits; UPGRADE=1 takes the newest of everything.
#
# Reads neither pip's configuration files nor its environment variables for indexes, so that nothing of the machine
# it runs on gets into the file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PIP_FIND_LINKS PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONSTRAINT PIP_NO_INDEX
export PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock"
/usr/bin/python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'pip-tools>=7.4'
"$scratch/venv/bin/pip-compile" --quiet --extra dev --generate-hashes --strip-extras --allow-unsafe ${UPGRADE:+--upgrade} \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file packaging/requirements.lock pyproject.toml
