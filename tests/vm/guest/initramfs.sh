#!/bin/busybox sh
# The machine's first process, out of the RAM disk: loads what finds the root disk and goes on there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "vm: $module is not loaded"
done </modules/order
tries=0
until mount -t ext4 /dev/vda /root 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "vm: no root disk"
        poweroff -f
    fi
    sleep 0.1
done
options=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o $options share /root/share || echo "vm: no share"
mount -t 9p -o $options cache /root/cache || echo "vm: no cache"
umount /proc
exec switch_root /root /bin/bash /share/guest/init.sh
