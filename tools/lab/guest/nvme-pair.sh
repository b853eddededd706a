# A node of a pair on two machines: its pools on the namespaces of one controller, which both machines reach, its log and its mirror on an NVDIMM. It does what
# the lab says, until its power is cut.
. /lab/lib.sh
. /lab/settings
. /lab/node.sh

ip addr add "$address/24" dev eth1
ip link set eth1 up
disk=$(echo /dev/pmem*)
if [ "$first" = yes ]; then
    step "make a namespace on the NVDIMM"
    ndctl create-namespace --force --reconfig namespace0.0 --mode fsdax --map mem
    disk=$(echo /dev/pmem*)
    mkfs.ext4 -q -b 4096 "$disk"
fi
mount -t ext4 -o dax=always "$disk" /mnt
cp /lab/pair.key /run/pair.key
chmod 600 /run/pair.key

configure pmem /mnt/log "nvme:$controller/$own"
cat >>$config <<END
[pair]
partner = "$partner"
tcp = ["$address:7116"]
partner_tcp = ["$partner_address:7116"]
allow_remote = true
encrypt = true
key = "/run/pair.key"
witness = "$host:$witness"
deadline_ms = 3000
giveback_after_s = 1
request_wait_s = 120
fence = ["command"]
fence_command = ["/bin/sh", "/lab/fence.sh"]
fence_limit_s = 120
[partner_pool]
name = "$partner"
devices = ["nvme:$controller/$theirs"]
[mirror]
backend = "pmem"
path = "/mnt/mirror"
size = "16MiB"
END
until twinlog device list | grep -q "^$controller "; do sleep 0.1; done
step bind
twinlog device bind $controller
if [ "$first" = yes ]; then
    step "a fence that does not fence is refused"
    sed 's/^fence = .*/fence = ["lease"]/; /^fence_command/d' $config >/run/unsafe.toml
    fails "may land after the takeover" twinlog doctor --config /run/unsafe.toml
    step "reservations, which this controller does not know"
    twinlog pair create --config $config
    event created
    await serve
    sed 's/^fence = .*/fence = ["reservation"]/; /^fence_command/d' $config >/run/reserve.toml
    fails "knows no reservations" twinlog serve --config /run/reserve.toml
fi
twinlog doctor --config $config || [ $? = 3 ]
step serve
launch
event serving

# shows POOL ROW: waits until that is decided about the pool.
shows() {
    until twinlog pair explain --admin $admin >/tmp/explain 2>&1 && grep -q "^pool $1: $2\$" /tmp/explain; do
        kill -0 $node 2>/dev/null || fail "the node ended"
        sleep 0.5
    done
    cat /tmp/explain
}
while read -r word <&3; do
    step "the lab says: $word"
    case $word in
        volume) twinlog volume create vol-a 8MiB --admin $admin ;;
        in-step) shows $name "in sync" && shows "$partner" "standby, in sync" ;;
        has-taken-over) shows "$partner" alone ;;
        check) twinlog pool check --admin $admin ;;
        *) fail "what is '$word'?" ;;
    esac
    event "$word"
done
