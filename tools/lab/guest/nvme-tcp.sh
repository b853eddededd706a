# The kernel's NVMe/TCP initiator: discovery, two I/O queues, digests, fio, a file system, discard, a resize that is noticed, new connections.
. /lab/lib.sh
. /lab/nvme.sh
. /lab/settings

# The block device of the one namespace, when it is there; multipath hides what has a c in its name.
find_device() {
    for try in $(seq 100); do
        for folder in /sys/block/nvme*; do
            case ${folder##*/} in *c*) continue ;; esac
            [ -b "/dev/${folder##*/}" ] && device=/dev/${folder##*/} && return
        done
        sleep 0.1
    done
    fail "no block device: $(dmesg | tail -5)"
}
connect() {
    nvme connect -t tcp -a $host -s "$port" -n "$nqn" -i 2 --keep-alive-tmo=60 "$@"
    find_device
    controller=/dev/$(cd /sys/class/nvme && echo nvme*)
    queue=/sys/block/${device##*/}/queue
    same "queues" "$(cat /sys/class/nvme/"${controller##*/}"/queue_count)" 3
}
disconnect() {
    nvme disconnect -n "$nqn"
    [ -z "$(ls /sys/class/nvme)" ] || fail "a controller is left: $(ls /sys/class/nvme)"
}
# Every write is read and compared.
verify() {
    fio --name=verify --filename="$device" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=4k-256k --blockalign=4k \
        --offset="$1" --size=12M --verify=crc32c --verify_fatal=1 --randseed="$seed" --output=/tmp/fio --minimal || fail "fio: $(cat /tmp/fio)"
}

step discover
nvme discover -t tcp -a $host -s "$port" >/tmp/discovered
cat /tmp/discovered
nqn=$(sed -n 's/^subnqn: *\(.*:uuid:.*\)$/\1/p' /tmp/discovered)
grep -q "^trsvcid: *$port" /tmp/discovered || fail "another port"

step "connect without digests"
connect
same size "$(blockdev --getsize64 "$device")" $((256 << 20))
grep -H . $queue/logical_block_size $queue/max_hw_sectors_kb $queue/discard_max_bytes $queue/write_zeroes_max_bytes $queue/write_cache $queue/fua
same "a block" "$(cat $queue/logical_block_size)" 4096
same "a volatile cache that can be flushed" "$(cat $queue/write_cache) $(cat $queue/fua)" "write back 1"
same "largest transfer" "$(cat $queue/max_hw_sectors_kb)" 1024
[ "$(cat $queue/discard_max_bytes)" -gt 0 ] || fail "discard is not offered"
[ "$(cat $queue/write_zeroes_max_bytes)" -gt 0 ] || fail "write zeroes is not offered"

step "what the controller says"
nvme id-ctrl "$controller" >/tmp/controller
grep -E '^(sn|mn|fr|mdts|ver|oaes|cntrltype|kas|maxcmd|nn|oncs|vwc|sgls|mnan|subnqn|ioccsz|iorcsz) ' /tmp/controller
nvme id-ns "$device" | grep -E '^(nsze|nsfeat|nmic|dlfeat|nguid|lbaf  0)'
nvme ns-descs "$device"
nvme list-ns "$controller"
for page in smart-log error-log fw-log effects-log changed-ns-list-log ana-log supported-log-pages fid-support-effects-log mi-cmd-support-effects-log; do
    nvme $page "$controller" >/tmp/page || fail "$page"
done
for feature in 1 2 4 5 6 7 10 11 15; do
    nvme get-feature "$controller" -f $feature
done

step "field by field, as nvme-cli reads it"
nvme id-ctrl "$controller" -o json >/tmp/id-ctrl
says id-ctrl cmic=10 mdts=8 ver=131072 oaes=2304 ctratt=1 cntrltype=1 aerl=3 frmw=3 lpa=38 elpe=63 kas=10 anatt=10 anacap=71 anagrpmax=2 nanagrpid=2 \
    sqes=102 cqes=68 maxcmd=128 oncs=173 fuses=1 vwc=5 sgls=3145729 mnan=1024 ioccsz=1028 iorcsz=1 icdoff=0 msdbd=1 "subnqn=$nqn"
nvme id-ns "$device" -o json >/tmp/id-ns
says id-ns nsze=65536 ncap=65536 nuse=65536 nsfeat=9 nlbaf=1 flbas=0 nmic=1 dlfeat=9 anagrpid=1 ds=12 rescap=255
nvme ana-log "$controller" -o json >/tmp/ana-log
says ana-log chgcnt=0 ngrps=2 grpid=1 nnsids=1 state=optimized
nvme smart-log "$controller" -o json >/tmp/smart-log
says smart-log critical_warning=0 avail_spare=100 spare_thresh=10 percent_used=0 media_errors=0
errors=$(field num_err_log_entries smart-log)
nvme read "$device" -s 65536 -c 0 -z 4096 2>/dev/null >/dev/null && fail "read past the end"
nvme smart-log "$controller" -o json >/tmp/smart-log
says smart-log num_err_log_entries=$((errors + 1))
nvme error-log "$controller" -o json >/tmp/error-log
says error-log error_count=$((errors + 1)) status_field=16512 parm_error_location=65535 lba=65536 nsid=1 trtype=3
nvme fw-log "$controller" -o json >/tmp/fw-log
says fw-log "ActiveFirmwareSlot(afi)=1"
nvme changed-ns-list-log "$controller" -o json >/tmp/changed-ns

step "fio without digests"
verify 0

step "compare, write zeroes, verify, dataset management, flush"
namespace=$(nvme list-ns "$controller" | sed 's/.*://' | head -1)
dd if=/dev/urandom of=/tmp/pattern bs=64k count=1 2>/dev/null
nvme write "$device" -s 8192 -c 15 -z 65536 -d /tmp/pattern
nvme compare "$device" -s 8192 -c 15 -z 65536 -d /tmp/pattern
nvme verify "$device" -n "$namespace" -s 8192 -c 15
nvme write-zeroes "$device" -n "$namespace" -s 8192 -c 7
nvme compare "$device" -s 8192 -c 15 -z 65536 -d /tmp/pattern 2>/dev/null && fail "it was zeroed"
nvme dsm "$device" -n "$namespace" -d -s 8200 -b 8
nvme flush "$device" -n "$namespace"
same "differing bytes" "$(dd if="$device" bs=4k skip=8192 count=16 iflag=direct 2>/dev/null | cmp - /dev/zero 2>&1)" "cmp: EOF on -"
dd if=/tmp/pattern of="$device" bs=1M seek=256 count=1 oflag=direct 2>/dev/null && fail "written past the end"
disconnect

step "connect with digests"
connect --hdr-digest --data-digest
verify $((16 << 20))
twinlog-lab guest exercise "$device" --size $((4 << 20)) --count 300 --seed "$seed"
mkfs.ext4 -q -E discard,lazy_itable_init=0 "$device"
mkdir -p /mnt
mount -t ext4 "$device" /mnt
cp -a /bin /etc /lab /mnt/
(cd /mnt && find . -type f | sort | xargs sha256sum) >/tmp/sums
dd if=/dev/urandom of=/mnt/large bs=1M count=16 conv=fsync 2>/dev/null
sync
event filled
await empty
rm /mnt/large
sync
fstrim -v /mnt
event emptied
await end
umount /mnt
e2fsck -fn "$device" >/tmp/check 2>&1 || fail "the file system is damaged: $(cat /tmp/check)"

step "a resize is noticed"
event resize
for try in $(seq 100); do
    [ "$(blockdev --getsize64 "$device")" -eq $((512 << 20)) ] && break
    sleep 0.1
done
same size "$(blockdev --getsize64 "$device")" $((512 << 20))
disconnect

step "connect again"
connect
mount -t ext4 "$device" /mnt
(cd /mnt && find . -type f | sort | xargs sha256sum) | cmp - /tmp/sums || fail "files have changed"
umount /mnt
e2fsck -fn "$device" >/tmp/check 2>&1 || fail "the file system is damaged: $(cat /tmp/check)"

step "a new volume in blocks of 512 bytes"
event fine
fine=${device%1}2
for try in $(seq 100); do
    [ -b "$fine" ] && break
    sleep 0.1
done
same "its blocks" "$(cat /sys/block/"${fine##*/}"/queue/logical_block_size /sys/block/"${fine##*/}"/queue/physical_block_size | tr '\n' ' ')" "512 4096 "
dd if=/tmp/pattern of="$fine" bs=512 seek=3 count=1 oflag=direct 2>/dev/null
dd if="$fine" bs=512 skip=3 count=1 iflag=direct 2>/dev/null | cmp -n 512 - /tmp/pattern || fail "one block of it"
mkfs.ext4 -q -b 1024 "$fine"
mount -t ext4 "$fine" /mnt
cp -a /bin /etc /lab /mnt/
umount /mnt
mount -t ext4 "$fine" /mnt
diff -r /lab /mnt/lab || fail "files have changed"
umount /mnt
e2fsck -fn "$fine" >/tmp/check 2>&1 || fail "the file system is damaged: $(cat /tmp/check)"
event deleted
for try in $(seq 100); do
    [ -b "$fine" ] || break
    sleep 0.1
done
[ ! -b "$fine" ] || fail "the volume is still there"
disconnect

dmesg | grep -i nvme
dmesg | grep -i -e 'I/O error' -e 'EXT4-fs error' -e 'nvme.*\(fail\|error\|timeout\|time out\|invalid\|support\|bug\|mismatch\|reset\|reconnect\|duplicate\|ignor\)' |
    grep -v 'sector 524288' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"

step "two hosts reserve a namespace"
own=$(cat /etc/nvme/hostnqn)
connect_as "$own" "$(cat /etc/nvme/hostid)" $host
connect_as "$other" "$other_id" $host
one=$(path_of "$own" $host)
two=$(path_of "$other" $host)
namespace=1
nvme resv-register "$one" -n 1 --nrkey=0xa1 --rrega=0 --cptpl=3
nvme resv-register "$two" -n 1 --nrkey=0xa2 --rrega=0 --cptpl=3
nvme resv-acquire "$one" -n 1 --crkey=0xa1 --rtype=1 --racqa=0
reserved "$two" gen=2 rtype=1 regctl=2 ptpls=1
write_as "$one"
read_as "$two"
fails "eservation" write_as "$two"
step "the node dies and comes back"
event reserved
await back
[ "$(path_of "$own" $host) $(path_of "$other" $host)" = "$one $two" ] || fail "paths have other names"
reserved "$one" gen=2 rtype=1 regctl=2 ptpls=1
fails "eservation" write_as "$two"
step "the other host preempts"
nvme resv-acquire "$two" -n 1 --crkey=0xa2 --prkey=0xa1 --rtype=1 --racqa=1
reserved "$one" gen=3 rtype=1 regctl=1
write_as "$two"
fails "eservation" write_as "$one"
told_of_preemption "$one"
nvme resv-release "$two" -n 1 --crkey=0xa2 --rtype=1 --rrela=0
write_as "$one"
nvme resv-release "$two" -n 1 --crkey=0xa2 --rrela=1
reserved "$two" gen=4 rtype=0 regctl=0
disconnect
exit 0
