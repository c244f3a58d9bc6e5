#!/bin/busybox sh
# The only process of a guest: it runs the job on the second disk, and writes what came of it to
# the third.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/busybox HOME=/root LC_ALL=C
/bin/busybox mkdir -p /opt/busybox
/bin/busybox --install -s /opt/busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
exec >/dev/console 2>&1 </dev/null
for module in virtio_pci virtio_mmio virtio_blk ext4 xfs btrfs loop fuse overlay; do modprobe -q $module; done
ip link set lo up
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdc ] && break; sleep 1; done
mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 /dev/vda
mount -t ext4 /dev/vda /tmp
mount -t ext4 -o ro /dev/vdb /job
mkdir /tmp/out
echo ":: booted $(uname -r) after $(cut -d. -f1 /proc/uptime) s"
uname -r > /tmp/out/kernel
getconf PAGESIZE > /tmp/out/pagesize 2>/dev/null || echo unknown > /tmp/out/pagesize
mkfs.btrfs --version > /tmp/out/progs 2>&1
sh /job/job
dmesg > /tmp/out/dmesg
tar -c -C /tmp/out . > /dev/vdc
sync
echo ":: done"
poweroff -f
