#!/bin/sh
# Prints the example configuration named by the argument as packages install it: under a name that is not read.
set -eu
sed -e '1s#\.\./schema#/usr/share/revproxy/schema#' \
    -e '2i# An example. It is off: files are read whose names end in .yaml, .yml or .json. revproxyctl validate checks them,\n# man revproxy.yaml explains every key. Without a file here nothing is proxied.\n#' "$1"
