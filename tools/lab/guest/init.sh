#!/bin/busybox sh
# The first process of a guest: prepares it, runs the payload, and hands its exit code to the lab twice: as a line on the console, and through
# QEMU's isa-debug-exit device, which also switches the machine off. A kernel in user mode has only the first.
/bin/busybox mount -t proc proc /proc
export PATH=/bin HOME=/root
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run; do mount -t tmpfs tmpfs $folder; done
ln -s /proc/self/fd /dev/fd
hostname lab

finish() {
    echo "lab: exit $1." >/dev/console
    sleep 0.2 # for the emulated serial line
    [ -n "${user_mode:-}" ] || printf "\\x$(printf %x "$1")" | dd of=/dev/port bs=1 seek=244 2>/dev/null # port 0xf4
    poweroff -f
}

for module in /lab/modules/*.ko; do
    [ -e "$module" ] || continue # everything is built in
    options=
    case $module in *-nbd.ko) options="nbds_max=2" ;; esac
    insmod "$module" $options || finish 120
done

# The ports appear when virtio_console has found them.
port() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        for folder in /sys/class/virtio-ports/*; do
            [ "$(cat "$folder/name" 2>/dev/null)" = "$1" ] && echo "/dev/${folder##*/}" && return
        done
        sleep 0.2
    done
    finish 121
}
# A kernel in user mode has serial lines, and networks of another name; it is told so by this variable.
if [ -n "${user_mode:-}" ]; then
    control=/dev/ttyS0
    log=/dev/ttyS1
    for line in $control $log; do stty -F $line raw -echo; done
    for device in /sys/class/net/vec*; do ip link set "${device##*/}" name "eth${device##*vec}"; done
else
    log=$(port lab.log)
    control=$(port lab.control)
fi

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi

cd /root
sh -eu /lab/payload </dev/null >"$log" 2>&1 3<>"$control"
finish $?
