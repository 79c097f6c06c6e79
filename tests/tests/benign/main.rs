//! Honest work that resembles ransomware, on files that were there before, with the thresholds of a policy that says no more
//! than `verdict = "fence"`: none of it may be cut.
//!
//! The suite was fixed before the thresholds were tuned: a job may be added, but none is made milder.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::fs;
use std::process::Command;

use strongroom_tests::lab::{Lab, Options};

/// Name and script, run in an app guest under `set -eu`, in a directory of its own that `prepare.py` has filled.
const JOBS: [(&str, &str); 19] = [
    (
        "tar",
        "tar czf all.tar.gz tree; mkdir out; tar xzf all.tar.gz -C out; diff -r tree out/tree; rm -r out all.tar.gz",
    ),
    ("gzip", "gzip -r tree; gunzip -r tree"),
    ("zip", "zip -qr tree.zip tree; zip -qr tree.zip tree/d1; unzip -tq tree.zip"),
    ("zip-away", "for d in tree/d*; do (cd $d; for f in *; do zip -qm $f.zip $f; done); done"),
    (
        "backup-openssl",
        "mkdir -p archives; for d in tree/d*; do tar cz $d | openssl enc -aes-256-ctr -pbkdf2 -iter 10 -pass pass:x -out \
         archives/$(basename $d).tar.gz.enc; done; rm archives/old*",
    ),
    (
        "backup-files",
        "find tree -type f | while read f; do mkdir -p \"away/$(dirname $f)\"; openssl enc -aes-256-ctr -pbkdf2 -iter 1 -pass pass:x \
         -in $f -out away/$f.enc; done; rm archives/old*",
    ),
    (
        "git",
        "cd repository; git config user.name A; git config user.email a@example.org; git config gc.auto 0; git status; for n in 1 2 3; do \
         for f in m1/*; do echo $n >> $f; done; git commit -qam $n; done; git repack -adq; git gc -q; git fsck",
    ),
    (
        "git-switch",
        "cd repository; git checkout -q HEAD~3; git checkout -q -; git checkout -q -b side HEAD~2; git reset -q --hard HEAD~1; git gc -q --prune=now",
    ),
    (
        "build",
        "cd source; for d in s*; do for f in $d/*.c; do cc -O1 -c $f -o ${f%.c}.o; done; ar rcs lib$d.a $d/*.o; done; \
         rm -f s*/*.o; for f in s0/*.c; do cc -g -c $f -o ${f%.c}.o; done",
    ),
    (
        "photos",
        "mkdir -p Photos; n=0; for f in card/DCIM/*; do n=$((n+1)); cp $f Photos/; \
         printf 'EXIFexif' | dd of=Photos/$(basename $f) bs=1 seek=12 conv=notrunc status=none; \
         mv Photos/$(basename $f) Photos/2026-11-$n.jpg; rm $f; done",
    ),
    (
        "photos-in-place",
        "for f in card/DCIM/*; do printf '2027:01:01 12:00:00' | dd of=$f bs=1 seek=18 conv=notrunc status=none; mv $f ${f%.JPG}.jpg; done",
    ),
    (
        "sqlite",
        "sqlite3 base.sqlite 'update thing set name = name || id, blob = randomblob(length(blob)); delete from thing where id % 3 = 0; vacuum'; \
         for n in 1 2 3 4 5; do sqlite3 base.sqlite \"pragma journal_mode=wal; update thing set blob = randomblob(900) where id % 7 = $n; vacuum\"; done; \
         sqlite3 base.sqlite 'pragma integrity_check'",
    ),
    // As another user by name, which PostgreSQL insists on, and the same one for the mount.
    (
        "postgres",
        "export PATH=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1):$PATH LC_ALL=C PGHOST=/tmp PGUSER=postgres PGDATABASE=postgres; \
         as() { unshare --user --map-user=postgres --map-group=postgres \"$@\"; }; mkdir -m 700 fresh; as initdb -D fresh -U postgres -A trust > /tmp/said; \
         rows='(select string_agg(decode(md5((random() + i)::text), $$hex$$), $$$$) from generate_series(1, 50) i)'; \
         for base in fresh cluster; do as pg_ctl -w -D $base -l /tmp/log -o '-k /tmp -c listen_addresses=' start > /tmp/said || { cat /tmp/log >&2; exit 1; }; \
         psql -qc 'create table if not exists thing (id int primary key, name text, blob bytea)'; \
         psql -qc \"insert into thing select g, md5(g::text), $rows from generate_series(100001, 104000) g\"; \
         for n in 1 2 3; do psql -qc \"update thing set name = name || id, blob = $rows\"; psql -qc checkpoint; done; \
         psql -qc 'delete from thing where id % 3 = 0'; psql -qc 'vacuum full'; psql -qc 'reindex database postgres'; \
         as pg_ctl -w -D $base -m fast stop > /tmp/said; done",
    ),
    (
        "transcode",
        "for f in films/*.mp4; do (printf '\\032\\105\\337\\243'; openssl enc -aes-128-ctr -K 00 -iv 00 -in $f) > ${f%.mp4}.mkv 2>/dev/null; rm $f; done; \
         for f in films/*.mkv; do (printf '\\032\\105\\337\\243'; tail -c +9 $f) > $f.tmp; mv $f.tmp $f; done",
    ),
    (
        "editor",
        "for f in tree/*/*.txt; do (head -c 200 $f; echo edited; cat $f) > $f.new; mv $f $f~; mv $f.new $f; rm $f~; done; \
         for f in tree/*/*.txt; do t=$(cat $f); printf '%s\\nand again\\n' \"$t\" > $f; done",
    ),
    (
        "rsync",
        "mkdir copy; rsync -a tree/ copy/; for f in tree/d1/*.txt; do echo more >> $f; done; rsync -a --delete tree/ copy/; \
         rsync -a --inplace --no-whole-file tree/ copy/; for f in copy/*/*.txt; do sed -i 's/the/eht/' $f; done; rsync -a copy/ tree/",
    ),
    (
        "expiry",
        "cd mail/cur; n=0; for f in *; do n=$((n+1)); if [ $((n % 5)) != 0 ]; then rm $f; else mv $f ${f}T; fi; done",
    ),
    (
        "sed",
        "find tree source -name '*.txt' -o -name '*.c' | xargs sed -i -e 's/dear/DEAR/g' -e '1i a new first line'",
    ),
    (
        "logs",
        "cd log; for round in 1 2 3; do for f in service*.log; do cp $f $f.$round; : > $f; gzip $f.$round; echo began again > $f; done; done; \
         for f in app.log.*.gz; do mv $f ${f%.gz}.old.gz; done; rm app.log.*.old.gz",
    ),
];

/// The jobs that are done in every run of the tests, and with how many files; all of them with more by `make soak`.
const SHORT: ([&str; 6], u32) = (["gzip", "git", "photos", "expiry", "sed", "backup-files"], 60);
const LONG: u32 = 500;

#[test]
fn honest_work_is_not_cut() {
    nothing_is_cut("benign", |job| SHORT.0.contains(&job), SHORT.1);
}

#[test]
#[ignore = "minutes; `make soak` runs it"]
fn all_honest_work_at_length_is_not_cut() {
    nothing_is_cut("benignlong", |_| true, LONG);
}

fn nothing_is_cut(purpose: &str, wanted: impl Fn(&str) -> bool, files: u32) {
    let (data, policy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let prepare = data.path().join("prepare.py");
    fs::write(&prepare, include_str!("prepare.py")).unwrap();
    let jobs: Vec<_> = JOBS.into_iter().filter(|(job, _)| wanted(job)).collect();
    let root = data.path().join("root");
    for (job, _) in &jobs {
        let own = root.join(job);
        fs::create_dir_all(&own).unwrap();
        let filled = Command::new("python3").arg(&prepare).arg(&own).arg(files.to_string()).status().unwrap();
        assert!(filled.success(), "{job}: {filled}");
        let text = format!(
            "application = \"{job}\"\nlifetime = \"8h\"\n\n[[grant]]\npath = \"{job}\"\nmount = \"/work\"\nrights = \"read-write\"\n\
             undo = \"7d\"\n\n[detection]\nverdict = \"fence\"\n"
        );
        fs::write(policy.path().join(format!("{job}.toml")), text).unwrap();
    }
    let options = Options {
        policy: Some(policy.path().to_owned()),
        data: Some(root.clone()),
        ..Options::for_test(purpose)
    };
    let lab = Lab::up(&options).unwrap();
    let mut cut = vec![];
    for (job, script) in &jobs {
        let began = std::time::Instant::now();
        let output =
            lab.app(job, ["bash", "-c", &format!("set -eu; {script}")]).cwd("/mnt/work").output().unwrap();
        println!("{job}: {:.1} s", began.elapsed().as_secs_f64());
        if !output.status.success() {
            cut.push(format!("{job}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
    }
    // A verdict may be an alert's before it is a fence's.
    let alerts = lab
        .storage(["sh", "-c", "cat /var/lib/strongroom/audit.jsonl* | grep '\"ransomware\"' || true"])
        .run()
        .unwrap();
    assert!(cut.is_empty() && alerts.trim().is_empty(), "{}\n{alerts}", cut.join("\n"));
}
