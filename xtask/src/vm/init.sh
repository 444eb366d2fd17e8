#!/job/busybox sh
# PID 1 of a guest: file systems, modules, the root on disk if there is one, the job, its files and status to the host.
# The kernel writes to its console, the job to the serial port VM_JOB of the kernel's arguments. The last disk takes /out as a tar archive.

bb=/job/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=xterm LANG=C.UTF-8

say() { echo "$*" >/dev/console; }

kernel_file_systems() {
    $bb mkdir -p /proc /sys /dev
    $bb mount -t proc proc /proc
    $bb mount -t sysfs sys /sys
    $bb mount -t devtmpfs dev /dev 2>/dev/null
}

other_file_systems() {
    $bb mkdir -p /dev/pts /dev/shm /run /tmp /root /out /var/tmp
    $bb mount -t devpts devpts /dev/pts
    $bb mount -t tmpfs shm /dev/shm
    $bb mount -t tmpfs -o mode=755 run /run
    $bb mount -t debugfs debug /sys/kernel/debug
    $bb mount -t tracefs trace /sys/kernel/tracing
    $bb mount -t bpf bpf /sys/fs/bpf
    $bb mount -t cgroup2 cgroup /sys/fs/cgroup
    for controller in cpu memory io pids; do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
    $bb chmod 1777 /tmp /dev/shm /var/tmp
    # What the kernel starts to load a module by itself.
    echo /job/modprobe >/proc/sys/kernel/modprobe
    $bb ln -sf /proc/self/fd /dev/fd
}

disks() { for disk in /dev/vd?; do echo "$disk"; done; }

switch_to_disk() {
    $bb mkdir -p /newroot
    $bb mount -t ext4 /dev/vda /newroot || { say "VM: the root disk cannot be mounted"; $bb poweroff -f; }
    $bb mkdir -p /newroot/job /newroot/lib/modules
    if [ -d /job/root ]; then $bb cp -a /job/root/. /newroot/; $bb rm -rf /job/root; fi
    $bb cp -a /job/. /newroot/job/
    $bb cp -a /lib/modules/. /newroot/lib/modules/
    for place in proc sys dev; do
        $bb mkdir -p "/newroot/$place"
        $bb mount -o move "/$place" "/newroot/$place"
    done
    exec $bb switch_root /newroot $bb sh /job/init on-disk
}

perform() {
    other_file_systems
    $bb ip link set lo up
    $bb hostname guest
    $bb stty -F "/dev/$VM_JOB" raw
    say "VM-START"
    cd /root
    /bin/sh /job/run </dev/null >"/dev/$VM_JOB" 2>&1
    status=$?
    cd /
    out=$(disks | $bb tail -n 1)
    $bb tar -cf "$out" -C /out . || say "VM: /out does not fit on its disk"
    $bb sync
    say "VM-STATUS $status"
    $bb poweroff -f
}

if [ "$1" != on-disk ]; then
    kernel_file_systems
    while read -r module; do $bb modprobe "$module"; done </job/modules
    count=$(disks | $bb wc -l)
    if [ "$count" -gt 1 ] && [ -z "$VM_STAY" ]; then switch_to_disk; fi
    $bb mkdir -p /bin
    $bb --install -s /bin
fi
perform
