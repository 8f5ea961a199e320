#!/bin/bash
# build.sh KERNEL LEDGERD OUT: makes OUT/system.img (bootable, 96 MiB) and OUT/data.img (32 MiB), both sparse.
#
# No root, no mounts, no loop devices: the file systems are filled by mke2fs, the boot loader is laid into the gap before the
# first partition. The machine boots through its own boot loader from its own disk, as any machine that we protect.
set -euo pipefail
kernel=$(realpath "$1") ledgerd=$(realpath "$2") out=$3
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
busybox=/bin/busybox
system_mib=96 data_mib=32

make_initramfs() {
  local tree=$work/initramfs
  mkdir -p "$tree"/{bin,dev,proc,sys,mnt,modules}
  cp "$busybox" "$tree/bin/busybox"
  ln -s busybox "$tree/bin/sh"
  cp "$kernel"/initramfs/*.ko "$tree/modules/"
  install -m 755 "$here/files/initramfs-init" "$tree/init"
  (cd "$tree" && find . | LC_ALL=C sort | cpio --create --format=newc --owner=0:0 --reproducible --quiet | gzip -9n) >"$work/initrd"
}

make_system_tree() {
  local tree=$work/system command
  mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,tmp,run,etc/acpi/PWRF,boot/grub,var/ledger,var/log,data,modules,root}
  cp "$busybox" "$tree/bin/busybox"
  for command in $("$busybox" --list); do
    [ "$command" = busybox ] || ln -sf /bin/busybox "$tree/bin/$command"
  done
  ln -s /run "$tree/var/run"
  ln -s /bin/busybox "$tree/sbin/init"
  cp "$kernel"/system/*.ko "$tree/modules/"
  cp "$kernel/vmlinuz" "$work/initrd" "$tree/boot/"
  cp "$ledgerd" "$tree/bin/ledgerd"
  cp "$here/files/inittab" "$here/files/ledger.conf" "$tree/etc/"
  install -m 755 "$here/files/start" "$here/files/stop" "$tree/etc/"
  install -m 755 "$here/files/power-button" "$tree/etc/acpi/PWRF/00000080"
  cp "$here/files/grub.cfg" "$tree/boot/grub/"
}

make_system_image() {
  local image=$out/system.img
  # One self-contained core image; it must fit before the first partition at 1 MiB.
  grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -c "$here/files/grub-early.cfg" -o "$work/core.img" \
    biosdisk part_msdos ext2 linux normal configfile serial terminal echo
  [ "$(stat -c %s "$work/core.img")" -lt $((2047 * 512)) ]
  truncate -s "${system_mib}M" "$image"
  printf 'label: dos\nlabel-id: 0x4c454557\n2048,,83,*\n' | sfdisk -q "$image"
  dd if=/usr/lib/grub/i386-pc/boot.img of="$image" bs=440 count=1 conv=notrunc status=none
  dd if="$work/core.img" of="$image" bs=512 seek=1 conv=notrunc status=none
  # Features that older tools and GRUB do not know are left off.
  mke2fs -q -t ext4 -L LEDGERROOT -O ^metadata_csum_seed,^orphan_file -m 0 -J size=4 \
    -E offset=1048576,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$work/system" "$image" $((system_mib * 1024 - 1024))k
}

make_data_image() {
  truncate -s "${data_mib}M" "$out/data.img"
  mke2fs -q -t ext4 -L LEDGERDATA -O ^metadata_csum_seed,^orphan_file -m 0 -J size=4 \
    -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 "$out/data.img"
}

export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out"
make_initramfs
make_system_tree
make_system_image
make_data_image
