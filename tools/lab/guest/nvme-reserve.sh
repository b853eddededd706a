# Two hosts of the kernel's NVMe/TCP initiator, each with a path to each node of a pair, and a reservation that is the same over all of them: while the node that
# serves the namespace dies, and when it has come back.
. /lab/lib.sh
. /lab/nvme.sh
. /lab/settings

# once COMMAND...: what it says goes to `said`. A change over the node that does not serve may be refused once with a path error, and the kernel does not repeat what
# comes from the tools.
once() {
    for try in $(seq 5); do
        said=$("$@" 2>&1) && return
        echo "$said"
        case $said in *"Internal Path Error"*) ;; *) return 1 ;; esac
    done
    return 1
}
performed() { once "$@" || fail "$*"; }
refused() {
    once "$@" && fail "$* was performed"
    case $said in *"Reservation Conflict"*) ;; *) fail "$*" ;; esac
}
# paths NODE...: of both hosts to these nodes, as one_a, two_a, one_b and two_b.
paths() {
    for node; do
        address=$first
        [ "$node" = a ] || address=$second
        # Each alone, so that a path that is not there ends the script.
        found=$(path_of "$own" "$address")
        eval "one_$node=$found"
        found=$(path_of "$other" "$address")
        eval "two_$node=$found"
    done
}
# agree FIELD=VALUE...: what the report says at both nodes.
agree() {
    for path in "$one_a" "$one_b" "$two_a" "$two_b"; do reserved "$path" "$@"; done
}
# only HOST NODE...: of both hosts this one may write, over these nodes. Both may read.
only() {
    writer=$1
    shift
    for node; do
        for name in one two; do
            eval "path=\$${name}_$node"
            read_as "$path"
            if [ $name = "$writer" ]; then performed write_as "$path"; else refused write_as "$path"; fi
        done
    done
}

step network
pair_networks
dd if=/dev/urandom of=/tmp/pattern bs=4k count=1 2>/dev/null

step "two hosts, two paths each"
nvme discover -t tcp -a "$first" -s "$port" >/tmp/discovered
nqn=$(sed -n 's/^subnqn: *\(.*:uuid:.*\)$/\1/p' /tmp/discovered | head -1)
own=$(cat /etc/nvme/hostnqn)
for address in "$first" "$second"; do
    connect_as "$own" "$(cat /etc/nvme/hostid)" "$address"
    connect_as "$other" "$other_id" "$address"
done
paths a b
namespace=$(nvme list-ns "$one_a" | sed 's/.*://')
echo "node a serves namespace $namespace; hosts at a: $one_a $two_a, at b: $one_b $two_b"

step "each registers at another node, and one reserves over the node that forwards"
performed nvme resv-register "$one_a" -n "$namespace" --nrkey=0xa1 --rrega=0 --cptpl=3
performed nvme resv-register "$two_b" -n "$namespace" --nrkey=0xa2 --rrega=0 --cptpl=3
performed nvme resv-acquire "$one_b" -n "$namespace" --crkey=0xa1 --rtype=1 --racqa=0
agree gen=2 rtype=1 regctl=2 ptpls=1
only one a b

step "node a dies, and its partner knows the reservation"
event reserved
await "taken over"
paths b
reserved "$one_b" gen=2 rtype=1 regctl=2 ptpls=1
reserved "$two_b" gen=2 rtype=1 regctl=2 ptpls=1
only one b
step "it is back, and so is its pool"
event seen
await back
paths a b
agree gen=2 rtype=1 regctl=2 ptpls=1
only one a b

step "the other host preempts, over the node that forwards"
performed nvme resv-acquire "$two_b" -n "$namespace" --crkey=0xa2 --prkey=0xa1 --rtype=1 --racqa=1
agree gen=3 rtype=1 regctl=1
only two a b
for path in "$one_a" "$one_b"; do told_of_preemption "$path"; done

step "node a dies again, and the preempted host stays out"
event preempted
await "taken over"
paths b
only two b
reserved "$two_b" gen=3 rtype=1 regctl=1
performed nvme resv-release "$two_b" -n "$namespace" --crkey=0xa2 --rtype=1 --rrela=0
performed nvme resv-release "$two_b" -n "$namespace" --crkey=0xa2 --rrela=1
event released
await back
paths a b
agree gen=4 rtype=0 regctl=0
for path in "$one_a" "$one_b" "$two_a" "$two_b"; do performed write_as "$path"; done

nvme disconnect -n "$nqn"
[ -z "$(ls /sys/class/nvme)" ] || fail "a controller is left: $(ls /sys/class/nvme)"
exit 0
