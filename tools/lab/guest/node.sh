# A node inside the guest; `first` says whether its pool has to be made.
config=/run/node.toml
admin=/run/admin.sock
name=${name:-a}
by_serial() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" = "$1" ] && echo "/dev/${disk##*/}"
    done
}

# What a node has.
reactors=1
memory=96MiB

# configure BACKEND PATH DEVICE...: the log there, the pool on the devices.
configure() {
    backend=$1
    path=$2
    shift 2
    devices=$(printf '"%s", ' "$@")
    cat >$config <<END
name = "$name"
admin = "$admin"
[nbd]
unix = ["/run/nbd.sock"]
tcp = ["0.0.0.0:10809"]
allow_remote = true
[reactors]
count = $reactors
[memory]
limit = "$memory"
[log]
backend = "$backend"
path = "$path"
size = "16MiB"
[pool]
name = "$name"
devices = [${devices%, }]
END
}

# launch: starts the node, and waits until it answers.
launch() {
    twinlog serve --config $config &
    node=$!
    until twinlog status --admin $admin >/tmp/status 2>&1 || [ $? = 3 ]; do
        kill -0 $node 2>/dev/null || fail "the node ended"
        sleep 0.2
    done
}

# start: the same, until it serves.
start() {
    launch
    until twinlog status --admin $admin >/tmp/status 2>&1; do
        kill -0 $node 2>/dev/null || fail "the node ended"
        sleep 0.2
    done
    grep -q "durable on $backend" /tmp/status || fail "the log is not durable: $(cat /tmp/status)"
}

# serve BACKEND PATH [OPTION...]: makes, with the options, or checks the pool on the disk `pool` with its log there, and serves it until the power goes.
serve() {
    configure "$1" "$2" "$(by_serial pool)"
    shift 2
    if [ "$first" = yes ]; then
        step create
        twinlog pool create --config $config "$@"
    else
        step "check before recovery"
        twinlog log verify --config $config
        twinlog pool check --config $config
    fi
    step serve
    start
    if [ "$first" = yes ]; then
        twinlog volume create vol-a 24MiB --admin $admin
    else
        twinlog pool check --admin $admin
    fi
    event serving
    wait $node || fail "the node ended"
}
