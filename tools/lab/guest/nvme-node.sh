# A node inside the guest, with its pool on the controller with the serial `controller`, which it drives itself. The power is cut whenever the lab wants.
. /lab/lib.sh
. /lab/settings
config=/run/node.toml
# says WORD COMMAND...: the command must fail, and say WORD.
says() {
    word=$1
    shift
    said=$("$@" 2>&1) && fail "$* succeeded"
    echo "$said"
    case $said in *"$word"*) ;; *) fail "it did not say '$word'" ;; esac
}
by_serial() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" = "$1" ] && echo "/dev/${disk##*/}"
    done
}
serve() {
    twinlog serve --config $config &
    node=$!
    until twinlog status --admin /run/admin.sock >/tmp/status 2>&1; do
        kill -0 $node 2>/dev/null || fail "the node ended"
        sleep 0.2
    done
}
pool="nvme:$controller"
more=
if [ "$first" = no ]; then more=", \"$pool/2\""; fi
cat >$config <<EOF
name = "a"
admin = "/run/admin.sock"
[nbd]
unix = ["/run/nbd.sock"]
tcp = ["0.0.0.0:10809"]
allow_remote = true
[memory]
limit = "96MiB"
[log]
backend = "file"
path = "$(by_serial log)"
size = "16MiB"
[pool]
name = "a"
devices = ["$pool"$more]
EOF
until twinlog device list | grep -q "^$controller "; do sleep 0.1; done
step "what is not bound is refused"
says "twinlog device bind $controller" twinlog pool check --config $config
step "bind"
twinlog device bind $controller
twinlog doctor --config $config || [ $? = 3 ]
if [ "$first" = yes ]; then
    step create
    twinlog pool create --config $config
    step "what holds a pool is not made anew; a node ends and leaves the controller to the next"
    says "holds a device of pool a" twinlog pool create --config $config
    serve
    kill $node
    wait $node || fail "the node did not end well"
else
    step "check before recovery"
    twinlog log verify --config $config
    twinlog pool check --config $config
    twinlog inspect --config $config
fi
step serve
serve
if [ "$first" = yes ]; then
    twinlog pool grow "$pool/2" --admin /run/admin.sock
    twinlog volume create vol-a 24MiB --admin /run/admin.sock
else
    twinlog pool check --admin /run/admin.sock
fi
cat /tmp/status
says "another process has it" twinlog pool check --config $config
event serving
wait $node || fail "the node ended"
