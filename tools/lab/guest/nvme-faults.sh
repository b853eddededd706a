# A node inside the guest with two reactors, its pool on the controller with the serial `controller`. The lab does things to the controller's disk, and says
# what the node is to do.
. /lab/lib.sh
. /lab/settings
. /lab/node.sh
reactors=2
memory=128MiB
configure file "$(by_serial log)" "nvme:$controller"

bind() {
    until twinlog device list | grep -q "^$controller "; do sleep 0.1; done
    twinlog device bind "$controller"
}

# stop: ends the node, whose pool may have stopped before: not with a signal, nor with a panic.
stop() {
    kill $node
    code=0
    wait $node || code=$?
    [ $code -lt 100 ] || fail "the node ended with $code"
}

# begin: starts the node. It says what confines the controller, and has opened that and nothing else; with a kernel that has IOMMUFD, it is that.
begin() {
    start
    by="VFIO's container" opened=/dev/vfio/vfio other=/dev/iommu
    [ -z "${iommufd:-}" ] || by=IOMMUFD opened=/dev/iommu other=/dev/vfio/vfio
    grep -q "nvme:$controller .*durable writes by flush; confined by $by$" /tmp/status || fail "no '$by': $(cat /tmp/status)"
    ls -l "/proc/$node/fd" >/tmp/files
    grep -q "$opened$" /tmp/files || fail "it has not opened $opened: $(cat /tmp/files)"
    grep -q "$other$" /tmp/files && fail "it has opened $other: $(cat /tmp/files)"
    step "the node's controller is confined by $by"
}

bind
twinlog pool create --config $config
begin
for volume in vol-a vol-b; do twinlog volume create $volume 24MiB --admin /run/admin.sock; done
cat /tmp/status
event serving
while read -r word <&3; do
    step "lab: $word"
    case $word in
        status)
            kill -0 $node || fail "the node ended"
            twinlog status -x --admin /run/admin.sock >/tmp/status 2>&1 || true
            cat /tmp/status
            event "status $(tr '\n' ' ' </tmp/status)"
            ;;
        interrupts)
            cat /proc/interrupts
            event "interrupts $(awk '/vfio-msix/ { for (field = 2; field <= 3; field++) sum += $field } END { print sum + 0 }' /proc/interrupts)"
            ;;
        scrub)
            twinlog pool scrub --admin /run/admin.sock || true
            event scrubbed
            ;;
        restart)
            stop
            begin
            event restarted
            ;;
        stop)
            stop
            event stopped
            ;;
        start)
            bind
            begin
            event started
            ;;
        end) break ;;
        *) fail "what is $word?" ;;
    esac
done
stop
