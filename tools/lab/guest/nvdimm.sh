# Two NVDIMMs: on one a file system with DAX, the other one as a device. First the log's conformance suite, then a node with its log on `kind`.
. /lab/lib.sh
. /lab/settings
. /lab/node.sh

if [ "$first" = yes ]; then
    step "make namespaces"
    ndctl create-namespace --force --reconfig namespace0.0 --mode fsdax --map mem
    ndctl create-namespace --force --reconfig namespace1.0 --mode devdax --map mem --align 2M
fi
disk=$(echo /dev/pmem*)
device=$(echo /dev/dax*)
[ -b "$disk" ] && [ -c "$device" ] || fail "no namespaces: $disk, $device"
cat /sys/bus/nd/devices/region*/persistence_domain
if [ "$first" = yes ]; then
    mkfs.ext4 -q -b 4096 "$disk"
fi
mount -t ext4 -o dax=always "$disk" /mnt

if [ "$first" = yes ]; then
    for path in /mnt/conformance "$device"; do
        step "conformance: $path"
        twinlog-lab guest conform-log "$path"
    done
    step "lost bytes"
    sector=$(filefrag -v -b512 /mnt/conformance | awk '$1 == "0:" { sub(/\.\.$/, "", $4); print $4 }')
    twinlog-lab guest lose-log /mnt/conformance "/sys/block/${disk##*/}/badblocks" --sector "$sector"
    # The file stays: whoever got its blocks next would get lost ones.
fi

case $kind in
    file) serve pmem /mnt/log ;;
    # The suite has left something there.
    device) serve pmem "$device" --overwrite "$device" ;;
esac
