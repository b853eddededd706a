# A node inside the guest, on the guest's disks. The power is cut whenever the lab wants.
. /lab/lib.sh
. /lab/settings
config=/run/node.toml
by_serial() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" = "$1" ] && echo "/dev/${disk##*/}"
    done
}
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
devices = ["$(by_serial pool)"]
EOF
if [ "$first" = yes ]; then
    step create
    twinlog pool create --config $config
else
    step "check before recovery"
    twinlog log verify --config $config
    twinlog pool check --config $config
fi
step serve
twinlog serve --config $config &
node=$!
until twinlog status --admin /run/admin.sock >/tmp/status 2>&1; do
    kill -0 $node 2>/dev/null || fail "the node ended"
    sleep 0.2
done
if [ "$first" = yes ]; then
    twinlog volume create vol-a 24MiB --admin /run/admin.sock
else
    twinlog pool check --admin /run/admin.sock
fi
event serving
wait $node || fail "the node ended"
