# The kernel's nbd client as a block device: limits, patterns, discard, write-zeroes, flush, two connections.
. /lab/lib.sh
. /lab/settings
device=/dev/nbd0
queue=/sys/block/nbd0/queue

step connect
nbd-client $host "$port" $device -N vol-a -C 2
same size "$(blockdev --getsize64 $device)" $((argument << 20))
grep -H . $queue/logical_block_size $queue/physical_block_size $queue/max_sectors_kb $queue/discard_max_bytes $queue/write_cache $queue/fua
same "a volatile cache that can be flushed" "$(cat $queue/write_cache)" "write back"
[ "$(cat $queue/discard_max_bytes)" -gt 0 ] || fail "discard is not offered"
[ "$(cat $queue/logical_block_size)" -le 4096 ] || fail "blocks of $(cat $queue/logical_block_size) bytes"

step "a new volume reads as zeroes"
same "differing bytes" "$(cmp -n 2097152 $device /dev/zero)" ""

step "patterns, past the page cache and through it"
dd if=/dev/urandom of=/tmp/pattern bs=1M count=6 2>/dev/null
dd if=/tmp/pattern of=$device bs=1M seek=8 oflag=direct 2>/dev/null
dd if=/tmp/pattern of=$device bs=4k seek=$((14 * 256)) conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
for start in 8 14; do
    dd if=$device bs=1M skip=$start count=6 iflag=direct 2>/dev/null | cmp - /tmp/pattern || fail "the pattern at $start MiB"
done
event filled
await empty

step "discard and read"
blkdiscard -o $((8 << 20)) -l $((12 << 20)) $device
same "differing bytes" "$(dd if=$device bs=1M skip=8 count=12 iflag=direct 2>/dev/null | cmp - /dev/zero 2>&1)" "cmp: EOF on -"
event emptied
await end

step "random operations"
twinlog-lab guest exercise $device --size $((4 << 20)) --count 600 --seed "$seed"

step "a request past the end is an error, and the device lives on"
dd if=/tmp/pattern of=$device bs=1M seek="$argument" count=1 oflag=direct 2>/dev/null && fail "written past the end"
dd if=/tmp/pattern of=$device bs=1M seek=$((argument - 1)) count=1 oflag=direct conv=fsync || fail "the last MiB cannot be written"

step disconnect
nbd-client -d $device
same size "$(blockdev --getsize64 $device)" 0
dmesg | grep -i -e 'I/O error' -e 'nbd.*\(timed out\|error\)' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"
exit 0
