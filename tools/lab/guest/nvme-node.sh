# A node inside the guest, with its pool on the controller with the serial `controller`, which it drives itself. The power is cut whenever the lab wants.
. /lab/lib.sh
. /lab/settings
. /lab/node.sh
pool="nvme:$controller"
more=
if [ "$first" = no ]; then more="$pool/2"; fi
configure file "$(by_serial log)" "$pool" $more
until twinlog device list | grep -q "^$controller "; do sleep 0.1; done
step "what is not bound is refused"
fails "twinlog device bind $controller" twinlog pool check --config $config
step "bind"
twinlog device bind $controller
twinlog doctor --config $config || [ $? = 3 ]
if [ "$first" = yes ]; then
    # By its path: the shell has an applet of that name.
    user="/bin/setpriv --reuid 990 --regid 990 --clear-groups"
    step "a user who may not open it"
    fails "Permission denied" $user twinlog pool check --config $config
    fails "twinlog device bind $controller --user" $user twinlog pool check --config $config
    step "a user who may not lock memory"
    twinlog device bind $controller --user twinlog
    ulimit -l 64
    fails "LimitMEMLOCK=infinity" $user twinlog pool check --config $config
    ulimit -l unlimited
    step "another controller in its place"
    record=$(ls /run/twinlog/devices/*.json)
    cp "$record" /tmp/record
    sed "s/$controller/EXCHANGED/" /tmp/record >"$record"
    sed "s/$controller/EXCHANGED/" $config >/tmp/other.toml
    fails "is $controller, and not EXCHANGED: it was exchanged" twinlog pool check --config /tmp/other.toml
    cp /tmp/record "$record"
    step create
    twinlog pool create --config $config
    step "what holds a pool is not made anew; a node ends and leaves the controller to the next"
    fails "holds a device of pool a" twinlog pool create --config $config
    start
    kill $node
    wait $node || fail "the node did not end well"
else
    step "check before recovery"
    twinlog log verify --config $config
    twinlog pool check --config $config
    twinlog inspect --config $config
fi
step serve
start
if [ "$first" = yes ]; then
    twinlog pool grow "$pool/2" --admin $admin
    twinlog volume create vol-a 24MiB --admin $admin
else
    twinlog pool check --admin $admin
fi
cat /tmp/status
fails "another process has it" twinlog pool check --config $config
event serving
wait $node || fail "the node ended"
