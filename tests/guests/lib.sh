# shellcheck shell=bash
# What `make vm` and `make xen` share: how they speak, and what guests are made of. Sourced, never run.
#
# Nothing here changes the machine: kernels and packages are downloaded by apt and unpacked below the cache, and a story
# works in a directory and namespaces of its own, which it removes.

# The networks of the house, as docs/admin-guide.md has them: app guests and the gateway share one, the base domain and the
# gateway the other. The base domain has an address on the first one for enrolment.
GATEWAY_ADDRESS=10.77.0.1:7070 ADMIN_ADDRESS=10.78.0.1:7071 ENROL_ADDRESS=10.77.0.2:7072
STORAGE_NET=10.77.0.1/24 STORAGE_ADMIN_NET=10.78.0.1/24
BASE_NET=10.77.0.2/24 BASE_ADMIN_NET=10.78.0.2/24
MAIL_NET=10.77.0.11/24 EDITOR_NET=10.77.0.12/24
# Where the story types in a guest; see guest-init.
TYPE_PORT=2323

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' green='' plain=''; fi
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s   %s%s\n' "$dim" "$*" "$plain"; }
prompt() { printf '%s%s#%s %s\n' "$green" "$1" "$plain" "${2//$'\n'/$'\n'> }"; }
die() { printf '\n%s: not as it should be: %s\n' "${STORY:-guests}" "$*" >&2; exit 1; }

# now: milliseconds. since T0: seconds with a decimal place.
now() { date +%s%3N; }
since() { local ms=$(($(now) - $1)); printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100)); }

# wait_until SECONDS WHAT COMMAND...: the seconds are a guard against hanging for ever, nothing else.
wait_until() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt "$limit" ] || die "waited in vain until $what"
    sleep 0.1
  done
}

need() {
  local one missing=()
  for one; do command -v "$one" >/dev/null 2>&1 || missing+=("$one"); done
  [ ${#missing[@]} = 0 ] || die "not on this machine: ${missing[*]} (tools/setup.sh build vm, or xen)"
}

# statically PROGRAM...: guests have no libraries of this machine.
statically() {
  local one
  for one; do
    [ -x "$one" ] || die "$one is missing: run it as make vm, or make xen"
    ! ldd "$one" 2>/dev/null | grep -q '=>' || die "$one is not linked statically"
  done
}

# package_of META: the package with the kernel that a Debian meta package stands for now.
package_of() { apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-image-[0-9]/ { print $2; exit }'; }

# kernel META DIR: downloads that kernel, unpacks it to DIR/tree, and takes DIR/vmlinux, the plain ELF file, out of its
# compressed image (Linux, scripts/extract-vmlinux), so that no guest has to decompress it, emulated. DIR/release is its name.
kernel() {
  local meta=$1 dir=$2 package
  package=$(package_of "$meta")
  [ -n "$package" ] || { apt-get update -q >/dev/null 2>&1 || true; package=$(package_of "$meta"); }
  [ -n "$package" ] || die "apt knows no package $meta"
  [ "$(cat "$dir/package" 2>/dev/null)" != "$package" ] || return 0
  say "getting the Debian kernel $package, once"
  local part=$dir.part
  rm -rf "$dir" "$part"
  mkdir -p "$part/deb" "$part/tree"
  (cd "$part/deb" && apt-get -q -o APT::Sandbox::User=root download "$package" >/dev/null) || die "cannot download $package"
  dpkg -x "$part"/deb/*.deb "$part/tree"
  rm -r "$part/deb"
  echo "${package#linux-image-}" >"$part/release"
  elf_of "$part/tree/boot/vmlinuz-${package#linux-image-}" "$part/vmlinux"
  busybox depmod -b "$part/tree" "${package#linux-image-}"
  echo "$package" >"$part/package"
  mv "$part" "$dir"
}

# elf_of IMAGE OUT: every place where a compressed stream may begin is tried, until an ELF file comes out.
elf_of() {
  local kind magic command place options
  for kind in 'xz:\xfd7zXZ\x00' 'lz4:\x02\x21\x4c\x18' 'zstd:\x28\xb5\x2f\xfd'; do
    command=${kind%%:*} magic=${kind#*:}
    command -v "$command" >/dev/null || continue
    for place in $(LC_ALL=C grep -aboP "$magic" "$1" | cut -d: -f1 | head -n 4); do
      options=(-dc)
      [ "$command" != xz ] || options+=(--single-stream)
      tail -c "+$((place + 1))" "$1" | "$command" "${options[@]}" >"$2" 2>/dev/null || true
      # e_ident (elf(5)), and larger than any stray stream.
      if [ "$(head -c 4 "$2" | od -An -tx1 | tr -d ' \n')" = 7f454c46 ] && [ "$(stat -c %s "$2")" -gt 10000000 ]; then return 0; fi
    done
  done
  die "no kernel was found in $1"
}

# modules KERNEL DEST NAME...: copies modules and what they need, as modules.dep says it.
modules() {
  local kernel=$1 dest=$2 release name line file
  release=$(cat "$kernel/release")
  shift 2
  local from=$kernel/tree/lib/modules/$release to=$dest/lib/modules/$release
  mkdir -p "$to"
  for name; do
    line=$(grep -E "(^|/)${name//[-_]/[-_]}\.ko(\.xz|\.zst)?:" "$from/modules.dep" | head -n 1 || true)
    if [ -z "$line" ]; then
      grep -qE "/${name//[-_]/[-_]}\.ko" "$from/modules.builtin" || die "kernel $release has no module $name"
      continue
    fi
    for file in ${line/:/ }; do install -D -m 644 "$from/$file" "$to/$file"; done
  done
  cp "$from"/modules.builtin "$from"/modules.builtin.modinfo "$from"/modules.order "$to/"
  busybox depmod -b "$dest" "$release"
}

# guest_tree DEST: what every guest's root has: busybox, and the first process.
guest_tree() {
  local dest=$1 applet
  mkdir -p "$dest"/{bin,sbin,usr/bin,etc/strongroom,proc,sys,dev,run,tmp,mnt,root,var/log,var/lib}
  install -m 755 "$(command -v busybox)" "$dest/bin/busybox"
  statically "$dest/bin/busybox"
  for applet in $("$dest/bin/busybox" --list); do [ "$applet" = busybox ] || ln -sfn busybox "$dest/bin/$applet"; done
  install -m 755 "$GUESTS/guest-init" "$dest/sbin/init"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$dest/etc/passwd"
  echo 'root:x:0:' >"$dest/etc/group"
}

# program TREE FROM TO: a program of Strongroom, and the libraries that it wants, if it is not linked statically.
program() {
  local library
  install -s -D -m 755 "$2" "$1$3"
  for library in $(ldd "$2" 2>/dev/null | grep -o '/[^ ]*' || true); do
    [ -e "$1$library" ] || { mkdir -p "$1${library%/*}" && cp -L "$library" "$1$library"; }
  done
}

# storage_tree DEST, app_tree DEST: the programs of that guest.
storage_tree() {
  guest_tree "$1"
  program "$1" "$BIN/strongroom-gateway" /usr/bin/strongroom-gateway
}
app_tree() {
  guest_tree "$1"
  program "$1" "$BIN/contract" /usr/bin/contract
  # rustc allows no dot in a program's name, and mount(8) wants one.
  program "$1" "$BIN/mount-strongroom" /sbin/mount.strongroom
}

# first_stage KERNEL DEST IMAGE NAME...: what guests with a disk of their own start from, with the modules that find it.
first_stage() {
  local kernel=$1 dest=$2 image=$3
  shift 3
  guest_tree "$dest"
  install -m 755 "$GUESTS/boot-init" "$dest/init"
  (cd "$dest" && rm -r sbin etc)
  modules "$kernel" "$dest" "$@" ext4
  cpio_of "$dest" "$image"
}
cpio_of() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"; }

# disk TREE IMAGE MIB: without a journal, so that what was synced can be read from an overlay as evidence.
disk() {
  local said
  chown -R 0:0 "$1"
  said=$(mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -E lazy_itable_init=1 -d "$1" "$2" "$3M" 2>&1) || die "no disk image can be made: $said"
  rm -r "$1"
}

# users_data DIR: a household's files: letters that look like letters, and what belongs to somebody else.
users_data() {
  local data=$1
  mkdir -p "$data"/users/alice/{Mail/{inbox,drafts},Photos/2026,Documents} "$data/users/bob/Documents"
  busybox awk -v dir="$data/users/alice/Mail/inbox" 'BEGIN {
    srand(7); words = split("the lease garden minutes train ticket winter kitchen meeting photo answer bicycle letter quiet", word, " ")
    for (n = 1; n <= 300; n++) {
      file = sprintf("%s/%03d.eml", dir, n)
      printf "From: carol@example.org\nTo: alice@example.org\nSubject: Letter %d\n\n", n > file
      for (line = 0; line < 20 + rand() * 60; line++) {
        text = ""; for (w = 0; w < 10; w++) text = text word[1 + int(rand() * words)] " "
        print text > file
      }
      close(file)
    }
  }'
  printf 'To: bob@example.org\nSubject: Re: Lunch\n\nYes.\n' >"$data/users/alice/Mail/drafts/1.eml"
  echo 'Photos go here; nothing that is here may be changed.' >"$data/users/alice/Photos/2026/README.txt"
  printf 'Dear Sir or Madam,\n\n' >"$data/users/alice/Documents/letter.txt"
  echo 'Nobody but me reads this.' >"$data/users/bob/Documents/diary.txt"
}

# house DIR SECONDS: keys, policies and configurations by `contract init`; the gateway's part is left in DIR/gateway.
house() {
  local dir=$1
  "$BIN/contract" init "$dir" --no-sample-policy --address "$GATEWAY_ADDRESS" --interface eth0 --network 10.77.0.0/24 \
    --admin "$ADMIN_ADDRESS" --admin-interface eth1 --admin-network 10.78.0.0/24 \
    --data /srv/strongroom --state /var/lib/strongroom >/dev/null 2>&1 || die "contract init failed"
  cp "$GUESTS"/policy.d/*.toml "$dir/policy.d/"
  sed -i "s/undo 20s/undo ${2}s/" "$dir/policy.d/mail.toml"
}
