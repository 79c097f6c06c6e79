//! Fixed keys and terms, and chains taken apart into blocks, for the tests of this crate.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part; tests fail by panic"
)]

use strongroom_contracts::keys::Domain;
use strongroom_contracts::terms::{self, Narrowed};
use strongroom_contracts::{
    Attenuation, Audit, Chain, ContractId, DataPath, Detection, Grant, MountPath, Ownership, PolicyDigest,
    PublicKey, Rights, SecretKey, SessionLimits, Terms, UndoSpace, codec,
};

/// 2027-01-15T08:00:00Z, the time at which vectors are verified.
pub const NOW: u64 = 1_800_000_000;

/// A key from a seed (RFC 8410, PKCS#8 without the public half): the same in every run.
pub fn key(seed: u8) -> SecretKey {
    let prefix = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    SecretKey::from_pkcs8(&[&prefix[..], &[seed; 32]].concat()).expect("a seed is a key")
}

pub fn issuer() -> SecretKey {
    key(1)
}

pub fn gateway() -> SecretKey {
    key(2)
}

/// The holder of block `n`.
pub fn holder(n: u8) -> SecretKey {
    key(16 + n)
}

pub fn data(text: &str) -> DataPath {
    text.parse().expect("a data path")
}

pub fn mount(text: &str) -> MountPath {
    text.parse().expect("a mount path")
}

pub fn grant(data_path: &str, mount_path: &str, rights: Rights) -> Grant {
    Grant {
        data: data(data_path),
        mount: mount(mount_path),
        rights,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
        undo_secs: 0,
        ownership: Ownership::Single,
    }
}

/// The contract of the design's example.
pub fn mail() -> Terms {
    Terms {
        version: terms::VERSION,
        id: ContractId::from_bytes([0xc0; 16]),
        issuer: issuer().public().id(),
        application: "mail".parse().expect("a name"),
        holder: holder(0).public(),
        gateway: gateway().public().gateway_id(),
        generation: 3,
        not_before: NOW - 60,
        expires: NOW + 8 * 3600,
        grants: vec![
            Grant { undo_secs: 7 * 86400, ..grant("users/alice/Mail", "/Mail", Rights::READ_WRITE) },
            Grant {
                quota_bytes: Some(20 << 30),
                ..grant("users/alice/Photos", "/Photos", Rights::APPEND_ONLY)
            },
            grant("shared", "/shared", Rights::READ_ONLY),
        ],
        limits: SessionLimits { write_rate: Some(50 << 20), ..SessionLimits::default() },
        networks: Some(vec!["10.77.0.0/16".parse().expect("a network")]),
        audit: Audit::Normal,
        undo: UndoSpace::default(),
        detection: Detection::default(),
        policy: PolicyDigest::from_bytes([0xd1; 32]),
    }
}

pub fn narrowed(data_path: &str, mount_path: &str, rights: Rights) -> Narrowed {
    Narrowed {
        data: data(data_path),
        mount: mount(mount_path),
        rights,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
    }
}

/// Block `n` of a chain, keeping these parts.
pub fn attenuation(n: u8, grants: Vec<Narrowed>) -> Attenuation {
    Attenuation {
        version: terms::VERSION,
        id: ContractId::from_bytes([0xa0 + n; 16]),
        parent: [0; 32],
        holder: holder(n).public(),
        not_before: NOW - 60,
        expires: NOW + 3600,
        grants,
        limits: SessionLimits::default(),
        networks: None,
    }
}

pub fn issue(terms: &Terms) -> Chain {
    Chain::issue(terms, &issuer()).expect("terms")
}

/// `mail` narrowed `depth` times, a little more each time.
pub fn narrowed_mail(depth: u8) -> Chain {
    let steps = [
        vec![
            narrowed("users/alice/Mail", "/Mail", Rights::READ_WRITE),
            narrowed("users/alice/Photos", "/Photos", Rights::READ_ONLY),
        ],
        vec![narrowed("users/alice/Mail", "/Mail", Rights::APPEND_ONLY)],
        vec![Narrowed {
            quota_bytes: Some(1 << 20),
            ..narrowed("users/alice/Mail/lists", "/Mail/lists", Rights::APPEND_ONLY)
        }],
        vec![narrowed("users/alice/Mail/lists", "/Mail/lists", Rights::READ_ONLY)],
    ];
    let chain = issue(&mail());
    steps.into_iter().zip(1..=depth).fold(chain, |chain, (grants, n)| {
        chain.attenuate(attenuation(n, grants), &holder(n - 1)).expect("a block")
    })
}

/// A block as bytes, so that tests can break it.
#[derive(Clone)]
pub struct RawBlock {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

impl RawBlock {
    pub fn sign(payload: Vec<u8>, domain: Domain, key: &SecretKey) -> RawBlock {
        let signature = codec::encode(&key.sign(domain, &payload)).expect("64 bytes");
        RawBlock { payload, signature }
    }

    /// Any terms, sound or not, signed by the issuer.
    pub fn of_terms(terms: &Terms) -> RawBlock {
        RawBlock::sign(codec::encode(terms).expect("bytes"), Domain::Contract, &issuer())
    }
}

/// Takes a chain apart: the number of blocks, then for each the length of the payload, the payload, the signature.
pub fn blocks(chain: &Chain) -> Vec<RawBlock> {
    let bytes = chain.to_bytes().expect("bytes");
    let mut rest = &bytes[8..];
    let mut blocks = vec![];
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
        let (payload, after) = after.split_at(length);
        let (signature, after) = after.split_at(64);
        blocks.push(RawBlock { payload: payload.to_vec(), signature: signature.to_vec() });
        rest = after;
    }
    blocks
}

/// Puts a chain together again.
pub fn join(blocks: &[RawBlock]) -> Vec<u8> {
    let mut bytes = (blocks.len() as u64).to_le_bytes().to_vec();
    for block in blocks {
        bytes.extend((block.payload.len() as u64).to_le_bytes());
        bytes.extend(&block.payload);
        bytes.extend(&block.signature);
    }
    bytes
}

pub fn public(key: &SecretKey) -> PublicKey {
    key.public()
}
