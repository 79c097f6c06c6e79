//! The policy is the ceiling: what it allows can be issued, everything above is refused with the line to change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{MAIL, issue, key, policy};

use strongroom_contracts::{Grant, Rights, Terms};
use strongroom_policy::{CeilingError, Issue, Narrowing};

fn wish(narrow: &[(&str, &str)]) -> Issue {
    let narrowing = |(path, rights): &(&str, &str)| Narrowing {
        path: (!path.is_empty()).then(|| path.parse().unwrap()),
        rights: (!rights.is_empty()).then(|| rights.parse().unwrap()),
    };
    Issue { narrow: narrow.iter().map(narrowing).collect(), ..issue(&key(), &key(), &key()) }
}

fn terms(text: &str, narrow: &[(&str, &str)]) -> Result<Terms, CeilingError> {
    policy(text).terms(&wish(narrow))
}

fn refusal(text: &str, narrow: &[(&str, &str)]) -> String {
    terms(text, narrow).unwrap_err().to_string()
}

fn shape(grants: &[Grant]) -> Vec<String> {
    grants.iter().map(|grant| format!("{} {} {}", grant.data, grant.mount, grant.rights)).collect()
}

#[test]
fn without_a_wish_it_is_all_of_the_policy() {
    let policy = policy(MAIL);
    let issue = wish(&[]);
    let terms = policy.terms(&issue).unwrap();
    assert_eq!(
        shape(&terms.grants),
        ["users/alice/Mail /Mail read-write", "users/alice/Photos /Photos append-only"]
    );
    assert_eq!((terms.not_before, terms.expires), (issue.now_secs, issue.now_secs + 8 * 3600));
    assert_eq!(terms.limits.write_rate, Some(50 << 20));
    assert_eq!(terms.policy, policy.digest);
    assert_eq!(terms.holder, issue.holder);
}

#[test]
fn narrowing_keeps_the_tail_and_the_limits() {
    let terms = terms(MAIL, &[("users/alice/Photos/2024", "list read")]).unwrap();
    assert_eq!(shape(&terms.grants), ["users/alice/Photos/2024 /Photos/2024 read-only"]);
    assert_eq!(terms.grants[0].quota_bytes, Some(20 << 30));
}

#[test]
fn rights_alone_narrow_every_grant() {
    let terms = terms(MAIL, &[("", "read-only")]).unwrap();
    assert!(terms.grants.iter().all(|grant| grant.rights == Rights::READ_ONLY));
    assert_eq!(
        refusal(MAIL, &[("", "read write")]),
        "policy.d/mail.toml:15: rights = \"append-only\" lacks write on users/alice/Photos"
    );
}

#[test]
fn wishes_add_up_and_what_is_contained_counts_once() {
    let narrow =
        [("users/alice/Mail/a", "list"), ("users/alice/Mail", "read-only"), ("users/alice/Mail/b", "read")];
    assert_eq!(shape(&terms(MAIL, &narrow).unwrap().grants), ["users/alice/Mail /Mail read-only"]);
    let narrow = [("users/alice/Mail/a", "list"), ("users/alice/Mail/b", "")];
    assert_eq!(
        shape(&terms(MAIL, &narrow).unwrap().grants),
        ["users/alice/Mail/a /Mail/a list", "users/alice/Mail/b /Mail/b read-write"]
    );
}

#[test]
fn a_missing_right_names_the_line() {
    assert_eq!(
        refusal(MAIL, &[("users/alice/Photos", "read-write")]),
        "policy.d/mail.toml:15: rights = \"append-only\" lacks write delete attr on users/alice/Photos"
    );
}

#[test]
fn a_path_without_grant_names_the_file() {
    assert_eq!(refusal(MAIL, &[("users/bob", "")]), "policy.d/mail.toml: no [[grant]] covers users/bob");
    assert_eq!(
        refusal(MAIL, &[("users/alice", "list")]),
        "policy.d/mail.toml: no [[grant]] covers users/alice; those below it are users/alice/Mail, users/alice/Photos"
    );
    assert!(terms(MAIL, &[("users/alice/Mailbox", "")]).is_err());
}

#[test]
fn a_longer_life_names_the_line() {
    let long = Issue { lifetime_secs: Some(9 * 3600), ..wish(&[]) };
    assert_eq!(
        policy(MAIL).terms(&long).unwrap_err().to_string(),
        "policy.d/mail.toml:4: lifetime = \"8h\" is less than the 9h asked for"
    );
    let plain = MAIL.replace("lifetime = \"8h\"\n", "");
    assert_eq!(
        policy(&plain).terms(&long).unwrap_err().to_string(),
        "policy.d/mail.toml: lifetime = \"8h\" (the default) is less than the 9h asked for"
    );
    let none = Issue { lifetime_secs: Some(0), ..wish(&[]) };
    assert_eq!(policy(MAIL).terms(&none), Err(CeilingError::NoLifetime));
    let short = Issue { lifetime_secs: Some(60), ..wish(&[]) };
    assert_eq!(policy(MAIL).terms(&short).unwrap().expires, short.now_secs + 60);
}

#[test]
fn until_cuts_the_life_and_then_ends_it() {
    // The wishes are made at 1_800_000_000, which is 2027-01-15T08:00:00Z.
    let until = |moment: &str| policy(&MAIL.replace("lifetime = \"8h\"", &format!("until = {moment}")));
    let issue = wish(&[]);
    assert_eq!(until("2027-01-15T09:00:00Z").terms(&issue).unwrap().expires, issue.now_secs + 3600);
    assert_eq!(until("2028-01-01").terms(&issue).unwrap().expires, issue.now_secs + 8 * 3600);
    assert_eq!(
        until("2027-01-15").terms(&issue).unwrap_err().to_string(),
        "policy.d/mail.toml:4: `until` has passed, so no contract may be issued any more"
    );
}

#[test]
fn parts_of_a_grant_with_a_quota_are_refused() {
    let narrow = [("users/alice/Photos/a", ""), ("users/alice/Photos/b", "")];
    assert!(refusal(MAIL, &narrow).starts_with("policy.d/mail.toml:16: the quota holds for all of"));
    let files = MAIL.replace("quota = \"20 GiB\"", "files = 100");
    assert!(refusal(&files, &narrow).starts_with("policy.d/mail.toml:16: the quota holds for all of"));
    assert!(terms(&MAIL.replace("quota = \"20 GiB\"", ""), &narrow).is_ok());
}

/// Photos can be listed as a part of all, and appended to as itself.
const OVERLAPPING: &str = r#"application = "viewer"
[[grant]]
path = "users/alice"
mount = "/alice"
rights = "read-only"
[[grant]]
path = "users/alice/Photos"
mount = "/drop"
rights = "drop-box"
"#;

#[test]
fn overlapping_grants_are_not_mixed() {
    let shape =
        |rights: &str| terms(OVERLAPPING, &[("users/alice/Photos/x", rights)]).map(|t| shape(&t.grants));
    assert_eq!(shape("read").unwrap(), ["users/alice/Photos/x /alice/Photos/x read"]);
    assert_eq!(shape("append").unwrap(), ["users/alice/Photos/x /drop/x append"]);
    assert_eq!(
        shape("read append").unwrap_err().to_string(),
        "policy.d/mail.toml:9: no single grant gives read append on users/alice/Photos/x; ask for less, or give the \
         rights there in one [[grant]]"
    );
    assert_eq!(
        shape("write").unwrap_err().to_string(),
        "policy.d/mail.toml:9: rights = \"drop-box\" lacks write on users/alice/Photos/x"
    );
}

#[test]
fn a_tail_that_makes_the_mount_path_too_long_is_refused() {
    let component = "m".repeat(250);
    let mount = [component.as_str(); 4].join("/");
    let text = MAIL.replace("\"/Mail\"", &format!("\"/{mount}\""));
    let path = format!("users/alice/Mail/{component}");
    assert!(refusal(&text, &[(&path, "")]).starts_with("policy.d/mail.toml:8: "));
}
