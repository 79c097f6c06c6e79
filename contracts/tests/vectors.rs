//! Golden vectors: files of fixed contracts, sound and broken, each with the verdict that every version must give.
//!
//! `vectors/README.md` describes the format. The files are written by
//! `cargo test -p strongroom-contracts --test vectors -- --ignored write_vectors` and then reviewed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{
    NOW, RawBlock, attenuation, blocks, data, gateway, grant, holder, issue, issuer, join, key, mail, mount,
    narrowed, narrowed_mail,
};
use strongroom_contracts::keys::Domain;
use strongroom_contracts::revocation::{self, Revocation, SignedRevocation, Subject};
use strongroom_contracts::{
    Attenuation, Chain, ContractId, Effective, FenceReceipt, Grant, Rights, SecretKey, SessionLimits,
    SignedReceipt, Terms, VerifyContext, armour, codec, receipt,
};

const BEGIN: &str = "-----BEGIN STRONGROOM CONTRACT-----";
const END: &str = "-----END STRONGROOM CONTRACT-----";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

// ---- reading: what a verdict is ----

/// The verdict on a vector's body, in the words of the file.
fn verdict(kind: &str, body: &str) -> String {
    let gateway_key = gateway().public();
    let gateway_id = gateway_key.gateway_id();
    let result = match kind {
        "contract" => armour::read(body).map_err(|error| error.to_string()).and_then(|chain| {
            let context = VerifyContext { issuer: &issuer().public(), gateway: &gateway_id, now: NOW };
            chain.verify(context).map(|effective| show(&effective)).map_err(|error| error.to_string())
        }),
        "revocation" => decoded::<SignedRevocation>(body).and_then(|signed| {
            let revocation = signed.verify(&issuer().public(), &gateway_id);
            revocation.map(|one| format!("{one:?}\n")).map_err(|error| error.to_string())
        }),
        "receipt" => decoded::<SignedReceipt>(body).and_then(|signed| {
            signed.verify(&gateway_key).map(|one| format!("{one:?}\n")).map_err(|error| error.to_string())
        }),
        other => panic!("unknown kind {other}"),
    };
    match result {
        Ok(text) => format!("valid\n{text}"),
        Err(reason) => format!("refused\n{reason}\n"),
    }
}

fn decoded<T: bincode::Encode + bincode::Decode<()>>(body: &str) -> Result<T, String> {
    let bytes =
        STANDARD.decode(body.split_whitespace().collect::<String>()).map_err(|error| error.to_string())?;
    codec::decode(&bytes).map_err(|error| error.to_string())
}

/// What a contract permits, one fact on each line.
fn show(effective: &Effective) -> String {
    let ids: Vec<_> = effective.ids.iter().map(ContractId::to_string).collect();
    let mut text = format!(
        "application {}\ngeneration {}\nids {}\nholder {}\nvalid {} until {}\nlimits {:?}\nnetworks {:?}\nundo space {:?}, {}\n",
        effective.application,
        effective.generation,
        ids.join(" "),
        effective.holder,
        effective.not_before,
        effective.expires,
        effective.limits,
        effective.networks,
        effective.undo.bytes,
        effective.undo.full.name(),
    );
    for one in &effective.grants {
        text += &format!("grant {} at {}: {}", one.data, one.mount, one.rights);
        for quota in &one.quotas {
            text += &format!("; quota {:?} bytes {:?} files on {}", quota.bytes, quota.files, quota.path);
        }
        text +=
            &format!("; file {:?}; undo {}; {}\n", one.max_file_bytes, one.undo_secs, one.ownership.name());
    }
    text
}

/// A vector file in its parts.
struct Vector {
    kind: String,
    verdict: String,
    body: String,
}

fn parse(text: &str) -> Vector {
    let (head, body) = text.split_once("\n=== body\n").expect("a body");
    let (head, verdict) = head.split_once("\n=== verdict: ").expect("a verdict");
    let kind = head.lines().find_map(|line| line.strip_prefix("kind: ")).expect("a kind");
    Vector { kind: kind.to_owned(), verdict: format!("{verdict}\n"), body: body.to_owned() }
}

#[test]
fn every_vector_gets_its_verdict() {
    let mut seen = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let vector = parse(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(verdict(&vector.kind, &vector.body), vector.verdict, "{}", path.display());
        seen += 1;
    }
    assert_eq!(seen, vectors().len(), "each vector has its file, and each file its vector");
}

/// Signing is deterministic (RFC 8032), so the files are what this version writes: a change of format shows here.
#[test]
fn the_files_are_what_is_written_today() {
    for (name, text) in vectors() {
        let file = std::fs::read_to_string(directory().join(format!("{name}.txt"))).unwrap_or_default();
        assert_eq!(file, text, "{name}");
    }
}

#[test]
#[ignore = "writes the vector files; run it by hand and review the difference"]
fn write_vectors() {
    for (name, text) in vectors() {
        std::fs::write(directory().join(format!("{name}.txt")), text).unwrap();
    }
}

/// The verdicts that matter most, said here and not only in the generated files.
#[test]
fn the_verdicts_are_the_intended_ones() {
    let vectors = vectors();
    let verdict = |name: &str| parse(&vectors[name]).verdict;
    for (name, reason) in [
        ("forged-signature", "block 0 of the contract is not signed by the issuer"),
        ("forged-payload", "block 0 of the contract is not signed by the issuer"),
        ("forged-attenuation", "block 1 of the contract is not signed by the holder"),
        ("wrong-issuer", "block 0 of the contract is not signed by the issuer"),
        ("names-another-issuer", "names another issuer"),
        ("reordered-blocks", "block 1 of the contract is not signed by the holder"),
        ("reordered-blocks-of-one-holder", "block 1 of the contract does not continue"),
        ("removed-block", "block 1 of the contract is not signed by the holder"),
        ("removed-first-block", "block 0 of the contract is not signed by the issuer"),
        ("removed-block-of-one-holder", "block 1 of the contract does not continue"),
        ("spliced-other-chain", "block 1 of the contract does not continue"),
        ("truncated-bytes", "it ends too early"),
        ("truncated-file", "cut off"),
        ("trailing-bytes", "not in canonical form"),
        ("trailing-bytes-in-payload", "not in canonical form"),
        ("replayed-to-another-gateway", "for another gateway"),
        ("over-deep", "has 6 blocks; 1 to 5"),
        ("no-blocks", "has 0 blocks"),
        ("expired", "expired 1 s ago"),
        ("expired-attenuation", "expired 1 s ago"),
        ("not-yet-valid", "becomes valid in 1 s"),
        ("nested-mounts", "overlap"),
        ("too-many-grants", "65 grants, more than 64"),
        ("too-many-networks", "33 networks, more than 32"),
        ("unknown-right", "unknown right bit"),
        ("unknown-version", "version 3 is not supported"),
        ("escaping-path", "malformed: invalid DataPath"),
        ("nothing-in-common", "no path in common"),
        ("attenuation-signed-as-contract", "block 1 of the contract is not signed by the holder"),
        ("revocation-forged", "not signed by the issuer"),
        ("revocation-for-another-gateway", "for another gateway"),
        ("receipt-of-another-gateway", "not signed by the gateway"),
    ] {
        let text = verdict(name);
        assert!(text.starts_with("refused\n") && text.contains(reason), "{name}: {text}");
    }
    let fourth = verdict("attenuated-4");
    assert!(
        fourth.contains("grant users/alice/Mail/lists at /Mail/lists: read-only; quota Some(1048576)"),
        "{fourth}"
    );
    assert_eq!(fourth.matches("grant ").count(), 1);
    assert!(verdict("attenuation-that-asks-for-more").contains("grant shared at /shared: read-only;"));
    // A quota around the signer's grant would tell of others' files: it is cut to the grant.
    let cut = verdict("attenuation-around-its-grant");
    assert!(cut.contains("quota Some(10) bytes None files on users/alice/Mail;"), "{cut}");
}

// ---- writing: how the vectors are made ----

fn lines(bytes: &[u8]) -> String {
    let encoded = STANDARD.encode(bytes);
    encoded.as_bytes().chunks(76).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect()
}

/// Bytes in armour, sound or not; the header of a contract file does not matter to verification.
fn armoured(bytes: &[u8]) -> String {
    format!("{BEGIN}\nNote: a test vector\n\n{}{END}\n", lines(bytes))
}

struct Writer(BTreeMap<&'static str, String>);

impl Writer {
    fn add(&mut self, name: &'static str, about: &str, kind: &str, body: &str) {
        let verdict = verdict(kind, body);
        let text = format!("# {about}\nkind: {kind}\n\n=== verdict: {verdict}=== body\n{body}");
        assert!(self.0.insert(name, text).is_none());
    }

    fn chain(&mut self, name: &'static str, about: &str, chain: &Chain) {
        self.add(name, about, "contract", &armour::write(chain).unwrap());
    }

    fn bytes(&mut self, name: &'static str, about: &str, bytes: &[u8]) {
        self.add(name, about, "contract", &armoured(bytes));
    }

    fn terms(&mut self, name: &'static str, about: &str, change: impl FnOnce(&mut Terms)) {
        let mut terms = mail();
        change(&mut terms);
        self.bytes(name, about, &join(&[RawBlock::of_terms(&terms)]));
    }
}

fn vectors() -> BTreeMap<&'static str, String> {
    let mut out = Writer(BTreeMap::new());
    sound(&mut out);
    forged(&mut out);
    rearranged(&mut out);
    damaged(&mut out);
    untimely(&mut out);
    senseless(&mut out);
    statements(&mut out);
    out.0
}

fn sound(out: &mut Writer) {
    out.chain("valid", "A contract as the issuer signs it.", &issue(&mail()));
    out.chain("attenuated-1", "Narrowed once.", &narrowed_mail(1));
    out.chain("attenuated-2", "Narrowed twice.", &narrowed_mail(2));
    out.chain("attenuated-3", "Narrowed three times.", &narrowed_mail(3));
    out.chain("attenuated-4", "Narrowed four times, the most that is allowed.", &narrowed_mail(4));
    let more = Attenuation {
        expires: NOW + 1_000_000,
        limits: SessionLimits { write_rate: Some(u64::MAX), ..SessionLimits::default() },
        networks: Some(vec!["0.0.0.0/0".parse().unwrap()]),
        ..attenuation(1, vec![narrowed("shared", "/shared", Rights::READ_WRITE)])
    };
    out.chain(
        "attenuation-that-asks-for-more",
        "An attenuation that names more rights, a longer life, a higher rate and more networks gets none of them.",
        &issue(&mail()).attenuate(more, &holder(0)).unwrap(),
    );
    let mut deep = mail();
    deep.grants = vec![grant("users/alice/Mail", "/home/Mail", Rights::READ_WRITE)];
    let mut around = narrowed("users/alice", "/home", Rights::READ_WRITE);
    around.quota_bytes = Some(10);
    out.chain(
        "attenuation-around-its-grant",
        "An attenuation with a quota on a path above its signer's grant: the quota is cut to the grant.",
        &issue(&deep).attenuate(attenuation(1, vec![around]), &holder(0)).unwrap(),
    );
}

fn forged(out: &mut Writer) {
    let one = blocks(&issue(&mail()));
    let two = blocks(&narrowed_mail(1));
    let by = |key: &SecretKey, payload: &[u8], domain| RawBlock::sign(payload.to_vec(), domain, key);

    let mut flipped = one.clone();
    flipped[0].signature[10] ^= 1;
    out.bytes("forged-signature", "One bit of the signature is flipped.", &join(&flipped));
    let mut flipped = one.clone();
    let last = flipped[0].payload.len() - 40;
    flipped[0].payload[last] ^= 1;
    out.bytes("forged-payload", "One bit of the signed bytes is flipped.", &join(&flipped));
    let forged = [two[0].clone(), by(&key(99), &two[1].payload, Domain::Attenuation)];
    out.bytes("forged-attenuation", "The second block is signed by a stranger.", &join(&forged));
    let other = by(&key(3), &one[0].payload, Domain::Contract);
    out.bytes("wrong-issuer", "Signed by a key that is not the issuer's.", &join(&[other]));
    out.terms("names-another-issuer", "Signed by the issuer and naming another.", |terms| {
        terms.issuer = key(3).public().id();
    });
    let crossed = [two[0].clone(), by(&holder(0), &two[1].payload, Domain::Contract)];
    out.bytes(
        "attenuation-signed-as-contract",
        "The second block is signed by the right key for another purpose.",
        &join(&crossed),
    );
    let crossed = [by(&issuer(), &one[0].payload, Domain::Attenuation)];
    out.bytes(
        "contract-signed-as-attenuation",
        "The first block is signed for another purpose.",
        &join(&crossed),
    );
    let twice = [one[0].clone(), one[0].clone()];
    out.bytes(
        "contract-as-attenuation",
        "The first block stands in the place of the second too.",
        &join(&twice),
    );
}

/// Two attenuations by and for one and the same key: only the parent digest tells their order.
fn one_holder() -> Vec<RawBlock> {
    let own = |n: u8, rights| Attenuation {
        holder: holder(0).public(),
        ..attenuation(n, vec![narrowed("users/alice/Mail", "/Mail", rights)])
    };
    let first = issue(&mail()).attenuate(own(1, Rights::APPEND_ONLY), &holder(0)).unwrap();
    blocks(&first.attenuate(own(2, Rights::READ_ONLY), &holder(0)).unwrap())
}

fn rearranged(out: &mut Writer) {
    let pick = |blocks: &[RawBlock], order: &[usize]| {
        join(&order.iter().map(|n| blocks[*n].clone()).collect::<Vec<_>>())
    };
    let three = blocks(&narrowed_mail(2));
    let own = one_holder();
    out.bytes("reordered-blocks", "Blocks 1 and 2 are exchanged.", &pick(&three, &[0, 2, 1]));
    out.bytes("reordered-blocks-of-one-holder", "The same, all by one key.", &pick(&own, &[0, 2, 1]));
    out.bytes("repeated-block", "Block 1 is there twice, by one key.", &pick(&own, &[0, 1, 1]));
    out.bytes("removed-block", "Block 1 of 0 to 2 is missing.", &pick(&three, &[0, 2]));
    out.bytes("removed-block-of-one-holder", "The same, all by one key.", &pick(&own, &[0, 2]));
    out.bytes("removed-first-block", "Block 0 is missing.", &pick(&three, &[1, 2]));
    let mut other = mail();
    other.id = ContractId::from_bytes([0xc1; 16]);
    let spliced = [blocks(&issue(&other))[0].clone(), blocks(&narrowed_mail(1))[1].clone()];
    out.bytes(
        "spliced-other-chain",
        "Block 1 continues another contract of the same holder.",
        &join(&spliced),
    );
    let fifth = attenuation(5, vec![narrowed("users/alice/Mail/lists", "/Mail/lists", Rights::READ_ONLY)]);
    let mut five = blocks(&narrowed_mail(4));
    five.push(RawBlock::sign(codec::encode(&fifth).unwrap(), Domain::Attenuation, &holder(4)));
    out.bytes("over-deep", "Five attenuations, each rightly signed; four are allowed.", &join(&five));
    out.bytes("no-blocks", "A chain of no blocks.", &join(&[]));
}

fn damaged(out: &mut Writer) {
    let bytes = issue(&mail()).to_bytes().unwrap();
    out.bytes("truncated-bytes", "The last byte is missing.", &bytes[..bytes.len() - 1]);
    out.bytes("truncated-half", "The second half is missing.", &bytes[..bytes.len() / 2]);
    out.bytes("trailing-bytes", "One more byte follows the chain.", &[&bytes[..], &[0]].concat());
    let mut payload = codec::encode(&mail()).unwrap();
    payload.push(0);
    let block = RawBlock::sign(payload, Domain::Contract, &issuer());
    out.bytes(
        "trailing-bytes-in-payload",
        "One more byte follows the terms, and is signed.",
        &join(&[block]),
    );
    let mut huge = bytes.clone();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    out.bytes("length-of-payload", "A block claims to be 2^64 - 1 bytes long.", &huge);
    let mut huge = bytes;
    huge[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    out.bytes("number-of-blocks", "The chain claims to have 2^40 blocks.", &huge);

    let text = armour::write(&issue(&mail())).unwrap();
    let cut = &text[..text.len() - 60];
    out.add("truncated-file", "The file lacks its last line.", "contract", cut);
    out.add("not-a-contract", "Some other text.", "contract", "Dear Alice,\n");
    let odd = text.replacen("\n\n", "\n\n*", 1);
    out.add("not-base64", "A character that is not of base64.", "contract", &odd);
    let headless = text.replacen("\n\n", "\n", 1);
    out.add("no-body", "No empty line divides header and body.", "contract", &headless);
    let lying = text.replace("read-only on shared", "read-write on users/bob");
    out.add(
        "lying-header",
        "The header, which only informs people, says more than the signed bytes; the bytes count.",
        "contract",
        &lying,
    );
}

fn untimely(out: &mut Writer) {
    out.terms("expired", "It ended a second ago.", |terms| terms.expires = NOW - 1);
    out.terms("expires-now", "It ends at the very second of the check: the end is exclusive.", |terms| {
        terms.expires = NOW;
    });
    out.terms("not-yet-valid", "It begins in a second.", |terms| terms.not_before = NOW + 1);
    let late = Attenuation {
        expires: NOW - 1,
        ..attenuation(1, vec![narrowed("shared", "/shared", Rights::READ_ONLY)])
    };
    out.chain(
        "expired-attenuation",
        "The contract lives, its attenuation has ended.",
        &issue(&mail()).attenuate(late, &holder(0)).unwrap(),
    );
    out.terms("replayed-to-another-gateway", "A contract for another gateway.", |terms| {
        terms.gateway = key(4).public().gateway_id();
    });
}

fn senseless(out: &mut Writer) {
    out.terms("nested-mounts", "One mount path lies in another.", |terms| {
        terms.grants[1].mount = mount("/Mail/Photos");
    });
    out.terms("equal-mounts", "Two grants have one mount path.", |terms| {
        terms.grants[1].mount = mount("/Mail")
    });
    out.terms("too-many-grants", "65 grants; 64 are allowed.", |terms| {
        terms.grants = (0..65).map(|n| grant("shared", &format!("/{n}"), Rights::READ_ONLY)).collect();
    });
    out.terms("too-many-networks", "33 networks; 32 are allowed.", |terms| {
        terms.networks = Some((0..33).map(|n| format!("10.0.{n}.0/24").parse().unwrap()).collect());
    });
    out.terms("no-networks", "A list of networks without any.", |terms| terms.networks = Some(vec![]));
    out.terms("no-grants", "It grants nothing.", |terms| terms.grants.clear());
    out.terms("no-rights", "A grant without rights.", |terms| terms.grants[0].rights = Rights::NONE);
    out.terms("unknown-version", "Version 3.", |terms| terms.version = 3);
    out.terms("generation-0", "Generations begin at 1.", |terms| terms.generation = 0);
    out.terms("ends-before-it-begins", "It ends before it begins.", |terms| {
        terms.expires = terms.not_before - 1
    });
    patched("unknown-right", "The eighth right bit is set.", out, &[0x7f], &[0xff]);
    patched("escaping-path", "The data path `shared` is written `../red`.", out, b"shared", b"../red");
    patched("bad-mount-path", "The mount path `/Mail` is written `/Ma/.`.", out, b"/Mail\x7f", b"/Ma/.\x7f");
    patched("bad-application", "The application `mail` is written `MAIL`.", out, b"mail", b"MAIL");
    let apart = attenuation(1, vec![narrowed("users/bob", "/bob", Rights::READ_ONLY)]);
    out.chain(
        "nothing-in-common",
        "The attenuation names only a path that the contract does not grant.",
        &issue(&mail()).attenuate(apart, &holder(0)).unwrap(),
    );
    let moved = attenuation(1, vec![narrowed("shared", "/elsewhere", Rights::READ_ONLY)]);
    out.chain(
        "moved-mount",
        "The attenuation puts a granted path at another place of the mount.",
        &issue(&mail()).attenuate(moved, &holder(0)).unwrap(),
    );
}

/// Terms whose encoding has some bytes exchanged and is then signed by the issuer.
fn patched(name: &'static str, about: &str, out: &mut Writer, from: &[u8], to: &[u8]) {
    let mut payload = codec::encode(&mail()).unwrap();
    let at = payload.windows(from.len()).position(|window| window == from).expect("the bytes are there");
    payload[at..at + from.len()].copy_from_slice(to);
    let block = RawBlock::sign(payload, Domain::Contract, &issuer());
    out.bytes(name, about, &join(&[block]));
}

fn statements(out: &mut Writer) {
    let revocation = Revocation {
        version: revocation::VERSION,
        issuer: issuer().public().id(),
        gateway: gateway().public().gateway_id(),
        subject: Subject::Application { application: "mail".parse().unwrap(), below_generation: 4 },
        issued_at: NOW,
        why: "phished".to_owned(),
    };
    let signed = revocation.sign(&issuer()).unwrap();
    let mut add = |name, about: &str, kind: &str, bytes: Vec<u8>| out.add(name, about, kind, &lines(&bytes));
    add("revocation", "A revocation statement.", "revocation", codec::encode(&signed).unwrap());
    let mut forged = codec::encode(&signed).unwrap();
    let generation = forged.iter().rposition(|byte| *byte == 4).unwrap();
    forged[generation] = 3;
    add("revocation-forged", "Another generation than was signed.", "revocation", forged);
    let other = Revocation { gateway: key(4).public().gateway_id(), ..revocation };
    let other = codec::encode(&other.sign(&issuer()).unwrap()).unwrap();
    add("revocation-for-another-gateway", "A statement for another gateway.", "revocation", other);

    let receipt = FenceReceipt {
        version: receipt::VERSION,
        gateway: gateway().public().gateway_id(),
        revocation: signed.digest(),
        subject: Subject::Contract(mail().id),
        generation: 3,
        sessions: 2,
        last_operation: 4711,
        drained: 5,
        handles_closed: 6,
        fenced_at_us: NOW * 1_000_000,
        took_us: 1234,
    };
    let signed = codec::encode(&receipt.sign(&gateway()).unwrap()).unwrap();
    add("receipt", "A fence receipt.", "receipt", signed);
    let stranger = codec::encode(&receipt.sign(&key(4)).unwrap()).unwrap();
    add("receipt-of-another-gateway", "Signed by another gateway.", "receipt", stranger);
    let newer = FenceReceipt { version: 2, ..receipt };
    let newer = codec::encode(&newer.sign(&gateway()).unwrap()).unwrap();
    add("receipt-of-unknown-version", "Version 2.", "receipt", newer);
}

#[test]
fn the_fixed_material_is_what_it_seems() {
    let Grant { data: path, .. } = &mail().grants[0];
    assert_eq!(*path, data("users/alice/Mail"));
    assert_eq!(issuer().public().to_string(), "ed25519:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w");
}
