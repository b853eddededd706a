# An NVMe controller without an IOMMU: VFIO is refused with its remedy, uio_pci_generic works for root.
. /lab/lib.sh

step "VFIO is refused"
code=0
said=$(twinlog device bind LAB0 2>&1) || code=$?
echo "$said"
same "exit code" $code 4
case $said in *AMD-Vi* | *intel_iommu=on*) ;; *) fail "the remedy is missing" ;; esac

step "uio, labelled unsafe"
twinlog device bind LAB0 --driver uio_pci_generic | tee /tmp/said
grep -q UNSAFE /tmp/said || fail "it is not called unsafe"
twinlog device list | tee /tmp/said
grep -q UNSAFE /tmp/said || fail "it is not called unsafe"
address=$(twinlog device bind LAB0 --driver uio_pci_generic -o jsonl | sed -n 's/.*"address":"\([^"]*\)".*/\1/p')

step "the function"
twinlog-lab guest pci "$address" --serial LAB0 --uio --confined-by nothing
twinlog-lab guest pci "$address" --serial LAB0 --uio --confined-by nothing --forever /tmp/busy &
driver=$!
until [ -e /tmp/busy ]; do kill -0 $driver || fail "the driver ended"; sleep 0.1; done
code=0
twinlog device unbind LAB0 || code=$?
same "exit code while it is driven" $code 4
kill -9 $driver
wait $driver || true
twinlog-lab guest pci "$address" --serial LAB0 --uio --confined-by nothing

step "the NVMe driver: what every block device must do"
twinlog-lab guest nvme "$address" --serial LAB0 --uio --confined-by nothing

step "back to the kernel"
twinlog device unbind LAB0
[ -e /sys/class/nvme/nvme0 ] || fail "the kernel does not have it"
twinlog device list
