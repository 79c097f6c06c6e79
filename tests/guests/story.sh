# shellcheck shell=bash
# The story that `make vm` and `make xen` show: guests get their contracts, the user works, one guest is attacked, and comes
# back clean. Each claim is checked as it is shown. Sourced by whoever has booted the storage guest and can reach it.
#
# Wants: LOOK_EVERY, seconds between two looks at an incident; IN_BASE, an array of words before every command of the base
# domain; HOUSE, its base directory; BIN, its programs;
# APPS, the app guests by name; UNDO_SECS, the policy's undo window; SECRET_PLACE, where guests find their secrets; IMPLANT,
# a word that marks the attacker's program; IMAGES, the directory of the clean image app-clean.qcow2 (CLEAN_SUM is its digest)
# and of the guests' overlays; and a function: how_started APP, one line about it.

OUT=$(mktemp "${TMPDIR:-/tmp}/story.XXXXXX") STATUS=0 SHOWN=''

address_of() {
  case $1 in
    storage) echo 10.78.0.1 ;;
    mail) echo "${MAIL_NET%/*}" ;;
    editor) echo "${EDITOR_NET%/*}" ;;
    *) die "there is no guest $1" ;;
  esac
}

# typed GUEST SCRIPT: what it printed is in $OUT, its status in $STATUS. A guest that does not listen yet is waited for.
typed() {
  local at limit=$((SECONDS + 600))
  at=$(address_of "$1")
  until printf '%s\n' "$2" | "${IN_BASE[@]}" busybox nc -w 600 "$at" "$TYPE_PORT" >"$OUT" 2>/dev/null && grep -q '^@status=' "$OUT"; do
    [ ! -s "$OUT" ] || die "guest $1 ended in the middle of: $2"
    [ $SECONDS -lt $limit ] || die "guest $1 does not listen"
    sleep 0.1
  done
  STATUS=$(sed -n 's/^@status=//p' "$OUT" | tail -n 1)
  sed -i '/^@status=[0-9]*$/d' "$OUT"
}

# show PLACE SCRIPT: runs it there, and shows it and what it prints. `base` is the base domain, anything else a guest.
show() {
  SHOWN=$2
  prompt "$1" "$2"
  if [ "$1" = base ]; then
    STATUS=0
    "${IN_BASE[@]}" env STRONGROOM_DIR="$HOUSE" PATH="$BIN:$PATH" bash -c "cd '$HOUSE'; $2" </dev/null >"$OUT" 2>&1 || STATUS=$?
  else typed "$1" "$2"; fi
  cat "$OUT"
}
quietly() { show "$@" >/dev/null; }
good() { [ "$STATUS" = 0 ] || die "\`$SHOWN\` failed with $STATUS: $(tail -n 3 "$OUT")"; }
says() { grep -qF -- "$1" "$OUT" || die "\`$SHOWN\` did not say \`$1\`"; }
hides() { ! grep -qF -- "$1" "$OUT" || die "\`$SHOWN\` shows \`$1\`"; }
refused() { [ "$STATUS" != 0 ] || die "\`$SHOWN\` succeeded"; says "$1"; }

# member FILE NAME: the first member of that name in JSON, if it is a number or a word.
member() { sed -n "s/^ *\"$2\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1; }

contract_json() { "${IN_BASE[@]}" env STRONGROOM_DIR="$HOUSE" "$BIN/contract" --json "$@"; }

# sums: the digests of all of Alice's mail, as the storage guest has it, in the file named.
sums() {
  typed storage "cd /srv/strongroom/users/alice/Mail && find . -type f | sort | xargs sha256sum"
  good
  cp "$OUT" "$1"
}

gateway_answers() { contract_json sessions >/dev/null 2>&1; }
daemon_listens() { [ -S "$HOUSE/recovery/control.sock" ]; }
incident_is_closed() {
  contract_json incidents "$1" >"$STATE/incident.json" 2>/dev/null || return 1
  [ "$(member "$STATE/incident.json" standing)" != stuck ] || die "incident $1 is stuck: $(cat "$STATE/incident.json")"
  [ "$(member "$STATE/incident.json" standing)" = closed ]
}
looks_closed() { sleep "$LOOK_EVERY"; incident_is_closed "$1"; }
editor_is_at_work() { typed editor 'cat /tmp/count' && [ "$(cat "$OUT")" -gt "$1" ] 2>/dev/null; }

# first_start APP: its guest is started and gets its first contract, which is an incident like any other.
first_start() {
  local begun
  begun=$(now)
  incident=$((incident + 1))
  show base "contract recover $1 --why 'first start'"
  good
  how_started "$1"
  say "$1: from nothing to a mount in $(since "$begun")."
  show "$1" 'ls /etc/strongroom /mnt'
  good; says contract; says holder.key
}

# evidence_holds DIR FILE: the evidence of an incident has what the attacker left in that file of the guest, and the new
# overlay and the clean image have no trace of it.
evidence_holds() {
  local raw=$IMAGES/looked-at.raw
  say "The overlay of the attacked guest was kept; this is the attacker's program in it:"
  show base "qemu-img convert -q -O raw $1/mail.qcow2 $raw && e2fsck -fy $raw >/dev/null 2>&1; debugfs -R 'cat $2' $raw 2>/dev/null"
  says "$IMPLANT"
  rm -f "$raw"
  show base "grep -ac $IMPLANT $1/mail.qcow2 $IMAGES/mail.qcow2"
  says "$1/mail.qcow2:1"; says "$IMAGES/mail.qcow2:0"
  [ "$(sha256sum <"$IMAGES/app-clean.qcow2")" = "$CLEAN_SUM" ] || die "the clean image was changed"
}

# story STATE: STATE is a directory for its notes.
story() {
  STATE=$1
  local begun app incident=0 old_key attacked work_done

  title "1. The storage guest serves; the base domain holds the keys and the policies"
  begun=$(now)
  wait_until 900 "the gateway answers" gateway_answers
  say "The gateway answered $(since "$begun") later than this story began to ask."
  show base 'ls -F . base; cat policy.d/mail.toml'
  good

  title "2. First start: app guests have no key, no contract and no data. They enrol by a one-time secret"
  "${IN_BASE[@]}" setsid env NOTIFY_SOCKET= "$BIN/strongroom-recovery" --dir "$HOUSE" >"$STATE/recovery.log" 2>&1 </dev/null &
  disown
  wait_until 300 "strongroom-recovery listens" daemon_listens
  first_start mail
  show base 'contract sessions'
  good; says mail

  title "3. The user works"
  sums "$STATE/found"
  show mail "cd /mnt/Mail && cp drafts/1.eml drafts/.new && echo 'Thursday at noon suits me.' >>drafts/.new && sync drafts/.new && mv drafts/.new drafts/1.eml && echo '3 June: seeds, twine' >diary.txt && sync && cat drafts/1.eml && ls inbox | wc -l"
  good; says 'suits me'; says 300
  work_done=$(now)
  if [[ " $APPS " = *' editor '* ]]; then
    say "Another guest is started. It will be at work, too, when the first one is attacked."
    first_start editor
    say "The editor saves all the time, from now to the end. What it has saved last is counted in its memory."
    show editor "setsid sh -c 'exec 2>/tmp/said; n=0; while n=\$((n + 1)); do echo \"page \$n\" >/mnt/Documents/.new && mv /mnt/Documents/.new /mnt/Documents/letter.txt && saved=\$(cat /mnt/Documents/letter.txt) && [ \"\$saved\" = \"page \$n\" ] || { echo \"failed at \$n, when the letter said: \$saved\"; cat /tmp/said; exit 1; } >/tmp/failed; echo \$n >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.02; done' >/dev/null 2>&1 &"
    good
    wait_until 300 "the editor is at work" editor_is_at_work 3
  fi
  show mail "truncate -s 0 /mnt/Photos/2026/README.txt"
  refused 'ermission denied'
  show mail "cat /mnt/Documents/letter.txt; find / -xdev -name 'diary.txt' -path '*bob*'"
  hides 'Nobody but me'; hides bob
  sums "$STATE/worked"
  ! cmp -s "$STATE/found" "$STATE/worked" || die "the user's work did not reach the storage guest"
  say "The policy takes back what was changed within $UNDO_SECS s before an alert. The user's work shall be older than that."
  # The undo begins with an interval of ten seconds, in which changes are kept as one.
  while [ $(($(now) - work_done)) -lt $(((UNDO_SECS + 10) * 1000 + 1500)) ]; do sleep 0.5; done

  title "4. The attack: an implant in the guest's root, then the mail is made unreadable and renamed"
  typed mail 'cat /etc/strongroom/holder.key'; good; cp "$OUT" "$STATE/stolen.key"
  typed mail 'cat /etc/strongroom/contract'; good; cp "$OUT" "$STATE/stolen.contract"
  old_key=$(typed mail 'cat /etc/strongroom/holder.pub' && cat "$OUT")
  show mail "printf '#!/bin/sh\n# $IMPLANT\nwhile sleep 60; do :; done\n' >/sbin/implant && chmod 755 /sbin/implant && sed -i '2i /sbin/implant &' /sbin/init && sync && head -n 3 /sbin/init"
  good; says implant
  show mail "cat >/tmp/ransom <<'END'
for n in 1 2 3 4 5; do rm -f /mnt/Photos/2026/README.txt; done
find /mnt/Mail -type f | while read -r file; do
  head -c \$(wc -c <\"\$file\") /dev/urandom | dd of=\"\$file\" conv=notrunc 2>/dev/null && mv \"\$file\" \"\$file.locked\" || exit
done
END
setsid sh /tmp/ransom >/dev/null 2>&1 &"
  good
  attacked=$(now)
  incident=$((incident + 1))
  say "Nobody does anything now. The gateway notices, and the base domain runs incident $incident to its end."
  wait_until 900 "incident $incident is closed" looks_closed $incident
  say "From the first damage to the end of the incident: $(since "$attacked")."

  title "5. What was done, with the time of every step"
  show base "contract incidents $incident"
  good
  for app in fence preserve undo restart reissue confirm; do says "$app"; done
  local evidence
  evidence=$(member "$STATE/incident.json" directory)/evidence
  show base "ls -l $evidence"
  good; says audit.jsonl; says sessions.json; says undo.json

  title "6. The data are as they were, in the storage guest and in the fresh guest's mount"
  sums "$STATE/after"
  diff "$STATE/worked" "$STATE/after" >&2 || die "the mail is not as it was before the attack"
  "${IN_BASE[@]}" grep -q restored "$evidence/undo.json" || die "nothing was undone: the attack had no effect, which proves nothing"
  say "$(wc -l <"$STATE/after") files, every digest as before the attack; $(grep -c '"restored"' "$evidence/undo.json") mentions of \`restored\` in the evidence."
  typed mail 'cd /mnt/Mail && find . -type f | sort | xargs sha256sum'; good
  cmp -s "$OUT" "$STATE/worked" || die "the fresh guest does not see the data as they were"
  show mail 'tail -n 1 /mnt/Mail/drafts/1.eml; cat /mnt/Mail/diary.txt; cat /mnt/Photos/2026/README.txt; ls -R /mnt | grep -c locked'
  says 'suits me'; says 'seeds, twine'; says 'may be changed'; says 0
  show mail 'echo "Back at work." >>/mnt/Mail/diary.txt && sync && tail -n 1 /mnt/Mail/diary.txt'
  good; says 'Back at work'

  title "7. The guest is a clean one, and what was in the old one is evidence"
  show mail 'ls /sbin/implant; grep implant /sbin/init; cat /etc/strongroom/holder.pub'
  says 'No such file'; hides '/sbin/implant &'; hides "$old_key"
  evidence_holds "$evidence" /sbin/implant

  title "8. What the attacker carried away is of no use"
  say "The old key and the old contract, with which the attacker tries again from a guest:"
  typed mail "umask 077; mkdir -p /tmp/stolen /tmp/loot; cat >/tmp/stolen/holder.key <<'END'
$(cat "$STATE/stolen.key")
END
cat >/tmp/stolen/contract <<'END'
$(cat "$STATE/stolen.contract")
END"
  good
  show mail "mount.strongroom /tmp/stolen/contract /tmp/loot -o key=/tmp/stolen/holder.key,gateway=$GATEWAY_ADDRESS,no-fetch"
  refused 'only 2 and later are valid'
  show mail 'ls -A /tmp/loot | wc -l'
  says 0
  say "The secret by which the fresh guest enrolled was good once; another key gets nothing for it:"
  show mail "mkdir -p /tmp/again && contract enroll --at $ENROL_ADDRESS --secret $SECRET_PLACE --out /tmp/again"
  refused 'refuses'

  if [[ " $APPS " = *' editor '* ]]; then
    title "9. The other guest has not noticed"
    typed editor 'cat /tmp/count'; good
    wait_until 300 "the editor saves on" editor_is_at_work "$(cat "$OUT")"
    show editor 'cat /tmp/failed; echo "$(cat /tmp/count) saves, and on it goes"; cat /mnt/Documents/letter.txt'
    hides 'failed at'; says page
  fi

  title "The figures"
  show base 'contract incidents'
  good
}
