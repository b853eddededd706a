# A file system on a device whose server is killed again and again; requests wait in the kernel until it is back.
. /lab/lib.sh
. /lab/settings
device=/dev/nbd0
progress=/tmp/progress
steps() { wc -l <$progress 2>/dev/null || echo 0; }

# more COUNT: waits for so many more durable steps.
more() {
    goal=$(($(steps) + $1))
    tries=0
    until [ "$(steps)" -ge $goal ]; do
        kill -0 "$writer" 2>/dev/null || fail "the writer ended"
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "no progress: $(steps) of $goal steps"
        sleep 0.2
    done
}
check() {
    e2fsck -fn $device >/tmp/check 2>&1 || fail "the file system is damaged: $(cat /tmp/check)"
    tail -1 /tmp/check
}

: >$progress

step connect
twinlog-lab guest attach "$host:$port" --export vol-a --connections 2 &
attach=$!
until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do
    kill -0 $attach || fail "not attached"
    sleep 0.1
done
mkfs.ext4 -q -E discard $device
mount -t ext4 -o discard $device /mnt
twinlog-lab guest write-files /mnt/files --seed "$seed" --stop /tmp/stop --list /tmp/list --progress $progress &
writer=$!
more 10
event load

while :; do
    read -r word <&3
    [ "$word" = killed ] || break
    more 10
    event "alive $(steps)"
done
same word "$word" stop
touch /tmp/stop
wait $writer || fail "the writer"

step prove
umount /mnt
check
mount -t ext4 $device /mnt
twinlog-lab guest verify-files /mnt/files --seed "$seed" --list /tmp/list
umount /mnt
check
dmesg | grep -i -e 'I/O error' -e 'EXT4-fs error' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"
exit 0
