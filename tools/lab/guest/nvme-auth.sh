# The kernel's NVMe/TCP initiator and its secrets: in-band authentication, right, wrong and in both directions.
. /lab/lib.sh
. /lab/settings

connect() { nvme connect -t tcp -a $host -s "$port" -n "$nqn" -i 2 --keep-alive-tmo=60 "$@"; }
disconnect() { nvme disconnect -n "$nqn"; }
# refused WHAT OPTION...: the connection must fail, and leave no controller.
refused() {
    what=$1 && shift
    connect "$@" 2>/tmp/refusal && fail "connected $what"
    cat /tmp/refusal
    for try in $(seq 50); do
        [ -z "$(ls /sys/class/nvme)" ] && return
        sleep 0.1
    done
    fail "a controller is left $what"
}
# works: the namespace can be written and read.
works() {
    for try in $(seq 100); do
        for folder in /sys/block/nvme*; do
            case ${folder##*/} in *c*) continue ;; esac
            [ -b "/dev/${folder##*/}" ] && device=/dev/${folder##*/} && break 2
        done
        sleep 0.1
    done
    dd if=/dev/urandom of=/tmp/pattern bs=64k count=1 2>/dev/null
    dd if=/tmp/pattern of="$device" bs=64k count=1 oflag=direct 2>/dev/null || fail "not written"
    dd if="$device" of=/tmp/read bs=64k count=1 iflag=direct 2>/dev/null || fail "not read"
    cmp /tmp/pattern /tmp/read || fail "something else was read"
}

step "without a secret"
nqn=$(nvme discover -t tcp -a $host -s "$port" | sed -n 's/^subnqn: *\(.*:uuid:.*\)$/\1/p' | head -1)
refused "without a secret"

step "with a wrong secret"
refused "with a wrong secret" --dhchap-secret="$wrong"

step "with the right one"
connect --dhchap-secret="$secret"
works
disconnect

step "in both directions"
connect --dhchap-secret="$secret" --dhchap-ctrl-secret="$controller"
works
disconnect

step "a controller that does not know its secret"
refused "to a controller with another secret" --dhchap-secret="$secret" --dhchap-ctrl-secret="$wrong"

step "removed while it is connected"
connect --dhchap-secret="$secret"
works
event connected
await removed
state=/sys/class/nvme/$(cd /sys/class/nvme && echo nvme*)/state
for try in $(seq 100); do
    [ "$(cat "$state" 2>/dev/null)" = live ] || break
    sleep 0.1
done
[ "$(cat "$state" 2>/dev/null)" = live ] && fail "it is still connected"
disconnect
dmesg | grep -i nvme
dmesg | grep -q 'authenticated' || fail "the kernel did not authenticate: nothing was tested"
exit 0
