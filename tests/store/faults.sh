#!/bin/bash
# What a store promises when the disk is full and when the power goes. As root, on Linux:
#   tests/store/faults.sh DRIVER [ROUNDS]       DRIVER: target/debug/store-driver
# power: acknowledged chunks are whole after the file system lost all that was not synced.
# failed: a write that the kernel refuses ends all writes, reads go on, a restart heals.
# full:  a full disk is told, what was acknowledged stays readable, and a start afterwards works.
set -euo pipefail
driver=$(realpath "${1:?the store-driver program}") rounds=${2:-3}
work=$(mktemp -d) mnt=$work/mnt
mkdir "$mnt"
trap 'umount -l "$mnt" 2>/dev/null || true; rm -rf "$work"' EXIT

power_cut() { # ROUND
    local from=$(($1 * 100000)) want=$((20 * $1)) pid
    mkfifo "$work/acks.$1"
    "$driver" put "$mnt/store" "$from" $((from + 90000)) $((1000 + 37000 * ($1 % 4))) \
        >"$work/acks.$1" 2>"$work/err.$1" &
    pid=$!
    # The cut comes after so many acknowledgements, wherever the writer is then.
    { for _ in $(seq "$want"); do read -r line && echo "$line"; done >>"$work/acked"
      "$driver" cut "$mnt"
      cat >>"$work/acked"; } <"$work/acks.$1"
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    umount "$mnt" 2>/dev/null || umount -l "$mnt"
    mount -o loop "$work/disk" "$mnt"
    echo -n "power cut $1: "
    "$driver" check "$mnt/store" <"$work/acked"
}

truncate -s 1g "$work/disk"
mkfs.ext4 -qF "$work/disk"
mount -o loop "$work/disk" "$mnt"
for round in $(seq "$rounds"); do power_cut "$round"; done
rm -rf "$mnt/store/index"
echo -n "without an index: "
"$driver" check "$mnt/store" <"$work/acked"

# A file size limit refuses a write in the middle of a group, as a dying disk would.
if (trap '' XFSZ; ulimit -f 100000; exec "$driver" put "$mnt/limited" 0 500 1000000) \
    >"$work/acked.limit" 2>"$work/err.limit"; then
    echo "a refused write was called good"; exit 1
fi
grep -q '^status: the store takes no writes since .*cannot append to' "$work/err.limit" ||
    { cat "$work/err.limit"; exit 1; }
echo -n "after a write that failed: "
"$driver" check "$mnt/limited" <"$work/acked.limit"
umount "$mnt"

mount -t tmpfs -o size=64m tmpfs "$mnt"
if "$driver" put "$mnt/store" 0 500 300000 >"$work/acked.full" 2>"$work/err.full"; then
    echo "64 MiB took 150 MB"; exit 1
fi
grep -q 'the store is full: ' "$work/err.full" || { cat "$work/err.full"; exit 1; }
echo -n "full disk, told before it was: "
"$driver" check "$mnt/store" <"$work/acked.full"

# Another program takes the rest while the store writes: now the disk itself refuses.
umount "$mnt"
mount -t tmpfs -o size=64m tmpfs "$mnt"
mkfifo "$work/acks.race"
# More than the disk has, so that it is full also where the other program comes late.
"$driver" put "$mnt/store" 0 2000 100000 >"$work/acks.race" 2>"$work/err.race" &
{ for _ in $(seq 30); do read -r line && echo "$line"; done >"$work/acked.race"
  dd if=/dev/zero of="$mnt/other" bs=4096 2>/dev/null || true
  cat >>"$work/acked.race"; } <"$work/acks.race"
wait $! && { echo "a full disk took everything"; exit 1; }
rm "$mnt/other"
echo "full disk, by another program: $(tail -n 1 "$work/err.race")"
echo -n "after that: "
"$driver" check "$mnt/store" <"$work/acked.race"
