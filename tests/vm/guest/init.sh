#!/bin/bash
# The machine's first process on its root disk: sets up, then carries out the jobs the host puts into /share/jobs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /revproxy
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -sfn /proc/self/fd /dev/fd
echo revproxy-vm >/proc/sys/kernel/hostname
rm -rf "/lib/modules/$(uname -r)"
mkdir -p "/lib/modules/$(uname -r)"
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose modules "/lib/modules/$(uname -r)"
ip link set lo up
for module in veth sch_ingress cls_bpf act_bpf dummy 8021q bridge tun bonding ip_tables nf_tables; do
    modprobe -q "$module"
done
uname -r >/share/up.new && mv /share/up.new /share/up

carry_out() {
    local job=$1
    if [ -e "$job/checkout.tar" ]; then
        find /revproxy -mindepth 1 -maxdepth 1 ! -name .pytest_cache -exec rm -rf {} +
        tar -xf "$job/checkout.tar" -C /revproxy
        ln -sfn /opt/venv /revproxy/.venv
    fi
    (cd /revproxy && REVPROXY_CACHE_DIR=/cache/programs JOB=$job setsid bash "$job/command") \
        </dev/null >"$job/output" 2>&1
    echo $? >"$job/status.new"
    mv "$job/status.new" "$job/status"
}

# Waiting on a pipe that nobody writes to starts no program, as sleep would: here that is noticed.
mkfifo /run/never
exec 9<>/run/never
until [ -e /share/poweroff ]; do
    for job in /share/jobs/*/; do
        if [ -e "$job/ready" ] && [ ! -e "$job/started" ]; then
            : >"$job/started"
            carry_out "$job" &
        fi
    done
    read -r -t 2 -u 9
done
sync
exec busybox poweroff -f
