# A node inside the guest, on the guest's disks. The power is cut whenever the lab wants.
. /lab/lib.sh
. /lab/settings
. /lab/node.sh
serve file "$(by_serial log)"
