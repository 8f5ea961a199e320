#!/bin/bash
# fetch-kernel.sh FOLDER: Debian's cloud kernel and the few modules that the guest loads, unpacked without installing anything.
# Leaves FOLDER/vmlinuz, FOLDER/version, FOLDER/initramfs/*.ko and FOLDER/system/*.ko (in load order, by number).
set -euo pipefail
folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The package linux-image-cloud-amd64 is empty and depends on the real one, whose name holds the version.
kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}
package=$(kernel_package)
if [ -z "$package" ]; then
  apt-get update -q -o DPkg::Lock::Timeout=400
  package=$(kernel_package)
fi
[ -n "$package" ] || { echo "No package linux-image-cloud-amd64 is known to apt" >&2; exit 1; }

# apt drops its rights to the user _apt, who must be able to write here.
chmod 755 "$work"
cd "$work"
apt-get download -q "$package" || { apt-get update -q -o DPkg::Lock::Timeout=400 && apt-get download -q "$package"; }
dpkg-deb -x ./*.deb unpacked

version=$(basename unpacked/lib/modules/*)
modules=unpacked/lib/modules/$version/kernel
mkdir -p "$folder/initramfs" "$folder/system"
cp "unpacked/boot/vmlinuz-$version" "$folder/vmlinuz"

# `virtio` before its ring fails; the order is the one that works.
keep() {
  local into=$1 number=10 module
  shift
  for module in "$@"; do
    cp "$modules/$module.ko" "$folder/$into/$number-$(basename "$module").ko"
    number=$((number + 1))
  done
}
keep initramfs drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_modern_dev \
  drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci drivers/block/virtio_blk
# Power-down by ACPI needs the button and the event device.
keep system net/core/failover drivers/net/net_failover drivers/net/virtio_net drivers/acpi/button drivers/input/evdev
echo "$version" >"$folder/version"
