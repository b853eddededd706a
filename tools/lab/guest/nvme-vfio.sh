# NVMe controllers behind a virtual IOMMU, taken from the kernel's driver by `twinlog device bind` and given back.
. /lab/lib.sh
mkdir -p /mnt/data

# refuses WORD COMMAND...: the command must end with 4, and say WORD.
refuses() {
    word=$1
    shift
    code=0
    said=$("$@" 2>&1) || code=$?
    echo "$said"
    same "exit code of $*" $code 4
    case $said in *"$word"*) ;; *) fail "it did not say '$word'" ;; esac
}
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
# Of the disk with a serial, whatever its number in this boot.
disk() {
    for place in /sys/class/nvme/*; do
        if [ "$(tr -d ' ' <"$place/serial")" = "$1" ]; then
            ls "$place" | grep '^nvme[0-9]*\(c[0-9]*\)*n1$' | sed 's/c[0-9]*//'
        fi
    done
}
faults() { dmesg | grep -c 'DMAR:.*fault addr' || true; }
# By its path: the shell has an applet of that name.
user="/bin/setpriv --reuid 990 --regid 990 --clear-groups"
# Of a kernel with IOMMUFD that must be what confines a controller.
by=container
[ -z "${iommufd:-}" ] || by=IOMMUFD
pci="twinlog-lab guest pci --confined-by $by"
nvme="twinlog-lab guest nvme --confined-by $by"

step "list, doctor"
twinlog device list
twinlog doctor /tmp || [ $? = 3 ]
for serial in LAB0 LAB1 LAB2; do
    [ -b "/dev/$(disk $serial)" ] || fail "the kernel does not show the disk of $serial"
done

step "what is in use, or somebody's, is not bound"
data=$(disk LAB1)
mkfs.ext4 -q -b 4096 "/dev/$data"
mount "/dev/$data" /mnt/data
echo precious >/mnt/data/file
refuses "is mounted at /mnt/data" twinlog device bind LAB1 --lose-access-to "$data"
umount /mnt/data
refuses "--lose-access-to $data" twinlog device bind LAB1
refuses "LAB1" twinlog device bind "/dev/$data"
# Mounted where this shell's table of mounts does not show it.
unshare -m sh -c "mount /dev/$data /mnt/data && touch /tmp/claimed && exec sleep 1000" &
claimer=$!
until [ -e /tmp/claimed ]; do kill -0 $claimer || fail "no mount"; sleep 0.1; done
refuses "in use by another program" twinlog device bind LAB1 --lose-access-to "$data"
kill $claimer
wait $claimer || true

step "bind, for a user who is not root"
address=$(twinlog device bind LAB0 --user twinlog -o jsonl | field address)
group=$(basename "$(readlink "/sys/bus/pci/devices/$address/iommu_group")")
same "owner of the group's node" "$(stat -c %u "/dev/vfio/$group")" 990
twinlog device list | tee /tmp/list
grep -q "^LAB0 .*vfio-pci" /tmp/list || fail "the serial is not remembered"
[ -z "$(disk LAB0)" ] || fail "the kernel still has it"
twinlog device bind LAB0 --user twinlog

step "memory that may not be locked"
ulimit -l 64
fails "LimitMEMLOCK=infinity" $user $pci "$address" --serial LAB0
ulimit -l unlimited

if [ -n "${iommufd:-}" ]; then
    step "IOMMUFD: its nodes are that user's; where he may not open them there is the container, and that is seen"
    node=/dev/vfio/devices/$(ls "/sys/bus/pci/devices/$address/vfio-dev")
    same "owner of the controller's node" "$(stat -c %u "$node")" 990
    same "group of /dev/iommu" "$(stat -c %g /dev/iommu)" 990
    grep -q "by IOMMUFD: $node" /tmp/list || fail "the list does not name $node"
    chgrp 0 /dev/iommu
    fails "confined by VFIO's container" $user $pci "$address" --serial LAB0
    $user twinlog-lab guest pci --confined-by container "$address" --serial LAB0
    twinlog device bind LAB0 --user twinlog
fi

step "the function: registers, memory, pool, interrupts, reset"
$user $pci "$address" --serial LAB0
step "killed under load, and opened again"
$user $pci "$address" --serial LAB0 --forever /tmp/busy &
driver=$!
until [ -e /tmp/busy ]; do kill -0 $driver || fail "the driver ended"; sleep 0.1; done
fails "another process has it" $user $pci "$address" --serial LAB0
refuses "in use by process" twinlog device unbind LAB0
kill -9 $driver
wait $driver || true
$user $pci "$address" --serial LAB0

step "the NVMe driver: what every block device must do"
$user $nvme "$address" --serial LAB0
step "it is killed under load, and opened again"
rm /tmp/busy
$user $nvme "$address" --serial LAB0 --forever /tmp/busy &
driver=$!
until [ -e /tmp/busy ]; do kill -0 $driver || fail "the driver ended"; sleep 0.1; done
kill -9 $driver
wait $driver || true
$user $nvme "$address" --serial LAB0
dd if=/dev/urandom of=/tmp/written bs=64k count=5 2>/dev/null
$user $nvme "$address" --serial LAB0 --copy /tmp/written
same "faults of the IOMMU" "$(faults)" 0

step "what is mapped no longer is out of reach"
$user $pci "$address" --serial LAB0 --stray
provoked=$(faults)
[ "$provoked" -gt 0 ] || fail "the IOMMU let it through"

step "back to the kernel"
twinlog device unbind LAB0
twinlog device unbind LAB0
twinlog device list
until [ -b "/dev/$(disk LAB0)" ]; do sleep 0.1; done
back=$(disk LAB0)
dd if="/dev/$back" bs=64k count=5 iflag=direct 2>/dev/null | cmp - /tmp/written || fail "the driver wrote something else"
dd if=/dev/urandom of=/tmp/pattern bs=1M count=2 2>/dev/null
dd if=/tmp/pattern of="/dev/$back" bs=1M oflag=direct 2>/dev/null
dd if="/dev/$back" bs=1M count=2 iflag=direct 2>/dev/null | cmp - /tmp/pattern || fail "the kernel's driver reads something else"

step "somebody's data, named: nothing is written to them"
address=$(twinlog device bind LAB1 --lose-access-to "$(disk LAB1)" -o jsonl | field address)
$pci "$address" --serial LAB1
twinlog device unbind LAB1
until [ -b "/dev/$(disk LAB1)" ]; do sleep 0.1; done
mount "/dev/$(disk LAB1)" /mnt/data
same "the file" "$(cat /mnt/data/file)" precious
umount /mnt/data

step "two controllers of one subsystem, each with a driver of its own"
shared=$(disk SHARED | head -1)
mkfs.ext4 -q -b 4096 "/dev/$shared"
mount "/dev/$shared" /mnt/data
refuses "several controllers" twinlog device bind SHARED
ports=$(for place in /sys/class/nvme/*; do grep -q SHARED "$place/serial" && cat "$place/address" || true; done)
same "controllers" "$(echo "$ports" | wc -l)" 2
for port in $ports; do
    refuses "is mounted at /mnt/data" twinlog device bind SHARED --controller "$port" --lose-access-to "$shared"
done
umount /mnt/data
for port in $ports; do
    twinlog device bind SHARED --controller "$port" --lose-access-to "$shared"
done
drivers=
for port in $ports; do
    $nvme "$port" --serial SHARED --forever "/tmp/busy-$port" &
    drivers="$drivers $!"
done
for port in $ports; do
    until [ -e "/tmp/busy-$port" ]; do sleep 0.1; done
done
for driver in $drivers; do
    kill -0 "$driver" || fail "a driver ended"
    kill -9 "$driver"
    wait "$driver" || true
done
left=$(echo "$ports" | head -1)
right=$(echo "$ports" | tail -1)
$nvme "$left" --serial SHARED --copy /tmp/written
$nvme "$right" --serial SHARED --compare /tmp/written
same "faults of the IOMMU" "$(faults)" "$provoked"

step "removal is noticed"
address=$(twinlog device bind LAB2 -o jsonl | field address)
$pci "$address" --serial LAB2 --until-removed /tmp/waiting &
driver=$!
until [ -e /tmp/waiting ]; do kill -0 $driver || fail "the driver ended"; sleep 0.1; done
event remove
wait $driver || fail "the driver did not notice"
gone() {
    for try in $(seq 300); do
        [ -e "/sys/bus/pci/devices/$1" ] || return 0
        sleep 0.2
    done
    fail "$1 is still there"
}
gone "$address"

step "removal under load ends every operation with an error"
address=$(twinlog device bind LAB3 -o jsonl | field address)
rm /tmp/busy
$nvme "$address" --serial LAB3 --forever /tmp/busy >/tmp/said 2>&1 &
driver=$!
until [ -e /tmp/busy ]; do kill -0 $driver || fail "the driver ended: $(cat /tmp/said)"; sleep 0.1; done
event remove-loaded
wait $driver && fail "the driver did not notice"
cat /tmp/said
grep -q "gone" /tmp/said || fail "it ended for another reason"
gone "$address"
twinlog device list
