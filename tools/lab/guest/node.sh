# A node inside the guest, with its pool on the disk `pool`; `first` says whether the pool has to be made.
config=/run/node.toml
by_serial() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" = "$1" ] && echo "/dev/${disk##*/}"
    done
}

# serve BACKEND PATH [OPTION...]: makes, with the options, or checks the pool with its log there, and serves it until the power goes.
serve() {
    backend=$1
    path=$2
    shift 2
    cat >$config <<END
name = "a"
admin = "/run/admin.sock"
[nbd]
unix = ["/run/nbd.sock"]
tcp = ["0.0.0.0:10809"]
allow_remote = true
[memory]
limit = "96MiB"
[log]
backend = "$backend"
path = "$path"
size = "16MiB"
[pool]
name = "a"
devices = ["$(by_serial pool)"]
END
    if [ "$first" = yes ]; then
        step create
        twinlog pool create --config $config "$@"
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
    grep -q "durable on $backend" /tmp/status || fail "the log is not durable: $(cat /tmp/status)"
    if [ "$first" = yes ]; then
        twinlog volume create vol-a 24MiB --admin /run/admin.sock
    else
        twinlog pool check --admin /run/admin.sock
    fi
    event serving
    wait $node || fail "the node ended"
}
