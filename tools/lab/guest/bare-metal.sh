# A machine of the guide for NVMe drives: types what the page says, when the lab says so. What Debian has and this guest has not is here, by stand-ins: a boot
# loader's settings, scp without keys, systemctl, and a fence agent whose switch is reached.
# The first process' shell has applets of its own, and takes none of these.
[ -n "${dash:-}" ] || dash=yes exec /bin/dash -eu "$0"
export dash
. /lab/lib.sh
. /lab/settings

step "a machine as Debian leaves it"
mount_own() { mount -t ext4 "$(echo /dev/vd?)" /mnt; }
mkdir -p /etc/default /etc/modules-load.d /etc/systemd/system /usr/local/bin /usr/sbin
if mount_own 2>/dev/null; then
    # The file system in memory is new at each boot.
    rm /etc/mtab # busybox copies over no link
    cp -a /mnt/keep/. /
else
    mkfs.ext4 -q -E nodiscard /dev/vd?
    mount_own
    mkdir -p /mnt/var/lib /mnt/keep
    cp -a /source /mnt/
    mkdir -p /mnt/source/target/release
    echo 'GRUB_CMDLINE_LINUX="quiet"' >/etc/default/grub
    printf 'root:x:0:0::/root:/bin/sh\n' >/etc/passwd
    printf 'root:x:0:\ndisk:x:6:\n' >/etc/group
    printf 'root:*:1::::::\n' >/etc/shadow
    printf 'SYS_UID_MIN 100\nSYS_UID_MAX 999\nSYS_GID_MIN 100\nSYS_GID_MAX 999\n' >/etc/login.defs
fi
ln -s /mnt/var /var
mv /bin/twinlog /mnt/source/target/release/
mkdir -p "/lib/modules/$(uname -r)"
cp /lab/available/* "/lib/modules/$(uname -r)/"
depmod
export PATH=/usr/local/bin:$PATH
# systemd's, and so a login's.
ulimit -l 8192

place=$((number + 1))
[ "$name" != third ] || place=9
for network in 192.0.2 198.51.100 203.0.113; do ip addr add $network.$place/24 dev eth1; done
ip link set eth1 up

# stand_in NAME: the program that follows.
stand_in() {
    { echo "#!/bin/sh"; cat; } >"/usr/local/bin/$1"
    chmod 755 "/usr/local/bin/$1"
}
stand_in systemctl </lab/systemctl
stand_in update-grub <<'END'
exec sed -n 's/^GRUB_CMDLINE_LINUX="\(.*\)"$/\1/p' /etc/default/grub >/mnt/command-line
END
stand_in reboot <<'END'
mkdir -p /mnt/keep/usr
cp -a /etc /mnt/keep/
cp -a /usr/local /mnt/keep/usr/
sync
echo "reboot $(cat /mnt/command-line)" >&3
sleep 1000
END
stand_in fence_ipmilan <<'END'
options=$(cat)
echo "$options"
echo "$options" | grep -qx action=monitor && echo "$options" | grep -qx "ip=$(cat /tmp/switch)"
END
# Each machine's agent reaches the other one's switch.
[ "$name" = third ] || echo "192.0.2.7$((2 - number))" >/tmp/switch
stand_in receive <<'END'
tar -x -o -C / && echo stored
END
stand_in scp <<'END'
for target; do :; done
machine=${target%%:*}
path=${target#*:}
case $machine in
    second) address=192.0.2.2 ;;
    third) address=192.0.2.9 ;;
    *) exit 1 ;;
esac
rm -rf /tmp/scp
mkdir -p "/tmp/scp${path%/*}"
while [ $# -gt 1 ]; do
    to=$path
    case $path in */) to=$path${1##*/} ;; esac
    cp "$1" "/tmp/scp$to"
    chmod "$(stat -c %a "$1")" "/tmp/scp$to"
    shift
done
cd /tmp/scp
# Without folders, which have modes of their own there.
[ "$(tar -c $(find . -type f) | nc "$address" 7022)" = stored ]
END
nc -ll -p 7022 -e /usr/local/bin/receive &

# What cannot be seen from outside.
journal() { tail -n 30 /tmp/journal-* 2>/dev/null || true; }
trap journal EXIT
# fail WORDS [FILE]: of what is printed the lab shows the end, so that what failed comes last.
fail() {
    journal
    trap - EXIT
    [ -z "${2:-}" ] || cat "$2"
    echo "FAILED: $1"
    exit 1
}

node=a
[ "$name" = first ] || node=b
admin=/run/twinlog-$node/admin.sock
drives=$(sed -n 's/^twinlog device bind \([^ ]*\) .*/\1/p' /lab/steps/* | sort -u)
# says FILE WORDS: a line of it.
says() { grep -q "$2" "$1" || fail "'$2' is not said" "$1"; }

cd /mnt/source
event ready
while read -r word number <&3; do
    step "the lab says: $word $number"
    case $word in
        type)
            cat "/lab/steps/$number"
            . "/lab/steps/$number"
            word=typed
            ;;
        is-bare)
            target/release/twinlog doctor >/tmp/said
            says /tmp/said '^optional  iommu  *none active'
            # QEMU's processor is AMD's by name, whatever its IOMMU is.
            says /tmp/said 'switch on IOMMU (AMD-Vi)'
            says /tmp/said '^optional  vfio-pci  *missing: vfio-pci, vfio_iommu_type1, /dev/vfio/vfio'
            ;;
        has-iommu)
            twinlog doctor >/tmp/said
            says /tmp/said '^ok  *iommu  *1 active'
            says /tmp/said '^optional  vfio-pci  *missing'
            ;;
        has-vfio)
            twinlog doctor >/tmp/said
            says /tmp/said '^ok  *vfio-pci'
            ;;
        has-drives)
            twinlog device list >/tmp/said
            for drive in $drives; do
                says /tmp/said "^$drive .*vfio-pci"
            done
            for group in /dev/vfio/[0-9]*; do same "the owner of $group" "$(stat -c %U "$group")" twinlog; done
            same groups "$(echo /dev/vfio/[0-9]* | wc -w)" 2
            ;;
        is-private)
            key=/etc/twinlog/pair.key
            [ "$name" != third ] || key=/var/lib/twinlog/ab.key
            same "owner and mode of $key" "$(stat -c '%U:%G %a' "$key")" "twinlog:twinlog 600"
            ;;
        is-made)
            for file in log-$node mirror-$([ $node = a ] && echo b || echo a); do
                same "the owner of $file" "$(stat -c %U "/var/lib/twinlog/$file")" twinlog
            done
            ;;
        serves | is-in-step)
            for try in $(seq 300); do
                ! twinlog status --admin "$admin" >/tmp/said 2>&1 || break
                sleep 1
            done
            cat /tmp/said
            says /tmp/said "^OK"
            same "who serves" "$(stat -c %U "/proc/$(cat /run/twinlog-$node/pid)")" twinlog
            ;;
        keeps-drives)
            for drive in $drives; do
                code=0
                twinlog device unbind "$drive" >/tmp/said 2>&1 || code=$?
                same "exit code" $code 4
                says /tmp/said "in use by process"
            done
            ;;
        end) break ;;
        *) fail "what is '$word'?" ;;
    esac
    event "$word"
done
