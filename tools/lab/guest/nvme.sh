# Functions for payloads whose guest is one or two NVMe/TCP hosts, of which each may have a path to each node of a pair. `$port` is the nodes', `$nqn` the
# subsystem's, `$first` and `$second` are the addresses of a pair's nodes; commands go to `$namespace`, and write what /tmp/pattern holds.

# field NAME FILE: what a field of an answer in JSON says, without spaces and quotes.
field() { tr -d '\t ,"' <"/tmp/$2" | sed -n "s/^$1://p" | head -1; }
# says FILE FIELD=VALUE...
says() {
    file=$1
    shift
    for wanted; do
        same "${wanted%%=*} in $file" "$(field "${wanted%%=*}" "$file")" "${wanted#*=}"
    done
}

# pair_networks: the guest's networks, of which each leads to one node of a pair.
pair_networks() {
    # Nodes are at addresses of the lab's loopback, each its own, and say so to hosts. Here none is this machine's.
    ip addr del 127.0.0.1/8 dev lo
    ip addr add 10.0.3.15/24 dev eth1
    ip link set eth1 up
    for device in eth0 eth1; do echo 1 >/proc/sys/net/ipv4/conf/$device/route_localnet; done
    ip route add "$first/32" via 10.0.2.2 dev eth0
    ip route add "$second/32" via 10.0.3.2 dev eth1
}

# connect_as HOST ID ADDRESS: as the tools do, which take a second host in one machine for the first one.
connect_as() {
    echo "transport=tcp,traddr=$3,trsvcid=$port,nqn=$nqn,hostnqn=$1,hostid=$2,nr_io_queues=1,reconnect_delay=1" >/dev/nvme-fabrics
}
# path_of HOST ADDRESS: the controller of the host of that name at that address, when it has its namespaces. What goes there goes to no other path.
path_of() {
    for try in $(seq 300); do
        for folder in /sys/class/nvme/nvme*; do
            [ "$(cat "$folder/hostnqn") $(cat "$folder/state")" = "$1 live" ] || continue
            grep -q "traddr=$2," "$folder/address" || continue
            ls "$folder" | grep -q '^nvme.*n' && echo "/dev/${folder##*/}" && return
        done
        sleep 0.1
    done
    fail "no path of $1 to $2: $(dmesg | tail -5)" >&2
}
write_as() { nvme io-passthru "$1" -o 1 -n "$namespace" -l 4096 -w -i /tmp/pattern; }
read_as() { nvme io-passthru "$1" -o 2 -n "$namespace" -l 4096 -r >/dev/null; }
# reserved PATH FIELD=VALUE...: what the report says there.
reserved() {
    nvme resv-report "$1" -n "$namespace" --eds -o json >/tmp/reservation
    shift
    says reservation "$@"
}
# told_of_preemption PATH: a registration of its host was preempted, says the log page there.
told_of_preemption() {
    nvme get-log "$1" --log-id=0x80 --log-len=64 -b >/tmp/notice
    same "the kind of notification" "$(dd if=/tmp/notice bs=1 skip=8 count=1 2>/dev/null | tr '\001' p)" p
}
