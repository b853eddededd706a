# A fence agent: the lab is the machines' power switch. Reads options as fence agents do, and ends with 0 only when the lab says that the machine is off.
. /lab/settings
while IFS='=' read -r key value; do
    case $key in
        action) action=$value ;;
        plug) plug=$value ;;
    esac
done
said=$(echo "$action $plug" | nc 10.0.2.2 "$switch")
echo "the switch said '$said'"
[ "$said" = done ]
