#!/job/busybox sh
# The job of a guest that has a guest of its own, with the same kernel, disk and files, by KVM on emulated virtualization.
# Who writes `VM-NEIGHBOURS n` on the inner console has so many programs compete for the outer guest's CPU from then on; the
# inner one sees that as stolen time. $1: MiB of the inner guest.

nest=/job/root/nest
modprobe kvm-amd || { echo "KVM needs a kernel with kvm-amd"; exit 1; }

# The outer guest has left the disk alone: the inner one boots from what the outer one has booted from.
mkdir -p /inner/job/root /inner/lib /inner/dev /tmp
mknod /inner/dev/console c 5 1
cp -a /init /inner/
for part in init busybox modprobe modules; do cp -a "/job/$part" /inner/job/; done
for part in /job/root/*; do [ "$part" = "$nest" ] || mv "$part" /inner/job/root/; done
mv "$nest/run" /inner/job/run
cp -a /lib/modules /inner/lib/
(cd /inner && find . | cpio -o -H newc) >/inner.cpio 2>/dev/null
rm -r /inner
truncate -s 256M /inner.out

arguments=$(sed 's/VM_STAY=1//' /proc/cmdline)
export TMPDIR=/tmp
"$nest/ld.so" --library-path "$nest/lib" "$nest/qemu" -L "$nest/firmware" -machine pc,accel=kvm -cpu host -nodefaults \
    -display none -no-reboot -m "$1M" -smp 1 -kernel "$nest/image" -initrd /inner.cpio -append "$arguments" \
    -serial file:/out/inner-console.log -serial "file:/dev/$VM_JOB" \
    -drive file=/dev/vda,format=raw,if=virtio,cache=unsafe,snapshot=on \
    -drive file=/inner.out,format=raw,if=virtio,cache=unsafe &
inner=$!

last() { sed -n "s/.*$1 \([0-9]*\).*/\1/p" /out/inner-console.log 2>/dev/null | tail -n 1; }
neighbours=0
while kill -0 "$inner" 2>/dev/null; do
    wanted=$(last VM-NEIGHBOURS)
    while [ "$neighbours" -lt "${wanted:-0}" ]; do
        (while :; do :; done) &
        neighbours=$((neighbours + 1))
    done
    sleep 1
done
tar -xf /inner.out -C /out
status=$(last VM-STATUS)
exit "${status:-125}"
