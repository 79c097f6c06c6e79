# shellcheck shell=bash
# `make vm DRIVER=libvirt`: the app guests are domains of a real libvirtd, which runs in the story's namespaces, keeps its state in
# the story's directory, and sees none of the machine's own. Sourced by vm.sh.
#
# As Debian has it: QEMU runs under a user of its own, to whom libvirt gives a domain's files when it starts. That user may
# not use the machine's /dev/kvm, so that all is emulated; where the file is there all the same, libvirt asks QEMU about it anew,
# for seconds, at each of its steps, so that its /dev has none.

LIBVIRT_NEEDED="libvirtd virsh unshare"
# Debian's libvirt wants its user by name, and the name is not there without the package that sets a system daemon up.
QEMU_USER=libvirt-qemu QEMU_OWNER=64055
LIBVIRT_DRIVERS=/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so

# libvirt_up: starts the daemon, in the network namespace of the base domain.
libvirt_up() {
  local place=$WORK/libvirt
  # shellcheck disable=SC2086  # a pattern
  ls $LIBVIRT_DRIVERS >/dev/null 2>&1 || die "libvirt has no driver for QEMU (tools/setup.sh libvirt)"
  mkdir -p "$place"/{etc,run,lib,log,cache,dev}
  # QEMU is not root, and must get to its disk.
  chmod 711 "$WORK" "$WORK/images"
  cat >"$place/etc/libvirtd.conf" <<END
auth_unix_rw = "none"
log_outputs = "2:file:$WORK/logs/libvirtd.log"
END
  cat >"$place/etc/qemu.conf" <<END
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
  { grep -v "^$QEMU_USER:" /etc/passwd; echo "$QEMU_USER:x:$QEMU_OWNER:$QEMU_OWNER::/nonexistent:/bin/false"; } >"$place/passwd"
  { grep -v "^$QEMU_USER:" /etc/group; echo "$QEMU_USER:x:$QEMU_OWNER:"; } >"$place/group"
  "${IN_BASE[@]}" unshare --mount --propagation private sh -c '
    set -e
    mount --bind "$0/etc" /etc/libvirt
    for file in passwd group; do mount --bind "$0/$file" /etc/$file; done
    mount --bind "$0/run" /run
    for dir in lib log cache; do mount --bind "$0/$dir" /var/$dir; done
    mount -t tmpfs -o mode=755 dev "$0/dev"
    mkdir "$0/dev/net" "$0/dev/pts" "$0/dev/shm"
    ln -s pts/ptmx "$0/dev/ptmx"
    for node in null zero full random urandom tty net/tun; do : >"$0/dev/$node"; mount --bind /dev/$node "$0/dev/$node"; done
    mount --bind /dev/pts "$0/dev/pts"
    mount --move "$0/dev" /dev
    exec nice -n 10 libvirtd' "$place" >"$WORK/logs/libvirtd.err" 2>&1 </dev/null &
  disown
  CONNECT="qemu+unix:///system?socket=$place/run/libvirt/libvirt-sock"
  wait_until 60 "libvirtd answers" libvirt_answers
  say "$(libvirtd --version) answers; it has no domains but the story's."
}
libvirt_answers() { virsh --connect "$CONNECT" list --all >/dev/null 2>&1; }

# libvirt_guest APP: the rest of [guest.APP-guest] in recovery.toml.
libvirt_guest() {
  printf 'domain = "%s"\nconnect = "%s"\nsecret-file = "%s"\nsecret-owner = [%d, %d]\n' \
    "$1" "$CONNECT" "$WORK/secrets/$1" $QEMU_OWNER $QEMU_OWNER
}

# libvirt_domain APP MEMORY MAC LINE: defines the domain, as its owner would, once; its disk is the overlay, which is not
# there yet.
libvirt_domain() {
  local xml=$WORK/notes/$1.xml
  mkdir -p -m 711 "$WORK/secrets"
  echo >"$WORK/secrets/$1"
  cat >"$xml" <<END
<domain type='qemu'>
  <name>$1</name>
  <memory unit='MiB'>$2</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>$KERNEL/vmlinux</kernel>
    <initrd>$WORK/images/first.cpio</initrd>
    <cmdline>$4</cmdline>
  </os>
  <features><acpi/></features>
  <sysinfo type='fwcfg'>
    <entry name='opt/strongroom/enrol' file='$WORK/secrets/$1'/>
  </sysinfo>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='$WORK/images/$1.qcow2'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='$WORK/images/app-clean.qcow2'><seclabel model='dac' relabel='no'/></source>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <source bridge='br-guests'/>
      <mac address='$3'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'>
      <source path='$WORK/logs/$1.log'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>
END
  virsh --quiet --connect "$CONNECT" define --validate "$xml" || die "libvirt refuses the domain"
}

# libvirt_more: what only libvirt has, and the driver must not be misled by.
libvirt_more() {
  local virsh="virsh --connect '$CONNECT'" xml=$WORK/notes/mail
  title "10. Libvirt's own memory of a guest"
  say "The domain is made to start from another disk. A restart would not be clean then: it is refused, before anything is done."
  typed mail 'echo memory-of-the-attacked >/tmp/left'; good
  show base "$virsh dumpxml --inactive mail >$xml.right.xml && sed 's,/mail.qcow2,/other.qcow2,' $xml.right.xml >$xml.other.xml && $virsh define $xml.other.xml"
  good
  show base 'contract recover mail'
  refused "does not name $WORK/images/mail.qcow2 as a disk"; says 'is fenced'
  show base "$virsh define $xml.right.xml && $virsh domstate mail"
  good; says running
  say "The guest is saved with its memory, as libvirt does when the machine is shut down. What comes back is the clean image all the same:"
  show base "$virsh managedsave mail && $virsh dominfo mail | grep -i 'managed save'"
  good; says yes
  show base 'contract recover mail'
  good
  show mail 'cat /tmp/left; cat /mnt/Mail/diary.txt'
  says 'No such file'; hides memory-of-the-attacked; says 'seeds, twine'
  say "QEMU's user ($QEMU_OWNER) has the overlay, and neither the clean image nor what was kept; the secret is gone:"
  show base "stat -c '%u %n' $WORK/images/app-clean.qcow2 $WORK/images/mail.qcow2 recovery/incidents/*/evidence/mail.qcow2 && wc -c <$WORK/secrets/mail"
  good
  [ "$(grep -c "^$QEMU_OWNER " "$OUT")" = 1 ] || die "QEMU's user has something that it should not have, or lacks its disk"
  says "$QEMU_OWNER $WORK/images/mail.qcow2"
  [ "$(tail -n 1 "$OUT")" = 1 ] || die "the secret is still there"
}
