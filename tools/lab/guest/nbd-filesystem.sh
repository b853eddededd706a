# A file system on the kernel's nbd client: a tree, an exerciser, trim, check, and everything again after a new mount.
. /lab/lib.sh
. /lab/settings
device=/dev/nbd0

connect() { nbd-client $host "$port" $device -N vol-a -C 2; }
check() {
    case $argument in
        ext4) e2fsck -fn $device ;;
        xfs) xfs_repair -n $device ;;
    esac >/tmp/check 2>&1 || fail "the file system is damaged: $(cat /tmp/check)"
    tail -1 /tmp/check
}
sums() { (cd /mnt/tree && find . -type f | sort | xargs sha256sum); }

step make
connect
case $argument in
    ext4) mkfs.ext4 -q -E discard,lazy_itable_init=0 $device ;;
    xfs) mkfs.xfs -q $device ;;
esac
mount -t "$argument" -o discard $device /mnt

step "a tree of files"
mkdir /mnt/tree
cp -a /bin /etc /lab /mnt/tree/
i=0
while [ $i -lt 300 ]; do
    mkdir -p /mnt/tree/many/$((i % 7))
    echo "file $i" >/mnt/tree/many/$((i % 7))/$i
    i=$((i + 1))
done
rm -r /mnt/tree/many/3
dd if=/dev/urandom of=/mnt/tree/sparse bs=4k count=3 seek=1000 2>/dev/null
sums >/tmp/sums
echo "$(wc -l </tmp/sums) files, $(du -sm /mnt/tree | cut -f1) MiB"

step "random operations on files"
exercisers=
for run in 1 2 3; do
    twinlog-lab guest exercise /mnt/exercised-$run --size $((1 << 20)) --count 400 --seed $((seed + run)) &
    exercisers="$exercisers $!"
done
for exerciser in $exercisers; do
    wait "$exerciser" || fail "an exerciser"
done

step fill
dd if=/dev/urandom of=/mnt/large bs=1M count=16 conv=fsync 2>/dev/null
sync
event filled
await empty
# With the option discard the file system would trim at once; fstrim must find the rest.
mount -o remount,nodiscard /mnt
rm /mnt/large
sync
fstrim -v /mnt
event emptied
await end

step "check and mount again"
sums | cmp - /tmp/sums || fail "files have changed"
umount /mnt
check
nbd-client -d $device
connect
mount -t "$argument" $device /mnt
sums | cmp - /tmp/sums || fail "files have changed over a new mount"
umount /mnt
check
nbd-client -d $device
dmesg | grep -i -e 'I/O error' -e 'nbd.*\(timed out\|error\)' -e 'EXT4-fs error' -e 'XFS.*corrupt' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"
exit 0
