# Stands in for systemctl in a guest without systemd: starts and stops the service of a unit as the unit and its drop-ins say, with the same user, groups, limits
# and folders. What a unit confines its service with is not done. What is known neither as the one nor as the other is refused.
set -eu
folder=/etc/systemd/system
action=$1
case $action in
    daemon-reload) exit 0 ;;
    enable)
        [ "$2" = --now ]
        action=start
        shift
        ;;
esac
unit=$2
case $unit in
    *@*)
        file=$folder/${unit%%@*}@.service
        instance=${unit#*@}
        ;;
    *)
        file=$folder/$unit.service
        instance=
        ;;
esac
main=/tmp/main-$unit
if [ "$action" = stop ]; then
    pid=$(cat "$main")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    exit 0
fi
[ "$action" = start ]
settings=/tmp/unit-$unit
cat "$file" "$file".d/*.conf 2>/dev/null | sed "s/%i/$instance/g; /^#/d; /^\[/d; /^$/d" >"$settings" || [ -s "$settings" ]

user=root group=root groups= nofile=1024 memlock=8192 mode=755 runtime= runtime_mode=755
command=
while IFS='=' read -r key value; do
    case $key in
        User) user=$value ;;
        Group) group=$value ;;
        SupplementaryGroups) groups=$value ;;
        RuntimeDirectory) runtime=$value ;;
        RuntimeDirectoryMode) runtime_mode=$value ;;
        StateDirectory) state=$value ;;
        StateDirectoryMode) mode=$value ;;
        LimitNOFILE) nofile=$value ;;
        LimitMEMLOCK) memlock=$(echo "$value" | sed s/infinity/unlimited/) ;;
        ExecStartPre) case $value in +/*) ${value#+} ;; *) exit 1 ;; esac ;;
        ExecStart) command=$value ;;
        Type) [ "$value" = exec ] ;;
        Description | Documentation | Wants | After | WantedBy | StartLimitIntervalSec | Restart | RestartSec | RestartPreventExitStatus | KillSignal | TimeoutStopSec) ;;
        OOMScoreAdjust | NoNewPrivileges | Protect* | Private* | Restrict* | LockPersonality | MemoryDenyWriteExecute) ;;
        *)
            echo "systemctl: what is '$key=$value'?"
            exit 1
            ;;
    esac
done <"$settings"
[ -z "$runtime" ] || install -d -o "$user" -g "$group" -m "$runtime_mode" "/run/$runtime"
install -d -o "$user" -g "$group" -m "$mode" "/var/lib/$state"
ulimit -l "$memlock"
ulimit -n "$nofile"
cd /
groups="${groups:+--groups $groups}"
/bin/setpriv --reuid "$user" --regid "$group" ${groups:---clear-groups} --no-new-privs $command >"/tmp/journal-$unit" 2>&1 </dev/null 3<&- &
echo $! >"$main"
