//! Commands that talk to a gateway: against an admin door that is honest, and against one that is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step ends the test

mod common;

use common::World;
use common::fake_gateway::{FakeGateway, Manner};
use serde_json::Value;
use strongroom_contracts::{ContractId, Subject};
use strongroom_protocol::admin::SessionInfo;
use strongroom_protocol::hello::SessionId;

fn world() -> (World, FakeGateway) {
    let gateway = FakeGateway::bind();
    let world = World::with_admin(&gateway.address());
    gateway.serve(&world.base());
    (world, gateway)
}

fn grant(world: &World, application: &str, holder: &str) -> Value {
    let holder = format!("{holder}.pub");
    world.run(&["--json", "grant", application, "--holder", &holder]).ok().json()
}

fn states(world: &World, args: &[&str]) -> Vec<String> {
    let json = world.run(&[&["--json", "list"], args].concat()).ok().json();
    let list = json["contracts"].as_array().unwrap().clone();
    list.iter()
        .map(|one| format!("{} {} {}", one["application"], one["generation"], one["state"]).replace('"', ""))
        .collect()
}

fn subjects(world: &World, gateway: &FakeGateway) -> Vec<Subject> {
    let issuer = world.read("base/base/issuer.pub").trim().parse().unwrap();
    let key: strongroom_contracts::PublicKey = world.read("base/gateway/gateway.pub").trim().parse().unwrap();
    let seen = gateway.seen.lock().unwrap();
    seen.revocations.iter().map(|one| one.verify(&issuer, &key.gateway_id()).unwrap().subject).collect()
}

#[test]
fn a_contract_is_deposited() {
    let (world, gateway) = world();
    let run = world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]).ok();
    assert!(run.err.contains("deposited at the gateway"), "{}", run.err);
    let seen = gateway.seen.lock().unwrap();
    assert_eq!(seen.deposits.len(), 1);
    assert_eq!(seen.deposits[0], strongroom_contracts::armour::read(&world.read("m")).unwrap());
}

#[test]
fn the_gateway_knows_generations_that_a_restored_backup_does_not() {
    let (world, gateway) = world();
    gateway.seen.lock().unwrap().lowest.insert("mail".parse().unwrap(), 7);
    assert_eq!(grant(&world, "mail", "holder")["generation"], 7);
    assert_eq!(grant(&world, "editor", "holder")["generation"], 1);
}

#[test]
fn a_revocation_is_believed_by_its_receipt() {
    let (world, gateway) = world();
    grant(&world, "mail", "holder");
    let run = world.run(&["revoke", "mail", "--why", "alert 42"]).ok();
    assert!(run.out.contains("fenced: mail below generation 2"), "{}", run.out);
    assert!(run.out.contains("ms from command to fence") && run.out.contains("1 session cut"), "{}", run.out);
    assert!(run.out.contains("last operation let through: 4711"), "{}", run.out);
    assert_eq!(states(&world, &[]), ["mail 1 revoked"]);

    // Again: it voids nothing more, and no generation is wasted.
    let json = world.run(&["--json", "revoke", "mail"]).ok().json();
    assert_eq!((json["fenced"].as_bool(), json["sessions"].as_u64()), (Some(true), Some(1)));
    assert_eq!(json["subject"], "mail below generation 2");
    assert_eq!(grant(&world, "mail", "holder")["generation"], 2);

    // An application that only the gateway knows can be revoked too.
    gateway.seen.lock().unwrap().highest.insert("ghost".parse().unwrap(), 5);
    let json = world.run(&["--json", "revoke", "ghost"]).ok().json();
    assert_eq!(json["subject"], "ghost below generation 6");
    world.run(&["revoke", "nobody"]).fails(4, "no contract was ever issued to `nobody`");
}

#[test]
fn a_receipt_that_is_not_to_be_believed_is_not() {
    let (world, gateway) = world();
    grant(&world, "mail", "holder");
    for manner in [Manner::ForgeReceipts, Manner::StaleReceipts] {
        gateway.manner(manner);
        world
            .run(&["revoke", "mail"])
            .fails(6, "NOT FENCED: mail below generation 2: the gateway's answer is not to be believed");
        world.run(&["reissue", "mail"]).fails(6, "not to be believed");
    }
    assert!(!world.path("base/issued/fenced").exists());
    // It is sent again before anything is issued.
    gateway.manner(Manner::Honest);
    assert_eq!(grant(&world, "mail", "holder")["generation"], 2);
    assert!(world.path("base/issued/fenced").exists());
}

#[test]
fn a_gateway_that_dies_while_it_revokes_has_not_fenced() {
    let (world, gateway) = world();
    grant(&world, "mail", "holder");
    gateway.manner(Manner::HangUpOnRevoke);
    world.run(&["revoke", "mail"]).fails(5, "send it as soon as the gateway is back");
    world.run(&["reissue", "mail"]).fails(5, "still pending");
    gateway.manner(Manner::Honest);
    let json = world.run(&["--json", "reissue", "mail"]).ok().json();
    assert_eq!(json["generation"], 2);
    gateway.manner(Manner::HangUpOnRevoke);
    world.run(&["reissue", "mail"]).fails(5, "nothing was issued");
    gateway.manner(Manner::RefuseRevocations);
    world.run(&["revoke", "editor"]).fails(6, "NOT FENCED: editor below generation 1");
    gateway.manner(Manner::Honest);
    let run = world.run(&["renew", "--all"]).ok();
    assert!(run.err.contains("pending revocation of mail below generation 3"), "{}", run.err);
    assert!(!run.err.contains("editor"), "what the gateway refused is not sent again: {}", run.err);
}

#[test]
fn a_contract_goes_with_its_other_terms() {
    let (world, gateway) = world();
    let first = grant(&world, "mail", "holder");
    world.run(&["renew", "mail"]).ok();
    world.keygen("other");
    grant(&world, "mail", "other");
    let id = first["contract"].as_str().unwrap();
    world.run(&["revoke", &id[..10]]).ok();
    let revoked = subjects(&world, &gateway);
    assert_eq!(revoked.len(), 2);
    assert_eq!(revoked[0], Subject::Contract(id.parse().unwrap()));
    assert_eq!(states(&world, &[]), ["mail 1 revoked", "mail 1 revoked", "mail 1 valid"]);

    // A revoked contract is not renewed, and neither is what it superseded.
    let json = world.run(&["--json", "renew", "mail"]).ok().json();
    assert_eq!(json["renewed"], 1);
    assert_eq!(states(&world, &[]), ["mail 1 revoked", "mail 1 revoked", "mail 1 valid"]);
    // Nor issued again.
    let json = world.run(&["--json", "reissue", "mail"]).ok().json();
    assert_eq!(json["contracts"].as_array().unwrap().len(), 1);
    assert_eq!(json["contracts"][0]["holder"], world.read("other.pub").trim());

    // A block that a holder made is known by its number alone.
    let unknown = ContractId::from_bytes([9; 16]).to_string();
    let run = world.run(&["revoke", &unknown]).ok();
    assert!(run.err.contains("is not in the archive"), "{}", run.err);
}

#[test]
fn a_reissue_voids_first_and_keeps_what_was_granted() {
    let (world, gateway) = world();
    let args = [
        "--json",
        "grant",
        "mail",
        "--holder",
        "holder.pub",
        "--path",
        "/Mail",
        "--rights",
        "read-only",
        "--for",
        "1h",
    ];
    world.run(&args).ok();
    world.keygen("other");
    grant(&world, "mail", "other");
    let json = world.run(&["--json", "reissue", "mail"]).ok().json();
    assert_eq!(json["generation"], 2);
    let contracts = json["contracts"].as_array().unwrap();
    assert_eq!(contracts.len(), 2);
    assert_eq!(contracts[0]["grants"].as_array().unwrap().len(), 1);
    assert_eq!(contracts[0]["grants"][0]["rights"], serde_json::json!(["list", "read"]));
    assert_eq!(
        contracts[0]["expires"].as_u64().unwrap() - contracts[0]["not_before"].as_u64().unwrap(),
        3600
    );
    assert_eq!(subjects(&world, &gateway).len(), 1);
    assert_eq!(states(&world, &[]), ["mail 1 revoked", "mail 1 revoked", "mail 2 valid", "mail 2 valid"]);

    // To a guest with a new key; a file if it is asked for.
    world.keygen("fresh");
    world.run(&["reissue", "mail", "--out", "m"]).fails(2, "has 2 holders");
    let json = world.run(&["--json", "reissue", "mail", "--holder", "fresh.pub", "--out", "m"]).ok().json();
    assert_eq!(json["contracts"][0]["holder"], world.read("fresh.pub").trim());
    assert_eq!(json["contracts"].as_array().unwrap().len(), 1);
    world.run(&["show", "m"]).ok();

    // A policy that denies it stops it before anything is void.
    let before = (world.snapshot(), subjects(&world, &gateway).len());
    let policy = world.read("base/policy.d/mail.toml");
    world.write("base/policy.d/mail.toml", &policy.replace("\"read-write\"", "\"read-only\""));
    world.run(&["reissue", "mail"]).fails(3, "nothing was changed");
    world.write("base/policy.d/mail.toml", &policy);
    assert_eq!((world.snapshot(), subjects(&world, &gateway).len()), before);

    // After a revocation it is the way back.
    world.run(&["revoke", "mail"]).ok();
    let json = world.run(&["--json", "reissue", "mail"]).ok().json();
    assert_eq!(json["contracts"][0]["holder"], world.read("fresh.pub").trim());
}

#[test]
fn renewals_last_as_long_as_the_policy() {
    let (world, gateway) = world();
    assert_eq!(world.run(&["renew", "--all"]).ok().out, "nothing to renew\n");
    let args = ["--json", "grant", "mail", "--holder", "holder.pub", "--path", "shared", "--for", "2h"];
    let first = world.run(&args).ok().json();
    grant(&world, "editor", "holder");
    let json = world.run(&["--json", "renew", "--all"]).ok().json();
    assert_eq!(json["renewed"], 2);
    let seen = || gateway.seen.lock().unwrap().deposits.last().unwrap().claimed_terms().unwrap();
    let renewed = seen();
    assert_eq!(renewed.application.as_str(), "mail");
    assert_ne!(renewed.id.to_string(), first["contract"].as_str().unwrap());
    assert_eq!(renewed.generation, 1);
    assert_eq!(renewed.grants.len(), 1);
    assert_eq!(renewed.expires - renewed.not_before, 7200);

    // Only what is due.
    let json = world.run(&["--json", "renew", "--all", "--within", "4h"]).ok().json();
    assert_eq!(json["renewed"], 1);
    let results: Vec<_> = json["contracts"].as_array().unwrap().iter().map(|one| &one["result"]).collect();
    assert_eq!(results, ["not due", "renewed"]);

    // What the policy no longer allows is left to expire, saying why; the others go on.
    let policy = world.read("base/policy.d/mail.toml");
    world.write("base/policy.d/mail.toml", &policy.replace("path = \"shared\"", "path = \"common\""));
    let run = world.run(&["renew", "--all"]).ok();
    assert!(run.out.contains("skipped") && run.out.contains("no [[grant]] covers shared"), "{}", run.out);
    assert!(run.out.contains("renewed"), "{}", run.out);
    let run = world.run(&["renew", "mail"]);
    assert_eq!(run.code, 3, "asked for by name, a denial is an error: {}", run.out);
    // A mistake is no decision.
    world.write("base/policy.d/mail.toml", &policy.replace("path =", "pth ="));
    let run = world.run(&["renew", "--all"]);
    assert_eq!(run.code, 2, "{}", run.out);
    assert!(run.out.contains("renewed"), "{}", run.out);
    std::fs::remove_file(world.path("base/policy.d/mail.toml")).unwrap();
    assert!(world.run(&["renew", "--all"]).ok().out.contains("no policy file is for `mail`"));
}

#[test]
fn a_refused_contract_was_never_issued() {
    let (world, gateway) = world();
    gateway.manner(Manner::RefuseDeposits);
    world.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]).fails(6, "not today");
    assert!(!world.path("m").exists());
    assert_eq!(states(&world, &["--all"]), Vec::<String>::new());
}

#[test]
fn a_contract_that_may_have_been_handed_over_is_on_record() {
    let (world, gateway) = world();
    gateway.manner(Manner::HangUpOnDeposit);
    world
        .run(&["grant", "mail", "--holder", "holder.pub", "--out", "m"])
        .fails(5, "may not have reached the gateway");
    assert!(!world.path("m").exists());
    gateway.manner(Manner::Honest);
    assert_eq!(states(&world, &[]), ["mail 1 not deposited"]);
    world.run(&["renew", "mail"]).ok();
    assert_eq!(states(&world, &[]), ["mail 1 valid"]);
}

#[test]
fn pending_revocations_are_sent_before_anything_is_issued() {
    let (world, gateway) = world();
    grant(&world, "mail", "holder");
    // Nobody at home: kept.
    let config = world.read("base/base/base.toml");
    world.write("base/base/base.toml", &config.replace(&gateway.address(), "127.0.0.1:1"));
    world.run(&["revoke", "mail"]).fails(5, "the signed revocation is kept");
    world.write("base/base/base.toml", &config);
    gateway.manner(Manner::ForgeReceipts);
    world.run(&["grant", "editor", "--holder", "holder.pub"]).fails(6, "nothing is issued before it holds");
    gateway.manner(Manner::Honest);
    let run = world.run(&["grant", "mail", "--holder", "holder.pub"]).ok();
    assert!(run.err.contains("pending revocation of mail below generation 2 was carried out"), "{}", run.err);
    assert!(run.err.contains("generation 2"), "{}", run.err);
    assert_eq!(std::fs::read_dir(world.path("base/issued/pending")).unwrap().count(), 0);
    let listed = world.run(&["list"]).ok();
    assert!(!listed.err.contains("NOT FENCED"), "{}", listed.err);
}

#[test]
fn another_gateway_is_not_spoken_to() {
    let (world, gateway) = world();
    let other = FakeGateway::bind();
    let stranger = World::with_admin(&other.address());
    other.serve(&stranger.base());
    let config = world.read("base/base/base.toml");
    world.write("base/base/base.toml", &config.replace(&gateway.address(), &other.address()));
    world.run(&["sessions"]).fails(5, "not the expected gateway");
    world.run(&["revoke", "mail"]).fails(5, "NOT FENCED");
    assert!(other.seen.lock().unwrap().revocations.is_empty());
}

#[test]
fn a_gateway_that_hangs_up_may_not_know_us() {
    let (world, gateway) = world();
    gateway.manner(Manner::HangUp);
    world.run(&["sessions"]).fails(6, "put base/admin.pub into `admin-keys`");
}

#[test]
fn a_clock_far_off_stops_issuing_but_not_revoking() {
    let (world, gateway) = world();
    for (ahead, words) in [(3605, "is 1h ahead of"), (-88_200, "is 1d behind")] {
        *gateway.ahead.lock().unwrap() = ahead;
        let before = world.snapshot();
        world.run(&["grant", "mail", "--holder", "holder.pub"]).fails(1, words);
        assert_eq!(world.snapshot(), before);
        world.run(&["revoke", "mail"]).ok();
    }
    // A little is bridged: the contract is valid by the gateway's clock from the first second.
    *gateway.ahead.lock().unwrap() = -100;
    let json = grant(&world, "mail", "holder");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(json["not_before"].as_u64().unwrap() <= now - 100);
}

#[test]
fn a_gateway_that_never_answers_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::with_admin(&silent.local_addr().unwrap().to_string());
    world.run(&["--timeout", "1s", "sessions"]).fails(5, "timed out");
}

#[test]
fn sessions_are_listed_and_cannot_steer_the_terminal() {
    let (world, gateway) = world();
    assert_eq!(world.run(&["sessions"]).ok().out, "no sessions\n");
    let holder = world.read("holder.pub").trim().parse().unwrap();
    gateway.seen.lock().unwrap().sessions.push(SessionInfo {
        session: SessionId([3; 16]),
        application: "mail".parse().unwrap(),
        contract: ContractId::from_bytes([1; 16]),
        generation: 4,
        holder,
        addresses: vec!["10.77.0.2:40000".into(), "\x1b[2J".into()],
        since: 1_700_000_000,
        expires: 4_000_000_000,
        handles: 5,
        nodes: 6,
        operations: 7,
        denied: 8,
        bytes_read: 9 << 20,
        bytes_written: 10,
    });
    let run = world.run(&["sessions"]).ok();
    assert!(run.out.contains("10.77.0.2:40000 \\u{1b}[2J") && run.out.contains("9.0 MiB"), "{}", run.out);
    let json = world.run(&["--json", "sessions", "mail"]).ok().json();
    assert_eq!(json["sessions"][0]["denied"], 8);
    assert_eq!(world.run(&["sessions", "editor"]).ok().out, "no sessions\n");
}

#[test]
fn unused_authority_is_listed() {
    let (world, _gateway) = world();
    grant(&world, "mail", "holder");
    assert_eq!(states(&world, &["--unused"]), ["mail 1 valid"]);
    let run = world.run(&["list"]).ok();
    assert!(run.out.contains("never"), "{}", run.out);
}
