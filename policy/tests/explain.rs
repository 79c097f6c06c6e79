//! `explain`: which line allows or denies each right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{MAIL, app, good, set};

use strongroom_policy::{Explanation, NoPolicy, explain};

fn explained(text: &str, path: &str) -> Explanation {
    explain(&good(&[("mail", text)]), &app("mail"), &path.parse().unwrap()).unwrap()
}

#[test]
fn each_right_has_its_line() {
    assert_eq!(
        explained(MAIL, "users/alice/Photos/2024").to_string(),
        "\
mail on users/alice/Photos/2024
  appears at /Photos/2024 (policy.d/mail.toml:12)
  list    allowed  policy.d/mail.toml:15: rights = \"append-only\"
  read    allowed  policy.d/mail.toml:15: rights = \"append-only\"
  create  allowed  policy.d/mail.toml:15: rights = \"append-only\"
  append  allowed  policy.d/mail.toml:15: rights = \"append-only\"
  write   denied   policy.d/mail.toml:15: rights = \"append-only\" lacks write
  delete  denied   policy.d/mail.toml:15: rights = \"append-only\" lacks delete
  attr    denied   policy.d/mail.toml:15: rights = \"append-only\" lacks attr
  quota 20 GiB on users/alice/Photos (policy.d/mail.toml:16)
  undo none on users/alice/Photos (default)
  ownership single on users/alice/Photos (default)
"
    );
}

#[test]
fn words_on_lines_of_their_own_have_places_of_their_own() {
    let text = MAIL.replace("\"append-only\"", "[\n  \"read-only\",\n  \"append\",\n]");
    let lines: Vec<_> = explained(&text, "users/alice/Photos")
        .rights
        .iter()
        .map(|answer| (answer.right, answer.allowed, answer.places[0].line))
        .collect();
    assert_eq!(
        lines[..5],
        [
            ("list", true, 16),
            ("read", true, 16),
            ("create", false, 15),
            ("append", true, 17),
            ("write", false, 15)
        ]
    );
}

#[test]
fn what_no_grant_covers_is_denied_by_no_line() {
    let explanation = explained(MAIL, "users/alice");
    assert!(explanation.rights.iter().all(|answer| !answer.allowed && answer.places.is_empty()));
    assert!(explanation.rights[0].why.contains("no [[grant]] in policy.d/mail.toml covers users/alice"));
    let below: Vec<_> = explanation.below.iter().map(|view| view.path.as_str()).collect();
    assert_eq!(below, ["users/alice/Mail", "users/alice/Photos"]);
    assert!(explained(MAIL, "users/alice/Mailbox").views.is_empty());
}

#[test]
fn overlapping_grants_both_count() {
    let text =
        format!("{MAIL}\n[[grant]]\npath = \"users/alice\"\nmount = \"/all\"\nrights = \"list write\"\n");
    let explanation = explained(&text, "users/alice/Photos");
    let answer =
        |right: &str| explanation.rights.iter().find(|answer| answer.right == right).unwrap().clone();
    let lines = |right: &str| answer(right).places.iter().map(|place| place.line).collect::<Vec<_>>();
    assert_eq!(lines("list"), [15, 28]);
    assert_eq!(lines("write"), [28]);
    assert_eq!(lines("delete"), [15, 28]);
    assert!(!answer("delete").allowed);
    let mounts: Vec<_> = explanation.views.iter().map(|view| view.mount.as_str()).collect();
    assert_eq!(mounts, ["/Photos", "/all/Photos"]);
}

#[test]
fn an_application_without_policy_is_said_to_have_none() {
    let path = "a".parse().unwrap();
    let unknown = explain(&good(&[("mail", MAIL)]), &app("mial"), &path).unwrap_err();
    assert_eq!(unknown.to_string(), "no policy file is for `mial`; did you mean `mail`?");
    let disabled = set(&[("mail", &MAIL.replace("append-only", "apend-only"))]);
    let disabled = explain(&disabled, &app("mail"), &path).unwrap_err();
    assert!(matches!(disabled, NoPolicy::Disabled { errors: 1, .. }));
    assert!(disabled.to_string().contains("policy.d/mail.toml:15"), "{disabled}");
}

#[test]
fn programs_get_the_same() {
    let json = serde_json::to_value(explained(MAIL, "users/alice/Photos")).unwrap();
    assert_eq!(json["rights"][4]["right"], "write");
    assert_eq!(json["rights"][4]["allowed"], false);
    assert_eq!(json["rights"][4]["places"][0]["file"], "policy.d/mail.toml");
    assert_eq!(json["rights"][4]["places"][0]["line"], 15);
}

#[test]
fn mount_paths_lead_to_data_paths() {
    let set = good(&[("mail", MAIL)]);
    let data = |mount: &str| set.get(&app("mail")).unwrap().data_path(&mount.parse().unwrap());
    assert_eq!(data("/Mail/inbox"), Some("users/alice/Mail/inbox".parse().unwrap()));
    assert_eq!(data("/Mailbox"), None);
}
