//! Commands that need no gateway: their happy paths, their modes and files, `--json`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step ends the test

mod common;

use common::{World, chmod, contract, mode, run};
use strongroom_contracts::{SecretKey, armour};

#[test]
fn init_makes_a_base_directory_with_the_right_modes() {
    let world = World::new();
    let base = world.base();
    for secret in ["base/issuer.key", "base/admin.key", "gateway/gateway.key"] {
        assert_eq!(mode(base.join(secret)), 0o600, "{secret}");
        SecretKey::from_file_text(&world.read(&format!("base/{secret}"))).unwrap();
    }
    for dir in ["base", "gateway", "issued"] {
        assert_eq!(mode(base.join(dir)), 0o700, "{dir}");
    }
    let config = world.read("base/gateway/gateway.toml");
    for line in [
        format!("issuer = \"{}\"", world.read("base/base/issuer.pub").trim()),
        format!("admin-keys = [\"{}\"]", world.read("base/base/admin.pub").trim()),
        "interface = \"lo\"".to_owned(),
        "network = \"127.0.0.0/24\"".to_owned(),
        "address = \"127.0.0.1:7070\"".to_owned(),
    ] {
        assert!(config.contains(&line), "no {line} in {config}");
    }
    assert!(world.read("base/base/base.toml").contains(world.read("base/gateway/gateway.pub").trim()));
    world.run(&["policy", "check"]).ok();
    assert_eq!(std::fs::read_dir(world.path("")).unwrap().count(), 3, "base and a key pair, nothing else");
}

#[test]
fn init_keeps_what_is_there() {
    let world = World::new();
    let before = world.snapshot();
    world.run(&["init", "base"]).fails(2, "exists already");
    world.run(&["init", "no/such/place"]).fails(4, "mkdir -p no/such");
    world.run(&["init", "holder.key"]).fails(2, "is not a directory");
    world.run(&["init", "other", "--network", "10.1.0.0/16"]).fails(2, "does not hold the address 10.77.0.1");
    world.run(&["init", "other", "--address", "ten:1"]).fails(2, "--address");
    assert_eq!(world.snapshot(), before);

    // A directory with policies that are under version control already is completed, and they stay.
    world.write("mine/policy.d/own.toml", "application = \"own\"\n");
    let json =
        world.run(&["--json", "init", "mine", "--admin", "unix:/run/strongroom/admin.sock"]).ok().json();
    assert_eq!(json["policies"].as_array().unwrap().len(), 0);
    assert_eq!(world.read("mine/policy.d/own.toml"), "application = \"own\"\n");
    assert!(!world.path("mine/policy.d/mail.toml").exists());
    let config = world.read("mine/gateway/gateway.toml");
    assert!(
        config.contains("admin = \"unix:/run/strongroom/admin.sock\"") && !config.contains("admin-network")
    );

    world.run(&["init", "bare", "--no-sample-policy"]).ok();
    assert_eq!(std::fs::read_dir(world.path("bare/policy.d")).unwrap().count(), 0);
}

#[test]
fn keygen_makes_a_pair_and_never_replaces_one() {
    let world = World::new();
    let key = SecretKey::from_file_text(&world.read("holder.key")).unwrap();
    assert_eq!(mode(world.path("holder.key")), 0o600);
    assert_eq!(world.read("holder.pub"), format!("{}\n", key.public()));

    let before = world.snapshot();
    world.run(&["keygen"]).fails(2, "--force");
    world.run(&["keygen", "--out", "x.pub"]).fails(2, "name of a public key");
    world.run(&["keygen", "--out", "no/such/dir/x.key"]).fails(4, "mkdir -p no/such/dir");
    world.write("y.pub", "something");
    world.run(&["keygen", "--out", "y.key"]).fails(2, "y.pub` exists already");
    std::fs::remove_file(world.path("y.pub")).unwrap();
    assert_eq!(world.snapshot(), before);

    let json = world.run(&["keygen", "--force", "--json"]).ok().json();
    assert_ne!(json["public_key"], key.public().to_string());
    assert_eq!(world.read("holder.pub").trim(), json["public_key"].as_str().unwrap());
    for text in [json.to_string(), world.run(&["keygen", "--force"]).ok().err] {
        let secret = world.read("holder.key");
        assert!(!text.contains(secret.lines().nth(1).unwrap()), "a secret key was shown");
    }
}

#[test]
fn keygen_is_not_fooled_by_the_umask() {
    let world = World::new();
    let out = world.path("k.key");
    let script = format!("umask 0; exec {} keygen --out {}", env!("CARGO_BIN_EXE_contract"), out.display());
    run(std::process::Command::new("sh").args(["-c", &script])).ok();
    assert_eq!(mode(out), 0o600);
}

#[test]
fn grant_issues_the_whole_policy() {
    let world = World::new();
    let run =
        world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "mail.contract", "--offline"]).ok();
    assert!(run.out.contains("/Photos") && run.err.contains("not at the gateway"), "{} {}", run.out, run.err);
    let chain = armour::read(&world.read("mail.contract")).unwrap();
    let effective = chain.verify_signed(&world.read("base/base/issuer.pub").trim().parse().unwrap()).unwrap();
    let granted: Vec<String> = effective
        .grants
        .iter()
        .map(|grant| format!("{} {} {}", grant.mount, grant.data, grant.rights))
        .collect();
    assert_eq!(
        granted,
        [
            "/Mail users/alice/Mail read-write",
            "/Photos users/alice/Photos append-only",
            "/shared shared read-only"
        ]
    );
    assert_eq!(effective.generation, 1);
    assert_eq!(effective.expires - effective.not_before, 8 * 3600);
    assert_eq!(effective.holder.to_string(), world.read("holder.pub").trim());
}

#[test]
fn grant_narrows() {
    let world = World::new();
    let holder = world.read("holder.pub");
    let args = ["--json", "grant", "mail", "--offline", "--holder", holder.trim(), "--for", "90m"];
    let json = world
        .run(
            &[
                &args[..],
                &["--path", "users/alice/Mail/lists", "--rights", "list,read", "--path", "/shared/x"],
            ]
            .concat(),
        )
        .ok()
        .json();
    assert_eq!(json["grants"][0]["data"], "users/alice/Mail/lists");
    assert_eq!(json["grants"][0]["mount"], "/Mail/lists");
    assert_eq!(json["grants"][0]["rights"], serde_json::json!(["list", "read"]));
    assert_eq!(json["grants"][1]["data"], "shared/x");
    assert_eq!(json["expires"].as_u64().unwrap() - json["not_before"].as_u64().unwrap(), 5400);
    assert_eq!(json["deposited"], false);
    assert!(json["armour"].as_str().unwrap().starts_with("-----BEGIN"));

    let json = world.run(&[&args[..], &["--rights", "read-only"]].concat()).ok().json();
    assert_eq!(json["grants"].as_array().unwrap().len(), 3);
    assert!(
        json["grants"].as_array().unwrap().iter().all(|grant| grant["rights"].as_array().unwrap().len() == 2)
    );
}

#[test]
fn the_policy_is_the_ceiling_and_nothing_is_made_above_it() {
    let world = World::new();
    let before = world.snapshot();
    let grant = |args: &[&str]| {
        world.run(&[&["grant", "mail", "--offline", "--holder", "holder.pub", "--out", "x"], args].concat())
    };
    grant(&["--path", "shared", "--rights", "read-write"])
        .fails(3, "mail.toml:19: rights = \"read-only\" lacks");
    grant(&["--path", "users/bob"]).fails(3, "no [[grant]] covers users/bob");
    grant(&["--path", "/Bob"]).fails(3, "mount paths of mail: /Mail, /Photos, /shared");
    grant(&["--for", "9h"]).fails(3, "lifetime = \"8h\" is less than the 9h asked for");
    grant(&["--rights", "write"]).fails(3, "lacks write");
    grant(&["--for", "0s"]).fails(2, "at least one second");
    grant(&["--for", "soon"]).fails(2, "\"8h\"");
    grant(&["--rights", "raed"]).fails(2, "`raed` is neither a right");
    grant(&["--path", "users/../bob"]).fails(2, "`..` component");
    grant(&["--path", "shared", "--rights", "read", "--rights", "list"]).fails(2, "--rights is given twice");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn show_tells_a_contract_from_its_signed_bytes() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let text = world.read("m");
    // The header is not believed.
    world.write("m", &text.replace("Application: mail", "Application: bank"));
    let shown = world.run(&["show", "m"]).ok();
    assert!(
        shown.out.contains("valid, signatures verified") && shown.out.contains("application  mail"),
        "{}",
        shown.out
    );
    assert!(!shown.out.contains("bank"));
    let json = world.run(&["--json", "show", "m"]).ok().json();
    assert_eq!((json["verified"].as_bool(), json["state"].as_str()), (Some(true), Some("valid")));
    let id = json["contract"].as_str().unwrap();
    for name in [id, &id[..8]] {
        assert_eq!(world.run(&["--json", "show", name]).ok().json()["contract"], id);
    }
    world.run(&["show", "c-0123456789"]).fails(4, "no contract `c-0123456789`");

    // Without a base directory the issuer is unknown, unless it is given.
    let away = |args: &[&str]| run(contract().args(["--dir", "/nonexistent"]).args(args));
    let path = world.path("m");
    let path = path.to_str().unwrap();
    let shown = away(&["show", path]);
    assert!(shown.out.contains("unverified"), "{} {}", shown.out, shown.err);
    let issuer = world.read("base/base/issuer.pub");
    assert!(away(&["show", path, "--issuer", issuer.trim()]).ok().out.contains("signatures verified"));
    let foreign = world.keygen("foreign");
    away(&["show", path, "--issuer", &foreign]).fails(3, "not signed by the issuer");
}

#[test]
fn an_expired_contract_is_shown_as_such_and_narrows_to_nothing() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline", "--for", "1s"]).ok();
    let state = || world.run(&["--json", "show", "m"]).ok().json()["state"].as_str().unwrap().to_owned();
    while state() == "valid" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(state(), "expired");
    assert!(world.run(&["show", "m"]).ok().out.contains("expired"));
    world
        .run(&["attenuate", "m", "--holder", "holder.pub", "--key", "holder.key", "--out", "n"])
        .fails(3, "expired");
    assert!(!world.path("n").exists());
}

#[test]
fn attenuate_narrows_offline() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let second = world.keygen("second");
    let away =
        |args: &[&str]| run(world.command(&["--dir", "/nonexistent", "--json", "attenuate"]).args(args));
    let json = away(&[
        "m",
        "--holder",
        "second.pub",
        "--key",
        "holder.key",
        "--path",
        "/Mail/lists",
        "--rights",
        "read-only",
        "--path",
        "users/alice/Photos",
        "--for",
        "1h",
        "--out",
        "n",
    ])
    .ok()
    .json();
    assert_eq!(json["holder"], second);
    assert_eq!(json["blocks"].as_array().unwrap().len(), 2);

    // What is shown is what the verified chain permits.
    let shown = world.run(&["--json", "show", "n"]).ok().json();
    assert_eq!(shown["verified"], true);
    assert_eq!(shown["grants"], json["grants"]);
    assert_eq!(shown["grants"][0]["mount"], "/Mail/lists");
    assert_eq!(shown["grants"][0]["rights"], serde_json::json!(["list", "read"]));
    assert_eq!(shown["grants"][1]["rights"].as_array().unwrap().len(), 4);

    let before = world.snapshot();
    let narrow = |args: &[&str]| {
        run(world
            .command(&["attenuate", "n", "--holder", "holder.pub", "--key", "second.key", "--out", "o"])
            .args(args))
    };
    narrow(&["--rights", "read-write"])
        .fails(3, "lacks create append write delete attr on users/alice/Mail/lists");
    narrow(&["--path", "shared"]).fails(3, "does not grant `shared`");
    narrow(&["--path", "users/alice/Mail"]).fails(3, "it grants users/alice/Mail/lists at /Mail/lists");
    narrow(&["--for", "2h"]).fails(3, "which is less than the 2h asked for");
    narrow(&["--path", "/Mail/lists", "--path", "/Mail/lists/a"]).fails(2, "overlap");
    run(&mut world.command(&[
        "attenuate",
        "n",
        "--holder",
        "holder.pub",
        "--key",
        "holder.key",
        "--out",
        "o",
    ]))
    .fails(2, "is not the key of the contract's holder");
    assert_eq!(world.snapshot(), before);

    // Four times, and not once more.
    let mut from = "n".to_owned();
    for depth in 2..=4 {
        let to = format!("n{depth}");
        world.run(&["attenuate", &from, "--holder", "second.pub", "--key", "second.key", "--out", &to]).ok();
        from = to;
    }
    world.run(&["show", "n4"]).ok();
    world
        .run(&["attenuate", "n4", "--holder", "second.pub", "--key", "second.key", "--out", "n5"])
        .fails(3, "at most 4 times");
}

#[test]
fn list_shows_the_newest_and_with_all_everything() {
    let world = World::new();
    assert_eq!(world.run(&["list", "--offline"]).ok().out, "no contracts\n");
    for _ in 0..2 {
        world.run(&["grant", "mail", "--holder", "holder.pub", "--offline"]).ok();
    }
    world.keygen("other");
    world.run(&["grant", "editor", "--holder", "other.pub", "--offline"]).ok();
    let states = |args: &[&str]| -> Vec<String> {
        let json = world.run(&[&["--json", "list", "--offline"], args].concat()).ok().json();
        let list = json["contracts"].as_array().unwrap().clone();
        list.iter().map(|one| format!("{} {}", one["application"], one["state"]).replace('"', "")).collect()
    };
    assert_eq!(states(&[]), ["editor valid", "mail valid"]);
    assert_eq!(states(&["--all"]), ["editor valid", "mail superseded", "mail valid"]);
    assert_eq!(states(&["mail"]), ["mail valid"]);
    // Without the gateway the list is still there, with a warning.
    let run = world.run(&["list"]).ok();
    assert!(run.out.contains("editor") && run.err.contains("cannot be reached"), "{} {}", run.out, run.err);
}

#[test]
fn policies_are_checked_explained_and_compared() {
    let world = World::new();
    let json = world.run(&["--json", "policy", "check"]).ok().json();
    assert_eq!(json["policies"], serde_json::json!(["editor", "mail"]));
    let run = world.run(&["policy", "explain", "mail", "/Photos/2026"]).ok();
    assert!(run.out.contains("users/alice/Photos/2026") && run.out.contains("denied"), "{}", run.out);
    let json = world.run(&["--json", "policy", "explain", "mail", "users/bob"]).ok().json();
    assert!(json["rights"].as_array().unwrap().iter().all(|answer| answer["allowed"] == false));
    world.run(&["policy", "explain", "mial", "users/bob"]).fails(4, "did you mean `mail`?");
    world.run(&["policy", "explain", "mail", "/Bob"]).fails(4, "no grant is mounted at /Bob");

    let mail = world.read("base/policy.d/mail.toml");
    world.write("new/mail.toml", &mail.replace("\"append-only\"", "\"read-write\""));
    let json = world.run(&["--json", "policy", "diff", "base/policy.d/mail.toml", "new"]).ok().json();
    assert_eq!(json["wider"], true);
    assert_eq!(json["changes"][0]["path"], "users/alice/Photos");
    let run = world.run(&["policy", "diff", "base/policy.d/mail.toml", "new"]).ok();
    assert!(run.out.contains("mail GAINS write delete attr on users/alice/Photos"), "{}", run.out);
    let run = world.run(&["policy", "diff", "new", "new"]).ok();
    assert_eq!(run.out, "no change in what is permitted\n");
    world.run(&["policy", "diff", "new", "old"]).fails(4, "`old` does not exist");
}

#[test]
fn a_narrower_contract_does_not_hide_that_a_wider_one_is_still_valid() {
    let world = World::new();
    let grant = |rights: &str| {
        world.run(&[
            "grant",
            "mail",
            "--offline",
            "--holder",
            "holder.pub",
            "--path",
            "/Mail",
            "--rights",
            rights,
        ])
    };
    assert!(!grant("read-only").ok().err.contains("allows more"));
    assert!(!grant("read-write").ok().err.contains("allows more"));
    assert!(grant("read-only").ok().err.contains("allows more and is still valid"));
}

#[test]
fn a_path_is_shown_as_what_it_is() {
    let world = World::new();
    let hidden = |c: char| c != '\n' && strongroom_contracts::visible::is_hidden(c);
    world.write(
        "base/policy.d/mail.toml",
        "application = \"mail\"\nlifetime = \"1h\"\n\n[[grant]]\npath = \"users/\\u202eecila\"\n\
         mount = \"/\\u200bMail\"\nrights = \"read-only\"\n",
    );
    let commands: [&[&str]; 5] = [
        &["grant", "mail", "--holder", "holder.pub", "--offline", "--out", "c.contract"],
        &["show", "c.contract"],
        &["--json", "show", "c.contract"],
        &["policy", "explain", "mail", "users/\u{202e}ecila", "base/policy.d"],
        &["list"],
    ];
    for args in commands {
        let run = world.run(args);
        for text in [&run.out, &run.err] {
            assert!(!text.contains(hidden), "{args:?}: {text:?}");
        }
    }
    let file = world.read("c.contract");
    assert!(file.contains("Grant: ") && !file.contains(hidden), "{file}");
    assert!(file.contains("users/\\u{202e}ecila at /\\u{200b}Mail"), "{file}");
    let shown = world.run(&["show", "c.contract"]).ok().out;
    assert!(shown.contains("users/\\u{202e}ecila"), "{shown}");
    let json = world.run(&["--json", "show", "c.contract"]).ok().json();
    assert_eq!(json["grants"][0]["data"], "users/\u{202e}ecila", "programs get what is meant");
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let world = World::new();
    world.run(&["grant", "mail", "--offline", "--holder", "holder.pub"]).ok();
    let list = format!("{} list --offline", env!("CARGO_BIN_EXE_contract"));
    // script(1) gives its command a terminal; the helper that runs commands without one refuses colour by itself.
    let on_terminal = |name: &str, value: &str| {
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &list, "/dev/null"]).env("STRONGROOM_DIR", world.base());
        command
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .env(name, value)
            .stdin(std::process::Stdio::null());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert!(on_terminal("X", "").contains("\x1b[32mvalid\x1b[0m"));
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_terminal(name, value);
        assert!(plain.contains("valid") && !plain.contains('\x1b'), "{name}: {plain:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    let script =
        format!("{} --dir {} list --offline | true", env!("CARGO_BIN_EXE_contract"), world.base().display());
    let run = run(std::process::Command::new("bash").args(["-o", "pipefail", "-c", &script]));
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[test]
fn the_key_is_read_only_if_nobody_else_can_reach_it() {
    let world = World::new();
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m", "--offline"]).ok();
    let issuer = world.base().join("base/issuer.key");
    let before = world.snapshot();
    for open in [0o644, 0o640, 0o604, 0o620] {
        chmod(&issuer, open);
        world
            .run(&["grant", "mail", "--holder", "holder.pub", "--out", "x", "--offline"])
            .fails(2, &format!("chmod 600 {}", issuer.display()));
        chmod(&issuer, 0o600);
        chmod(world.path("holder.key"), open);
        world
            .run(&["attenuate", "m", "--holder", "holder.pub", "--key", "holder.key", "--out", "n"])
            .fails(2, "chmod 600 holder.key");
        chmod(world.path("holder.key"), 0o600);
    }
    chmod(&issuer, 0o400);
    assert_eq!(world.snapshot(), before);
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "x", "--offline"]).ok();
}
