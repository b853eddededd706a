# Random reads of 4 KiB: the driver on one controller, the kernel's on another, on equal disks, in turn. Each figure is an event.
. /lab/lib.sh
. /lab/settings
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
# Of the disk with a serial.
disk() {
    for place in /sys/class/nvme/*; do
        if [ "$(tr -d ' ' <"$place/serial")" = "$1" ]; then ls "$place" | grep '^nvme[0-9]*n1$'; fi
    done
}
# By its path: the shell has applets of such names.
fio() { /bin/fio "$@"; }
# kernel DEPTH: what fio gets from the kernel's driver. Without time stamps of its own, which cost it much here; with interrupts, because the kernel's polling
# (--hipri) loses answers for minutes here, on one processor.
kernel() {
    fio --name=read --filename="/dev/$(disk LAB1)" --rw=randread --bs=4k --direct=1 --ioengine=io_uring --iodepth="$1" --gtod_reduce=1 \
        --registerfiles --fixedbufs --time_based --runtime="$seconds" --output-format=terse --terse-version=3 | tail -1 | cut -d';' -f8
}
until [ -n "$(disk LAB1)" ] && [ -n "$(disk LAB0)" ]; do sleep 0.1; done
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
# Blocks that were never written would be read from nowhere.
for serial in LAB0 LAB1; do dd if=/dev/zero of="/dev/$(disk $serial)" bs=1M oflag=direct 2>/dev/null || true; done
address=$(twinlog device bind LAB0 --lose-access-to "$(disk LAB0)" -o jsonl | field address)
for round in $(seq "$rounds"); do
    for depth in 1 32; do
        step "round $round, depth $depth"
        event "figure kernel $depth $(kernel $depth)"
        event "figure driver $depth $(twinlog-lab guest nvme-speed "$address" --depth "$depth" --seconds "$seconds")"
    done
done
