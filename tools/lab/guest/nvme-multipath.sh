# The kernel's NVMe/TCP initiator with a path to each node of a pair, one of which dies under load, again and again.
. /lab/lib.sh
. /lab/settings

# states: the access of every path, one line for each.
states() { cat /sys/block/nvme*c*n*/ana_state | sort | uniq -c | tr -s ' ' | tr '\n' ';'; }
# await_states WANTED: for as long as a node needs to get its pool back.
await_states() {
    for try in $(seq 300); do
        [ "$(states)" = "$1" ] && return
        sleep 0.2
    done
    fail "paths are '$(states)', not '$1': $(dmesg | tail -20)"
}

step connect
nqn=$(nvme discover -t tcp -a $host -s "$first" | sed -n 's/^subnqn: *\(.*:uuid:.*\)$/\1/p' | head -1)
for port in $first $second; do
    nvme connect -t tcp -a $host -s "$port" -n "$nqn" --ctrl-loss-tmo=120 --reconnect-delay=1 --keep-alive-tmo=5
done
# Each node serves the volume of its own pool and forwards to the other's.
await_states " 2 non-optimized; 2 optimized;"
nvme list-subsys
devices=
for folder in /sys/block/nvme*; do
    case ${folder##*/} in *c*) ;; *) devices="$devices /dev/${folder##*/}" ;; esac
done
same "block devices" "$(echo $devices | wc -w)" 2

round=0
while [ $round -lt "$rounds" ]; do
    round=$((round + 1))
    step "round $round"
    jobs=
    for device in $devices; do
        fio --name=verify --filename="$device" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --blockalign=4k --size=64M \
            --verify=crc32c --verify_backlog=256 --verify_fatal=1 --randseed="$((seed + round))" --time_based --runtime=15 --rate_iops=300 \
            --output="/tmp/fio-${device##*/}" --minimal &
        jobs="$jobs $!"
    done
    sleep 3
    # What the kernel believes while the node is away.
    (while :; do states; echo; sleep 0.2; done) >/tmp/states 2>/dev/null &
    sampler=$!
    event loaded
    await killed
    for job in $jobs; do
        wait "$job" || fail "fio: $(cat /tmp/fio-*) $(dmesg | tail -20)"
    done
    await_states " 2 non-optimized; 2 optimized;"
    kill $sampler
    sort /tmp/states | uniq -c
    # The dead node's paths stay in the list with what was said of them last, or are not there.
    grep -q -e '^ 1 non-optimized; 3 optimized;$' -e '^ 2 optimized;$' /tmp/states || fail "the takeover was not announced"
done

nvme disconnect -n "$nqn"
dmesg | grep -i nvme
dmesg | grep -i -e 'I/O error' -e 'nvme.*\(bug\|mismatch\|invalid\)' >/tmp/errors && fail "the kernel complains: $(cat /tmp/errors)"
exit 0
