//! SQLite: its journals and locks, from two processes and from two guests.

use std::thread;

use super::{lab, script};

/// Each transaction reads the counter and writes it back: a lock that does not hold loses counts.
fn count_up(times: u32) -> String {
    format!(
        "for n in $(seq {times}); do
           sqlite3 -bail -cmd '.timeout 120000' count.db \\
             'begin immediate; insert into log select value from counter; update counter set value = value + 1; commit;'
         done"
    )
}

fn create(mode: &str) -> String {
    format!(
        "test \"$(sqlite3 count.db 'pragma journal_mode = {mode};')\" = {mode}
         sqlite3 count.db 'create table counter (value integer); insert into counter values (0); create table log (value integer primary key);'"
    )
}

fn assert_intact(answer: &str, transactions: u32) {
    assert_eq!(answer, format!("ok\n{transactions}\n{transactions}\n"));
}

const INSPECT: &str =
    "sqlite3 count.db 'pragma integrity_check; select value from counter; select count(*) from log;'";

#[test]
fn two_processes_share_a_database_in_every_journal_mode() {
    let lab = lab("sqlite");
    for mode in ["delete", "wal", "truncate", "persist"] {
        script(&lab, "one", &format!("mkdir {mode}; cd {mode}; {}", create(mode)));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| script(&lab, "one", &format!("cd {mode}; {}", count_up(20))));
            }
        });
        assert_intact(&script(&lab, "one", &format!("cd {mode}; {INSPECT}")), 40);
    }
}

#[test]
fn two_guests_share_a_database() {
    let lab = lab("sqlite2");
    // Not WAL: it needs memory that both processes share, which no network file system offers (sqlite.org/wal.html).
    script(&lab, "one", &create("delete"));
    thread::scope(|scope| {
        for app in ["one", "two"] {
            let lab = &lab;
            scope.spawn(move || script(lab, app, &count_up(20)));
        }
    });
    assert_intact(&script(&lab, "one", INSPECT), 40);
    assert_intact(&script(&lab, "two", INSPECT), 40);
}

#[test]
fn a_large_transaction_survives_a_killed_writer() {
    let lab = lab("sqlite3");
    for mode in ["delete", "wal"] {
        script(&lab, "one", &format!("mkdir {mode}; cd {mode}; {}", create(mode)));
        // Ended in the middle of a transaction that has spilled to the disk: the next opener rolls it back.
        script(
            &lab,
            "one",
            &format!(
                "cd {mode}
                 {{ echo 'pragma cache_size = 10; begin immediate; update counter set value = 7;'
                    echo 'with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) insert into log select i from n;'
                    echo '.print spilled'; sleep 1000; }} | sqlite3 -bail count.db > progress &
                 until grep -q spilled progress; do sleep 0.05; done
                 pkill -KILL -x sqlite3; pkill -x sleep; wait || true"
            ),
        );
        assert_eq!(script(&lab, "one", &format!("cd {mode}; {INSPECT}")), "ok\n0\n0\n", "{mode}");
    }
}
