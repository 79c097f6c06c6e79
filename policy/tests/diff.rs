//! `diff`: what changes in effective capabilities.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{MAIL, good, set};

use strongroom_policy::{Direction, diff};

const WIDER: &str = "wider";
const NARROWER: &str = "narrower";
const SIDEWAYS: &str = "sideways";

fn changes(old: &str, new: &str) -> Vec<(String, &'static str)> {
    let direction = |direction| match direction {
        Direction::Wider => WIDER,
        Direction::Narrower => NARROWER,
        Direction::Sideways => SIDEWAYS,
    };
    let changes = diff(&good(&[("mail", old)]), &good(&[("mail", new)]));
    changes.iter().map(|change| (change.to_string(), direction(change.direction))).collect()
}

fn assert_changes(old: &str, new: &str, wanted: &[(&str, &str)]) {
    let found = changes(old, new);
    let found: Vec<_> = found.iter().map(|(text, direction)| (text.as_str(), *direction)).collect();
    assert_eq!(found, wanted);
}

/// Grants of `mail`, each as path, mount and rights, perhaps with more lines.
fn grants(list: &[(&str, &str, &str)]) -> String {
    let grant = |(path, mount, rest): &(&str, &str, &str)| {
        let (rights, more) = rest.split_once('\n').unwrap_or((rest, ""));
        format!("[[grant]]\npath = \"{path}\"\nmount = \"{mount}\"\nrights = \"{rights}\"\n{more}\n")
    };
    format!("application = \"mail\"\n{}", list.iter().map(grant).collect::<String>())
}

#[test]
fn another_form_of_the_same_is_no_change() {
    let reformatted = r#"
        audit = "normal"   # the default
        grant = [
            { rights = ["create", "append read", "list"], mount = "/Photos", path = "users/alice/Photos", quota = 21474836480 },
            { path = "users/alice/Mail", mount = "/Mail", undo = "168h", rights = "read-write", ownership = "single" },
        ]
        limits.write-rate = "51200 KiB/s"
        application = "mail"
        guest = "mail-guest"
        [recovery]
        on = ["ids.severity < 3", "ransomware", "violation"]
        steps = ["fence", "undo 900s", "restart", "reissue"]
    "#;
    assert_changes(MAIL, reformatted, &[]);
    assert_changes(reformatted, MAIL, &[]);
}

#[test]
fn rights_gained_and_lost() {
    let wider = MAIL.replace("append-only", "read-write");
    assert_changes(MAIL, &wider, &[("mail GAINS write delete attr on users/alice/Photos", WIDER)]);
    assert_changes(&wider, MAIL, &[("mail LOSES write delete attr on users/alice/Photos", NARROWER)]);
    let both = MAIL.replace("append-only", "read-only write");
    assert_changes(
        MAIL,
        &both,
        &[
            ("mail GAINS write on users/alice/Photos", WIDER),
            ("mail LOSES create append on users/alice/Photos", NARROWER),
        ],
    );
}

#[test]
fn a_right_moved_from_parent_to_child_is_lost_on_the_rest() {
    let before = grants(&[("users/alice", "/alice", "read-only write")]);
    let after = grants(&[("users/alice", "/alice", "read-only"), ("users/alice/Photos", "/Photos", "write")]);
    let mount = "mail CHANGES mount on users/alice/Photos from /alice/Photos to /Photos and /alice/Photos";
    assert_changes(
        &before,
        &after,
        &[("mail LOSES write on users/alice except users/alice/Photos", NARROWER), (mount, SIDEWAYS)],
    );
    assert_eq!(changes(&after, &before)[0].0, "mail GAINS write on users/alice except users/alice/Photos");
}

#[test]
fn a_grant_inside_another_that_gives_nothing_new_is_no_gain() {
    let before = grants(&[("a", "/a", "read-write")]);
    let after = grants(&[("a", "/a", "read-write"), ("a/b", "/b", "read-only")]);
    assert_changes(&before, &after, &[("mail CHANGES mount on a/b from /a/b to /a/b and /b", SIDEWAYS)]);
    let split = grants(&[("a/b", "/b", "read-write"), ("a/c", "/c", "read-write")]);
    let found = changes(&before, &split);
    let lost = "mail LOSES list read create append write delete attr on a except a/b, a/c";
    assert_eq!(found[0], (lost.to_owned(), NARROWER));
}

#[test]
fn differences_begin_end_and_begin_again_down_a_path() {
    let before = grants(&[("a", "/1", "list"), ("a/b", "/2", "list write"), ("a/b/c", "/3", "list")]);
    let after =
        grants(&[("a", "/1", "list write"), ("a/b", "/2", "list write"), ("a/b/c", "/3", "list delete")]);
    assert_changes(
        &before,
        &after,
        &[("mail GAINS write on a except a/b", WIDER), ("mail GAINS delete on a/b/c", WIDER)],
    );
}

#[test]
fn limits_of_grants() {
    let quota = |quota: &str| MAIL.replace("20 GiB", quota);
    let on = "quota on users/alice/Photos from";
    let (twenty, forty) = ("20 GiB for all of users/alice/Photos", "40 GiB for all of users/alice/Photos");
    assert_changes(MAIL, &quota("40 GiB"), &[(&format!("mail RAISES {on} {twenty} to {forty}"), WIDER)]);
    assert_changes(&quota("40 GiB"), MAIL, &[(&format!("mail LOWERS {on} {forty} to {twenty}"), NARROWER)]);
    let unlimited = MAIL.replace("quota = \"20 GiB\"", "");
    assert_changes(MAIL, &unlimited, &[(&format!("mail RAISES {on} {twenty} to unlimited"), WIDER)]);
    let sized = MAIL.replace("quota =", "max-file = \"1 GiB\"\nfiles = 7\nquota =");
    assert_changes(
        MAIL,
        &sized,
        &[
            (
                "mail LOWERS files on users/alice/Photos from unlimited to 7 for all of users/alice/Photos",
                NARROWER,
            ),
            ("mail LOWERS max-file on users/alice/Photos from unlimited to 1 GiB", NARROWER),
        ],
    );
    let undo = MAIL.replace("\"7d\"", "\"1d\"");
    assert_changes(MAIL, &undo, &[("mail CHANGES undo on users/alice/Mail from 7d to 1d", WIDER)]);
    assert_changes(&undo, MAIL, &[("mail CHANGES undo on users/alice/Mail from 1d to 7d", NARROWER)]);
    let preserve = MAIL.replace("quota =", "ownership = \"preserve\"\nquota =");
    let ownership = "mail CHANGES ownership on users/alice/Photos from single to preserve";
    assert_changes(MAIL, &preserve, &[(ownership, WIDER)]);
}

#[test]
fn a_quota_divided_among_parts_is_wider() {
    let quota = "read-write\nquota = \"20 GiB\"";
    let before = grants(&[("a/b", "/b", quota), ("a", "/a", "list")]);
    let after = grants(&[("a/b/c", "/c", quota), ("a", "/a", "list")]);
    let found = changes(&before, &after);
    let change = found.iter().find(|(text, _)| text.contains("quota")).unwrap();
    assert_eq!(change.0, "mail RAISES quota on a/b/c from 20 GiB for all of a/b to 20 GiB for all of a/b/c");
    assert_eq!(change.1, WIDER);
}

#[test]
fn settings_of_the_whole() {
    let cases = [
        ("lifetime = \"8h\"", "lifetime = \"1d\"", "mail RAISES lifetime from 8h to 1d", WIDER),
        ("lifetime = \"8h\"", "lifetime = \"1h30m\"", "mail LOWERS lifetime from 8h to 1h30m", NARROWER),
        (
            "lifetime = \"8h\"",
            "until = 2027-01-01",
            "mail LOWERS until from unlimited to 2027-01-01T00:00:00Z",
            NARROWER,
        ),
        ("\"50 MiB/s\"", "\"1 GiB/s\"", "mail RAISES write-rate from 50 MiB/s to 1 GiB/s", WIDER),
        ("[limits]", "[limits]\nop-rate = \"9/s\"", "mail LOWERS op-rate from unlimited to 9/s", NARROWER),
        ("[limits]", "[limits]\nin-flight = 4", "mail LOWERS in-flight from unlimited to 4", NARROWER),
        ("[limits]", "[limits]\nopen-handles = 4", "mail LOWERS open-handles from unlimited to 4", NARROWER),
        (
            "[limits]",
            "[limits]\nread-rate = \"4 B/s\"",
            "mail LOWERS read-rate from unlimited to 4 B/s",
            NARROWER,
        ),
        ("lifetime", "audit = \"strict\"\nlifetime", "mail CHANGES audit from normal to strict", NARROWER),
        (
            "lifetime",
            "undo-space = \"9 GiB\"\nlifetime",
            "mail CHANGES undo-space from the gateway's bound to 9 GiB",
            WIDER,
        ),
        (
            "lifetime",
            "undo-full = \"forget\"\nlifetime",
            "mail CHANGES undo-full from fence to forget",
            WIDER,
        ),
        ("\"mail-guest\"", "\"other\"", "mail CHANGES guest from mail-guest to other", SIDEWAYS),
        (
            "lifetime",
            "networks = [\"10.0.0.0/8\"]\nlifetime",
            "mail CHANGES networks from any address to 10.0.0.0/8",
            NARROWER,
        ),
        (
            "\"violation\"",
            "\"undo-space\"",
            "mail CHANGES recovery on from violation, ransomware, ids.severity <= 2 to ransomware, undo-space, ids.severity <= 2",
            WIDER,
        ),
        (
            "[recovery]",
            "[detection]\nburst = 20\n[recovery]",
            "mail CHANGES detection from fence at 8 a minute, 40 in hours, 24 removed, any number changed a minute, 200 denied; 0 decoys to fence at 20 a minute, 40 in hours, 24 removed, any number changed a minute, 200 denied; 0 decoys",
            WIDER,
        ),
        (
            "\"fence\", ",
            "",
            "mail CHANGES recovery steps from fence, undo 15m, restart, reissue to undo 15m, restart, reissue",
            WIDER,
        ),
    ];
    for (from, to, text, direction) in cases {
        assert!(MAIL.contains(from));
        assert_changes(MAIL, &MAIL.replacen(from, to, 1), &[(text, direction)]);
    }
}

#[test]
fn networks_are_compared_as_sets_of_addresses() {
    let networks = |list: &str| format!("networks = [{list}]\n{MAIL}");
    let halves = networks("\"10.0.0.128/25\", \"10.0.0.0/25\", \"10.0.0.7\"");
    assert_changes(&networks("\"10.0.0.0/24\""), &halves, &[]);
    let direction = |from: &str, to: &str| changes(&networks(from), &networks(to))[0].1;
    assert_eq!(direction("\"10.0.0.0/8\"", "\"10.1.0.0/16\", \"10.3.0.0/16\""), NARROWER);
    assert_eq!(direction("\"10.1.0.0/16\"", "\"10.0.0.0/8\""), WIDER);
    assert_eq!(direction("\"10.1.0.0/16\"", "\"10.2.0.0/16\""), WIDER);
    assert_eq!(direction("\"0.0.0.0/0\"", "\"::/0\""), WIDER);
    assert_eq!(direction("\"::/0\"", "\"fe80::/10\""), NARROWER);
}

#[test]
fn applications_that_come_and_go() {
    let (none, one) = (good(&[]), good(&[("mail", &grants(&[("a", "/a", "list")]))]));
    let texts = |list: Vec<strongroom_policy::Change>| {
        list.iter().map(|change| (change.to_string(), change.direction)).collect::<Vec<_>>()
    };
    assert_eq!(
        texts(diff(&none, &one)),
        [
            ("mail APPEARS".to_owned(), Direction::Wider),
            ("mail GAINS list on a".to_owned(), Direction::Wider)
        ]
    );
    assert_eq!(
        texts(diff(&one, &none)),
        [
            ("mail DISAPPEARS".to_owned(), Direction::Narrower),
            ("mail LOSES list on a".to_owned(), Direction::Narrower)
        ]
    );
}

#[test]
fn an_application_whose_new_file_is_bad_keeps_its_last_good_version() {
    let bad = set(&[("mail", &MAIL.replace("append-only", "apend-only"))]);
    assert_eq!(diff(&good(&[("mail", MAIL)]), &bad), []);
}

#[test]
fn changes_name_the_line_and_programs_get_members() {
    let changes =
        diff(&good(&[("mail", MAIL)]), &good(&[("mail", &MAIL.replace("append-only", "read-write"))]));
    assert_eq!(
        serde_json::to_value(&changes).unwrap(),
        serde_json::json!([{
            "application": "mail", "direction": "wider", "verb": "GAINS", "rights": ["write", "delete", "attr"],
            "setting": null, "path": "users/alice/Photos", "except": [], "from": null, "to": null,
            "place": { "file": "policy.d/mail.toml", "line": 15, "column": 11 },
        }])
    );
    let lost = diff(&good(&[("mail", MAIL)]), &good(&[("mail", &MAIL.replace("append-only", "list"))]));
    assert_eq!(lost[0].place.as_ref().unwrap().line, 15);
}

/// Where recovery does not act on ransomware any more, the gateway does not fence for it either.
#[test]
fn detection_follows_recovery_unless_it_is_said() {
    let without = MAIL.replacen("\"ransomware\", ", "", 1);
    assert_changes(
        MAIL,
        &without,
        &[
            (
                "mail CHANGES detection from fence at 8 a minute, 40 in hours, 24 removed, any number changed a minute, 200 denied; 0 decoys to alert at 8 a minute, 40 in hours, 24 removed, any number changed a minute, 200 denied; 0 decoys",
                WIDER,
            ),
            (
                "mail CHANGES recovery on from violation, ransomware, ids.severity <= 2 to violation, ids.severity <= 2",
                WIDER,
            ),
        ],
    );
    let said =
        |policy: &str| policy.replacen("[recovery]", "[detection]\nverdict = \"alert\"\n[recovery]", 1);
    assert_changes(
        &said(MAIL),
        &said(&without),
        &[(
            "mail CHANGES recovery on from violation, ransomware, ids.severity <= 2 to violation, ids.severity <= 2",
            WIDER,
        )],
    );
}
