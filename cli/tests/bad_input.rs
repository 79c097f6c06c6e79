//! Wrong, truncated, foreign and unreachable things: one clear message, the documented exit code, no half-made state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step ends the test

mod common;

use common::{World, run};
use strongroom_contracts::armour;

/// Every way to damage a file of text.
fn damaged(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = text.as_bytes();
    vec![
        ("empty", vec![]),
        ("cut in half", bytes[..bytes.len() / 2].to_vec()),
        ("binary", (0..=255u8).cycle().take(2000).collect()),
        ("something else", b"hello\nworld\n".to_vec()),
        ("huge", b"x".repeat(3 << 20)),
    ]
}

#[test]
fn damaged_secret_keys_are_refused() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let good = world.read("holder.key");
    let issuer = world.read("base/base/issuer.key");
    for (what, bytes) in damaged(&good) {
        std::fs::write(world.path("holder.key"), &bytes).unwrap();
        std::fs::write(world.path("base/base/issuer.key"), &bytes).unwrap();
        let before = world.snapshot();
        let narrowed =
            world.run(&["attenuate", "m", "--holder", "holder.pub", "--key", "holder.key", "--out", "n"]);
        assert!(narrowed.err.contains("`holder.key`"), "{what}: {}", narrowed.err);
        narrowed.fails(2, "holder's key");
        world.run(&["grant", "mail", "--holder", "holder.pub", "--offline"]).fails(2, "issuer key");
        world.run(&["revoke", "mail"]).fails(2, "issuer key");
        assert_eq!(world.snapshot(), before, "{what}");
    }
    std::fs::write(world.path("base/base/issuer.key"), issuer).unwrap();

    // The halves of a key taken for each other.
    std::fs::write(world.path("holder.key"), &good).unwrap();
    world.run(&["grant", "mail", "--holder", "holder.key", "--offline"]).fails(2, "is a secret key");
    std::fs::copy(world.path("holder.pub"), world.path("swapped.key")).unwrap();
    common::chmod(world.path("swapped.key"), 0o600);
    world
        .run(&["attenuate", "m", "--holder", "holder.pub", "--key", "swapped.key"])
        .fails(2, "this is a public key");
}

#[test]
fn what_is_no_key_file_is_refused() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let narrow = |key: &str| world.run(&["attenuate", "m", "--holder", "holder.pub", "--key", key]);
    narrow("missing.key").fails(4, "`missing.key` does not exist");
    narrow("base").fails(2, "is not a regular file");
    run(std::process::Command::new("mkfifo").arg(world.path("pipe"))).ok();
    narrow("pipe").fails(2, "is not a regular file");
    let grant = |holder: &str| world.run(&["grant", "mail", "--offline", "--holder", holder]);
    grant("ed25519:short").fails(2, "is not a public key");
    grant("missing.pub").fails(4, "`missing.pub` does not exist");
    grant("m").fails(2, "is not a public key");
    grant("").fails(2, "ed25519:");
}

#[test]
fn a_foreign_owner_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give files away; as an ordinary user such a key is not even readable.
        return;
    }
    let world = World::new();
    std::os::unix::fs::chown(world.path("base/base/issuer.key"), Some(12345), None).unwrap();
    world
        .run(&["grant", "mail", "--offline", "--holder", "holder.pub"])
        .fails(2, "belongs to user 12345, not to you");
}

#[test]
fn damaged_contracts_are_refused() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let good = world.read("m");
    for (what, bytes) in damaged(&good) {
        std::fs::write(world.path("m"), bytes).unwrap();
        let before = world.snapshot();
        let shown = world.run(&["show", "m"]);
        assert!(shown.err.contains("contract file `m`"), "{what}: {}", shown.err);
        assert_eq!(shown.code, 2, "{what}: {}", shown.err);
        world
            .run(&["attenuate", "m", "--holder", "holder.pub", "--key", "holder.key", "--out", "n"])
            .fails(2, "contract file `m`");
        assert_eq!(world.snapshot(), before, "{what}");
    }
    world.run(&["show", "missing"]).fails(4, "`missing` does not exist");
    world.run(&["show", "base"]).fails(2, "is not a regular file");

    // A changed letter of the body is noticed, whatever it does to the encoding.
    let at = good.find("AAAAAA").unwrap();
    let mut flipped = good.clone();
    flipped.replace_range(at..at + 1, "B");
    world.write("m", &flipped);
    let shown = world.run(&["show", "m"]);
    assert!(matches!(shown.code, 2 | 3), "{} {}", shown.code, shown.err);
    let last = good.lines().rev().nth(1).unwrap();
    let changed = format!("{}{}", if last.starts_with('A') { 'B' } else { 'A' }, &last[1..]);
    world.write("m", &good.replace(last, &changed));
    world.run(&["show", "m"]).fails(3, "not signed by the issuer");
}

#[test]
fn a_foreign_contract_is_not_shown_as_ours() {
    let (ours, theirs) = (World::new(), World::new());
    theirs.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    ours.write("m", &theirs.read("m"));
    let run = ours.run(&["--json", "show", "m"]);
    assert_eq!(run.code, 3);
    assert_eq!(run.error_json()["kind"], "denied");

    // Nor does one that strayed into the archive stop anything.
    ours.run(&["grant", "mail", "--holder", "holder.pub", "--out", "own", "--offline"]).ok();
    let id = armour::read(&theirs.read("m")).unwrap().claimed_terms().unwrap().id;
    ours.write(&format!("base/issued/contracts/mail/{id}.contract"), &theirs.read("m"));
    let listed = ours.run(&["list", "--offline"]).ok();
    assert!(listed.out.contains("valid") && !listed.out.contains(&id.to_string()), "{}", listed.out);
    assert!(listed.err.contains("warning: archive: contract file"), "{}", listed.err);
}

#[test]
fn an_unknown_application_is_told_from_a_bad_name() {
    let world = World::new();
    let before = world.snapshot();
    world
        .run(&["grant", "mial", "--holder", "holder.pub", "--offline"])
        .fails(4, "no policy file is for `mial`; did you mean `mail`?");
    world.run(&["grant", "Mail", "--holder", "holder.pub", "--offline"]).fails(2, "application name `Mail`");
    world.run(&["revoke", "mial"]).fails(4, "did you mean: contract revoke mail");
    world.run(&["revoke", "M A I L"]).fails(2, "application name");
    world.run(&["revoke", "c-0123"]).fails(4, "no contract was ever issued to `c-0123`");
    world.run(&["renew", "mail"]).fails(4, "there is no contract of `mail`");
    world.run(&["reissue", "mail"]).fails(4, "there is no contract of `mail`");
    world.run(&["reissue", "nope"]).fails(4, "no policy file is for `nope`");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn without_a_gateway_nothing_is_half_done() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let before = world.snapshot();
    world
        .run(&["grant", "mail", "--holder", "holder.pub", "--out", "x"])
        .fails(5, "the gateway at 127.0.0.1:1 cannot be reached");
    world.run(&["renew", "--all"]).fails(5, "nothing was renewed");
    world.run(&["reissue", "mail"]).fails(5, "older contracts are still valid");
    world.run(&["sessions"]).fails(5, "cannot be reached");
    world.run(&["list", "--unused"]).fails(5, "cannot be reached");
    assert_eq!(world.snapshot(), before);
    let error = world.run(&["--json", "sessions"]).error_json();
    assert_eq!((error["kind"].as_str(), error["code"].as_u64()), (Some("gateway-unreachable"), Some(5)));
}

#[test]
fn a_revocation_that_could_not_be_sent_is_kept_and_counts_here() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let run = world.run(&["--json", "revoke", "mail", "--why", "stolen laptop"]);
    assert_eq!(run.code, 5);
    let error = run.error_json();
    assert_eq!(error["fenced"], false);
    assert!(error["message"].as_str().unwrap().starts_with("NOT FENCED: mail below generation 2"));
    let pending = error["pending"][0].as_str().unwrap();
    assert!(std::fs::read_to_string(pending).unwrap().contains("stolen laptop"));
    assert_eq!(world.run(&["--json", "show", "m"]).ok().json()["state"], "revoked");
    let listed = world.run(&["list"]).ok();
    assert!(listed.err.contains("NOT FENCED: the revocation of mail below generation 2"), "{}", listed.err);
    assert!(listed.out.contains("revoked"), "{}", listed.out);
    // What is issued afterwards is above it.
    let json = world.run(&["--json", "grant", "mail", "--holder", "holder.pub", "--offline"]).ok().json();
    assert_eq!(json["generation"], 2);
    world.run(&["revoke", "mail", "--why", &"x".repeat(600)]).fails(2, "longer than 512 bytes");
}

#[test]
fn a_base_directory_that_is_none_or_damaged_is_named() {
    let world = World::new();
    let away = |args: &[&str]| run(world.command(&["--dir", "nowhere"]).args(args));
    for args in
        [&["list"][..], &["renew", "--all"], &["revoke", "mail"], &["sessions"], &["show", "c-123456"]]
    {
        away(args).fails(4, "contract init nowhere");
    }
    away(&["policy", "check"]).fails(4, "nowhere/policy.d` does not exist");

    world.write("base/issued/generations.json", "{");
    world
        .run(&["grant", "mail", "--holder", "holder.pub", "--offline"])
        .fails(2, "generations.json` is damaged");
    // The emergency button works all the same, as far as it can.
    world.run(&["revoke", "mail"]).fails(5, "NOT FENCED");
    std::fs::remove_file(world.path("base/issued/generations.json")).unwrap();

    let good = world.read("base/base/base.toml");
    for (text, message) in [
        ("", "missing field"),
        ("gateway = 3\nadmin = \"127.0.0.1:1\"\n", "gateway"),
        ("gateway = \"ed25519:x\"\nadmin = \"127.0.0.1:1\"\n", "is not a public key"),
        (&good.replace("127.0.0.1:1", "somewhere"), "`somewhere` is neither"),
        (&good.replace("admin =", "amdin ="), "amdin"),
        ("gateway = \"", "base.toml"),
    ] {
        world.write("base/base/base.toml", text);
        world.run(&["sessions"]).fails(2, message);
    }
}

#[test]
fn every_kind_of_mistake_in_a_policy_is_shown_in_one_go() {
    let world = World::new();
    let mail = "application = \"mail\"\nlifetime = \"8 hours\"\n\n[[grant]]\npath = \"/users/alice\"\n\
                mount = \"Mail\"\nrights = \"raed-only\"\nqouta = \"1 GiB\"\n";
    world.write("base/policy.d/mail.toml", mail);
    world.write("base/policy.d/broken.toml", "application = \"broken\n");
    world.write("base/policy.d/editor2.toml", &world.read("base/policy.d/editor.toml"));
    // What version control and editors leave there is no policy.
    world.write("base/policy.d/.hg/x.toml", "=");
    world.write("base/policy.d/.#mail.toml", "=");
    world.write("base/policy.d/mail.toml~", "=");

    let run = world.run(&["policy", "check"]);
    assert_eq!(run.code, 2, "{}", run.out);
    for part in [
        "mail.toml:2:",
        "mail.toml:5:",
        "mail.toml:6:",
        "mail.toml:7:",
        "mail.toml:8:",
        "`read-only`",
        "`quota`",
        "broken.toml:1:",
        "editor2.toml:2:",
        "1 policy in force: editor",
        "disabled by mistakes: broken, mail",
    ] {
        assert!(run.out.contains(part), "no {part} in {}", run.out);
    }
    let checked = world.run(&["--json", "policy", "check"]);
    let json = checked.json();
    assert_eq!(checked.code, 2);
    assert_eq!(json["policies"], serde_json::json!(["editor"]));
    assert!(json["mistakes"].as_array().unwrap().len() >= 7);
    assert!(json["mistakes"].as_array().unwrap().iter().all(|one| one["line"].as_u64().unwrap() > 0));

    // Its own application only, and every command says so.
    world
        .run(&["grant", "mail", "--holder", "holder.pub", "--offline"])
        .fails(2, "the policy of `mail` is disabled");
    let granted = world.run(&["grant", "editor", "--holder", "holder.pub", "--offline"]).ok();
    assert!(granted.err.contains("mail.toml` has mistakes and is left out"), "{}", granted.err);
}

#[test]
fn wrong_arguments_are_bad_input() {
    let world = World::new();
    for args in [
        &["frobnicate"][..],
        &[],
        &["grant"],
        &["grant", "mail"],
        &["grant", "mail", "--holder", "holder.pub", "--force"],
        &["renew"],
        &["renew", "mail", "--all"],
        &["list", "--unused", "--offline"],
        &["policy"],
        &["--timeout", "fast", "list"],
    ] {
        let run = world.run(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
    }
    let run = world.run(&["--json", "grant", "mail"]);
    assert_eq!(run.code, 2);
    let message = run.error_json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("required") && message.contains("--holder"), "{message}");
    assert!(world.run(&["--help"]).ok().out.contains("Exit codes:"));
    assert!(world.run(&["grant", "--help"]).ok().out.contains("--holder"));
    assert!(world.run(&["--version"]).ok().out.contains("contract 0"));
}

#[test]
fn an_output_file_is_never_replaced_unasked() {
    let world = World::new();
    world.write("m", "precious");
    let grant = |more: &[&str]| {
        world.run(&[&["grant", "mail", "--holder", "holder.pub", "--offline", "--out", "m"], more].concat())
    };
    let before = world.snapshot();
    grant(&[]).fails(2, "--force");
    assert_eq!(world.snapshot(), before);
    grant(&["--force"]).ok();
    world.run(&["show", "m"]).ok();
    let narrow = ["attenuate", "m", "--holder", "holder.pub", "--key", "holder.key", "--out", "m"];
    world.run(&narrow).fails(2, "exists already");
    world
        .run(&["grant", "mail", "--holder", "holder.pub", "--offline", "--out", "."])
        .fails(2, "is a directory");
}

#[test]
fn a_secret_of_many_lines_comes_out_of_xenstore_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let key = strongroom_contracts::SecretKey::generate().unwrap().public();
    let secret = strongroom_base::secret::Enrolment::new(1, "mail".parse().unwrap(), key).unwrap().to_text();
    world.write("secret", &secret);
    // As Xen's own: without -R, line ends and what cannot be printed are escaped.
    let tool = world.write(
        "bin/xenstore-read",
        "#!/bin/sh\ncd \"$(dirname \"$0\")/..\"\nif [ \"$1\" = -R ]; then cat secret; else sed -z 's/\\n/\\\\n/g' secret; fi\n",
    );
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tool.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let args = [
        "enroll",
        "--secret",
        "xenstore:strongroom/enrol",
        "--at",
        "127.0.0.1:1",
        "--out",
        ".",
        "--for",
        "1s",
    ];
    let enrolled = run(world.command(&args).env("PATH", path));
    // It was read and understood: nobody listens at that address, which is another matter.
    enrolled.fails(5, "cannot be reached");
}
