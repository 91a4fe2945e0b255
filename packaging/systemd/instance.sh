#!/bin/sh
# Prints revproxyd@.service, the unit for several instances: revproxyd.service (the argument) with places of their own.
set -eu
sed -e 's#^Description=.*#Description=Reverse proxy in the kernel, instance %i, kept equal to /etc/revproxy/%i/config.d#' \
    -e '/^\(RuntimeDirectory\|StateDirectory\|LogsDirectory\)=/s#$#-%i#' \
    -e '/^# REVPROXYD_OPTIONS/s#/var/log/revproxy#&-%i#' \
    -e '/^#/!s#\(/sys/fs/bpf\|/var/lib\|/run\|/var/log\)/revproxy\>#&-%i#g' \
    -e '/^EnvironmentFile=/s#$#-%i#' \
    -e '/^ExecStart=/i\
Environment=REVPROXY_CONFIG_DIR=/etc/revproxy/%i/config.d\
Environment=REVPROXY_RUN_DIR=/run/revproxy-%i\
Environment=REVPROXY_STATE_DIR=/var/lib/revproxy-%i\
Environment=REVPROXY_BPFFS_DIR=/sys/fs/bpf/revproxy-%i' "$1"
