# The kernel's NVMe/TCP initiator with a path to each node of a pair, each through a network of its own, under load while the lab harms the pair and mends it:
# fio, a pacer and a file system in each pool.
. /lab/lib.sh
. /lab/nvme.sh
. /lab/settings

now() { cut -d' ' -f1 /proc/uptime; }
# states: the access of every path.
states() { cat /sys/block/nvme*c*n*/ana_state | sort | uniq -c | tr -s ' ' | tr '\n' ';'; }
await_states() {
    for try in $(seq 300); do
        [ "$(states)" = "$1" ] && return
        sleep 0.2
    done
    fail "paths are '$(states)', not '$1': $(dmesg | tail -20)"
}
# await_optimized ADDRESS: the node there has said that it serves everything.
await_optimized() {
    controller=$(grep -l "traddr=$1," /sys/class/nvme/nvme*/address)
    for try in $(seq 300); do
        [ "$(cat "${controller%/*}"/nvme*c*n*/ana_state | sort -u)" = optimized ] && return
        sleep 0.2
    done
    fail "a takeover was not announced: $(states) $(dmesg | tail -20)"
}
# device_of BYTES: the block device of that size, when it is there; multipath hides what has a c in its name.
device_of() {
    for try in $(seq 150); do
        for folder in /sys/block/nvme*; do
            case ${folder##*/} in *c*) continue ;; esac
            [ "$(cat "$folder/size")" -eq $(($1 / 512)) ] && echo "/dev/${folder##*/}" && return
        done
        sleep 0.2
    done
    fail "no device of $1 bytes: $(dmesg | tail -5)" >&2
}
# paused SINCE: how long each pool's longest request took, of those since then. What has just been harmed pauses by now, and must go on first.
paused() {
    sleep 1
    reached=$(now)
    for pool in a b; do
        for try in $(seq 600); do
            awk -v reached="$reached" '{ last = $1 } END { exit !(last > reached) }' /tmp/pace-$pool && break
            [ "$try" -lt 600 ] || fail "requests to pool $pool do not go on: $(dmesg | tail -20)" >&2
            sleep 0.2
        done
    done
    for pool in a b; do
        awk -v since="$1" -v pool=$pool '$1 >= since && $2 > most { most = $2 } END { printf "%s s in pool %s  ", most + 0, pool }' /tmp/pace-$pool
    done
}
# verify SECONDS: about so long, and then everything is read and compared; in pool b soon after each write as well.
verify() {
    fio --thread --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --blockalign=4k --size="$(($1 * 512))k" --rate=,512k \
        --verify=crc32c --verify_fatal=1 --randseed="$((seed + phase))" --output=/tmp/fio --minimal \
        --name=a --filename="$raw_a" --name=b --filename="$raw_b" --verify_backlog=64
}

step network
pair_networks

step connect
nvme discover -t tcp -a "$first" -s "$port" >/tmp/discovered
nqn=$(sed -n 's/^subnqn: *\(.*:uuid:.*\)$/\1/p' /tmp/discovered | head -1)
same "ports of the subsystem" "$(grep -c "^subnqn: *$nqn" /tmp/discovered)" 2
# A path that is lost is tried again for ever, and requests wait for one: no option makes them fail.
nvme connect-all -t tcp -a "$second" -s "$port" -i 2 --hdr-digest --data-digest --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=-1
# Each node serves the volume of its own pool and forwards to the other's.
await_states " 2 non-optimized; 2 optimized;"
nvme list-subsys
# An admin queue, and two for I/O, or one for each processor.
queues=$(nproc)
[ "$queues" -le 2 ] || queues=2
for controller in /sys/class/nvme/nvme*; do same "queues" "$(cat "$controller/queue_count")" $((queues + 1)); done

step "new volumes appear"
raw=
for folder in /sys/block/nvme*; do
    case ${folder##*/} in *c*) ;; *) raw="$raw /dev/${folder##*/}" ;; esac
done
event connected
await made
ext_device=$(device_of "$ext")
xfs_device=$(device_of "$xfs")
await_states " 4 non-optimized; 4 optimized;"
# group DEVICE: of namespaces, that of its paths.
group() {
    name=${1##*/}
    cat /sys/block/"${name%n*}"c*n"${name##*n}"/ana_grpid | head -1
}
for device in $raw; do
    [ "$(group "$device")" = "$(group "$ext_device")" ] && raw_a=$device || raw_b=$device
done
echo "pool a: $raw_a $ext_device; pool b: $raw_b $xfs_device"

step "file systems"
mkfs.ext4 -q -E lazy_itable_init=0 "$ext_device"
mkfs.xfs -q "$xfs_device"
mkdir -p /mnt/ext /mnt/xfs
mount -t ext4 "$ext_device" /mnt/ext
mount -t xfs "$xfs_device" /mnt/xfs
work=
for kind in ext xfs; do
    twinlog-lab guest write-files /mnt/$kind/files --seed "$seed" --stop /tmp/stop --list /tmp/list-$kind --progress /tmp/progress-$kind \
        --rest-ms 100 &
    work="$work $!"
done
# Beyond what fio uses.
twinlog-lab guest pace "$raw_a" --offset $((128 << 20)) --seed "$seed" --stop /tmp/stop --progress /tmp/pace-a &
work="$work $!"
twinlog-lab guest pace "$raw_b" --offset $((128 << 20)) --seed "$seed" --stop /tmp/stop --progress /tmp/pace-b &
work="$work $!"
sleep 1
event ready

phase=0
while read -r word seconds name <&3 && [ "$word" = phase ]; do
    phase=$((phase + 1))
    step "$name"
    verify "$seconds" &
    job=$!
    sleep 2
    since=$(now)
    event loaded
    read -r word server <&3
    same "the lab's word" "$word" harmed
    [ -z "$server" ] || await_optimized "$server"
    said=$(paused "$since")
    since=$(now)
    event seen "$said"
    await mended
    step mended
    await_states " 4 non-optimized; 4 optimized;"
    step "paths are as they should be"
    wait $job || fail "fio: $(cat /tmp/fio) $(dmesg | tail -20)"
    event "done" "$(paused "$since")"
done
same "the lab's word" "$word" end

step "the end of the load"
touch /tmp/stop
for job in $work; do
    wait "$job" || fail "$(dmesg | tail -20)"
done

step "space is given back"
dd if=/dev/urandom of=/tmp/large bs=1M count=12 2>/dev/null
cp /tmp/large /mnt/ext/
cp /tmp/large /mnt/xfs/
dd if=/tmp/large of="$raw_a" bs=1M oflag=direct 2>/dev/null
sync
event filled
await empty
rm /mnt/ext/large /mnt/xfs/large
sync
fstrim -v /mnt/ext
fstrim -v /mnt/xfs
blkdiscard "$raw_a"
event emptied
await "go on"

step "ext4 grows while it is mounted"
event grow
same "the grown device" "$(device_of "$grown")" "$ext_device"
resize2fs "$ext_device"
[ "$(df -k /mnt/ext | awk 'END { print $2 }')" -gt $((ext / 1024)) ] || fail "it has not grown: $(df -k /mnt/ext)"

step "what is there"
umount /mnt/ext /mnt/xfs
e2fsck -fn "$ext_device" >/tmp/check 2>&1 || fail "ext4 is damaged: $(cat /tmp/check)"
xfs_repair -n "$xfs_device" >/tmp/check 2>&1 || fail "xfs is damaged: $(cat /tmp/check)"
mount -t ext4 "$ext_device" /mnt/ext
mount -t xfs "$xfs_device" /mnt/xfs
for kind in ext xfs; do twinlog-lab guest verify-files /mnt/$kind/files --seed "$seed" --list /tmp/list-$kind; done
umount /mnt/ext /mnt/xfs

# If that never ends, the kernel says who waits, and where.
(
    sleep 100
    grep . /sys/class/nvme/*/state
    dmesg -n 8
    echo w >/proc/sysrq-trigger
) &
watch=$!
nvme disconnect -n "$nqn"
kill $watch
[ -z "$(ls /sys/class/nvme)" ] || fail "a controller is left: $(ls /sys/class/nvme)"
dmesg | grep -i nvme
# What the kernel says of lost paths is as it should be; of its timer, when the machine is busy, too.
dmesg | grep -i -e 'I/O error' -e 'failing I/O' -e 'EXT4-fs \(error\|warning\)' -e 'XFS.*\(error\|corrupt\|shut\)' -e 'blocked for more than' -e 'WARNING:' -e 'BUG:' \
    -e 'nvme.*\(mismatch\|invalid\|duplicate\|digest\|unexpected\|not equal\)' |
    grep -v 'MP-BIOS bug' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"
exit 0
