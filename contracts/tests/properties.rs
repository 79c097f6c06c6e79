//! Properties of the contract algebra and of the formats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;

use common::{NOW, gateway, holder, issuer, narrowed_mail};
use proptest::prelude::*;
use strongroom_contracts::chain::EffectiveGrant;
use strongroom_contracts::keys::Signature;
use strongroom_contracts::revocation::{self, MAX_WHY_BYTES};
use strongroom_contracts::scope::{Quota, Region, Scope};
use strongroom_contracts::terms::{self, Narrowed};
use strongroom_contracts::{
    Application, Attenuation, Audit, Chain, ContractId, Detection, Effective, FenceReceipt, GatewayId, Grant,
    KeyId, Network, OnVerdict, Ownership, PolicyDigest, PublicKey, Revocation, Rights, SessionLimits,
    SignedReceipt, SignedRevocation, Subject, Terms, UndoFull, UndoSpace, VerifyContext, VerifyError, armour,
    codec, receipt,
};

// ---- values ----

fn rights() -> impl Strategy<Value = Rights> {
    (1u8..128).prop_map(|bits| Rights::from_bits(bits).unwrap())
}

/// Few names and small depths, so that generated paths often meet.
fn tail() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 0..3)
        .prop_map(|parts| parts.iter().map(|part| format!("/{part}")).collect())
}

fn limit() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(prop_oneof![0u64..5, any::<u64>()])
}

fn limits() -> impl Strategy<Value = SessionLimits> {
    let count = || prop::option::of(prop_oneof![1u32..5, any::<u32>()]);
    (limit(), limit(), limit(), count(), count()).prop_map(
        |(read_rate, write_rate, op_rate, in_flight, open_handles)| SessionLimits {
            read_rate,
            write_rate,
            op_rate,
            in_flight,
            open_handles,
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    let v4 = (0u32..4, 0u32..=32).prop_map(|(top, prefix)| {
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        format!("{}/{prefix}", std::net::Ipv4Addr::from((top << 30 | top << 8) & mask))
    });
    let v6 = (0u128..4, 0u32..=128).prop_map(|(top, prefix)| {
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        format!("{}/{prefix}", std::net::Ipv6Addr::from((top << 126 | top << 64 | 7) & mask))
    });
    prop_oneof![v4, v6].prop_map(|text| text.parse().unwrap())
}

fn networks() -> impl Strategy<Value = Option<Vec<Network>>> {
    prop::option::of(prop::collection::vec(network(), 1..5))
}

/// One grant in each of up to four places of the mount that do not contain each other.
fn rows<T>(row: impl Fn(String, String) -> T + Clone) -> impl Strategy<Value = Vec<T>>
where
    T: std::fmt::Debug,
{
    let place = move |n: usize| {
        let row = row.clone();
        // Two data roots and four mounts: some grants share data, none share a mount.
        (tail(), 0usize..4).prop_filter_map("left out", move |(tail, keep)| {
            (keep > 0).then(|| row(format!("d{}{tail}", n % 2), format!("/m{n}{tail}")))
        })
    };
    (place(0), place(1), place(2), place(3), 1usize..=4).prop_map(|(a, b, c, d, count)| {
        let mut all = vec![a, b, c, d];
        all.truncate(count);
        all
    })
}

type Extras = (Rights, Option<u64>, Option<u64>, Option<u64>);

fn extras() -> impl Strategy<Value = Vec<Extras>> {
    prop::collection::vec((rights(), limit(), limit(), limit()), 4)
}

fn narrowed() -> impl Strategy<Value = Vec<Narrowed>> {
    (rows(|data, mount| (data, mount)), extras()).prop_map(|(rows, extras)| {
        let one = |((data, mount), (rights, quota_bytes, quota_files, max_file_bytes)): (
            (String, String),
            Extras,
        )| {
            Narrowed {
                data: data.parse().unwrap(),
                mount: mount.parse().unwrap(),
                rights,
                quota_bytes,
                quota_files,
                max_file_bytes,
            }
        };
        rows.into_iter().zip(extras).map(one).collect()
    })
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    (narrowed(), any::<[(u64, bool); 4]>()).prop_map(|(kept, more)| {
        let one = |(kept, (undo_secs, preserve)): (Narrowed, (u64, bool))| Grant {
            data: kept.data,
            mount: kept.mount,
            rights: kept.rights,
            quota_bytes: kept.quota_bytes,
            quota_files: kept.quota_files,
            max_file_bytes: kept.max_file_bytes,
            undo_secs,
            ownership: if preserve { Ownership::Preserve } else { Ownership::Single },
        };
        kept.into_iter().zip(more).map(one).collect()
    })
}

fn window() -> impl Strategy<Value = (u64, u64)> {
    (0u64..1000, 1u64..2000).prop_map(|(before, after)| (NOW - before, NOW + after))
}

prop_compose! {
    fn any_terms()(
        grants in grants(),
        limits in limits(),
        networks in networks(),
        (not_before, expires) in window(),
        generation in 1u64..,
        strict: bool,
        id: [u8; 16],
        digest: [u8; 32],
    ) -> Terms {
        Terms {
            version: terms::VERSION,
            id: ContractId::from_bytes(id),
            issuer: issuer().public().id(),
            application: "mail".parse().unwrap(),
            holder: holder(0).public(),
            gateway: gateway().public().gateway_id(),
            generation,
            not_before,
            expires,
            grants,
            limits,
            networks,
            audit: if strict { Audit::Strict } else { Audit::Normal },
            undo: UndoSpace { bytes: strict.then_some(7), full: if strict { UndoFull::Forget } else { UndoFull::Fence } },
            detection: Detection { verdict: if strict { OnVerdict::Fence } else { OnVerdict::Alert }, ..Detection::default() },
            policy: PolicyDigest::from_bytes(digest),
        }
    }
}

prop_compose! {
    fn any_attenuation()(
        grants in narrowed(),
        limits in limits(),
        networks in networks(),
        (not_before, expires) in window(),
        id: [u8; 16],
    ) -> Attenuation {
        Attenuation {
            version: terms::VERSION,
            id: ContractId::from_bytes(id),
            parent: [0; 32],
            holder: holder(0).public(),
            not_before,
            expires,
            grants,
            limits,
            networks,
        }
    }
}

prop_compose! {
    fn any_scope()(
        kept in narrowed(),
        limits in limits(),
        networks in networks(),
        (not_before, expires) in window(),
    ) -> Scope {
        let region = |kept: Narrowed| Region {
            quotas: match (kept.quota_bytes, kept.quota_files) {
                (None, None) => vec![],
                (bytes, files) => vec![Quota { path: kept.data.clone(), bytes, files }],
            },
            data: kept.data,
            mount: kept.mount,
            rights: kept.rights,
            max_file_bytes: kept.max_file_bytes,
        };
        Scope { regions: kept.into_iter().map(region).collect(), limits, networks, not_before, expires }.normal()
    }
}

fn any_subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(|id| Subject::Contract(ContractId::from_bytes(id))),
        ("[a-z0-9][a-z0-9._-]{0,63}", any::<u64>()).prop_map(|(application, below_generation)| {
            Subject::Application { application: application.parse().unwrap(), below_generation }
        }),
    ]
}

prop_compose! {
    fn any_revocation()(subject in any_subject(), issued_at: u64, why in "\\PC{0,100}") -> Revocation {
        Revocation {
            version: revocation::VERSION,
            issuer: issuer().public().id(),
            gateway: gateway().public().gateway_id(),
            subject,
            issued_at,
            why,
        }
    }
}

prop_compose! {
    fn any_receipt()(
        subject in any_subject(),
        revocation in any::<[u8; 32]>(),
        (generation, last_operation, fenced_at_us, took_us) in any::<(u64, u64, u64, u64)>(),
        (sessions, drained, handles_closed) in any::<(u32, u32, u32)>(),
    ) -> FenceReceipt {
        FenceReceipt {
            version: receipt::VERSION,
            gateway: gateway().public().gateway_id(),
            revocation,
            subject,
            generation,
            sessions,
            last_operation,
            drained,
            handles_closed,
            fenced_at_us,
            took_us,
        }
    }
}

// ---- what is compared ----

fn verify(chain: &Chain) -> Result<Effective, VerifyError> {
    let gateway = gateway().public().gateway_id();
    chain.verify(VerifyContext { issuer: &issuer().public(), gateway: &gateway, now: NOW })
}

/// The holder of every block of these chains is the same key, so that one can narrow again.
fn attenuated(chain: &Chain, block: Attenuation) -> Chain {
    chain.attenuate(block, &holder(0)).unwrap()
}

fn within(limit: Option<u64>, wider: Option<u64>) -> bool {
    wider.is_none_or(|wider| limit.is_some_and(|limit| limit <= wider))
}

fn assert_grant_within(grant: &EffectiveGrant, wider: &EffectiveGrant) {
    assert!(wider.data.contains(&grant.data) && wider.mount.contains(&grant.mount));
    assert!(wider.rights.covers(grant.rights) && !grant.rights.is_empty());
    assert!(within(grant.max_file_bytes, wider.max_file_bytes));
    assert_eq!((grant.undo_secs, grant.ownership), (wider.undo_secs, wider.ownership));
    for quota in &wider.quotas {
        let kept = grant.quotas.iter().find(|kept| kept.path == quota.path).expect("no quota gets lost");
        assert!(within(kept.bytes, quota.bytes) && within(kept.files, quota.files));
    }
    for quota in &grant.quotas {
        let old = wider.quotas.iter().any(|old| old.path == quota.path);
        assert!(
            old || wider.data.contains(&quota.path),
            "a new quota counts only what its signer was granted"
        );
    }
}

fn assert_within(narrow: &Effective, wide: &Effective) {
    for grant in &narrow.grants {
        let from = wide
            .grants
            .iter()
            .find(|wider| wider.mount.contains(&grant.mount))
            .expect("a grant it comes from");
        assert_grant_within(grant, from);
    }
    assert!(narrow.not_before >= wide.not_before && narrow.expires <= wide.expires);
    let (a, b) = (narrow.limits, wide.limits);
    assert!(
        within(a.read_rate, b.read_rate)
            && within(a.write_rate, b.write_rate)
            && within(a.op_rate, b.op_rate)
    );
    assert!(within(a.in_flight.map(u64::from), b.in_flight.map(u64::from)));
    assert!(within(a.open_handles.map(u64::from), b.open_handles.map(u64::from)));
    if let Some(wide) = &wide.networks {
        let narrow = narrow.networks.as_ref().expect("no binding to networks gets lost");
        assert!(narrow.iter().all(|one| wide.iter().any(|wider| wider.meet(*one) == Some(*one))));
    }
    assert_eq!((&narrow.application, narrow.generation), (&wide.application, wide.generation));
    assert_eq!((narrow.audit, narrow.policy), (wide.audit, wide.policy));
    assert!(narrow.ids.starts_with(&wide.ids) && narrow.ids.len() == wide.ids.len() + 1);
    for (n, grant) in narrow.grants.iter().enumerate() {
        for other in &narrow.grants[..n] {
            assert!(!other.mount.contains(&grant.mount) && !grant.mount.contains(&other.mount));
        }
    }
}

/// The chain's scope, for comparing verification with the lattice.
fn scope_of(effective: &Effective) -> Scope {
    let region = |grant: &EffectiveGrant| Region {
        data: grant.data.clone(),
        mount: grant.mount.clone(),
        rights: grant.rights,
        quotas: grant.quotas.clone(),
        max_file_bytes: grant.max_file_bytes,
    };
    Scope {
        regions: effective.grants.iter().map(region).collect(),
        limits: effective.limits,
        networks: effective.networks.clone(),
        not_before: effective.not_before,
        expires: effective.expires,
    }
    .normal()
}

fn round_trip<T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug>(value: &T) {
    let bytes = codec::encode(value).unwrap();
    assert_eq!(codec::decode::<T>(&bytes).as_ref(), Ok(value));
    let longer = [&bytes[..], &[0]].concat();
    assert!(codec::decode::<T>(&longer).is_err(), "one more byte");
    if let Some(shorter) = bytes.len().checked_sub(1) {
        assert!(codec::decode::<T>(&bytes[..shorter]).is_err(), "one byte less");
    }
}

/// Decodes the same bytes as each type that travels; each result, if there is one, encodes to the same bytes.
fn decode_as_everything(bytes: &[u8]) {
    fn one<T: bincode::Encode + bincode::Decode<()>>(bytes: &[u8]) {
        if let Ok(value) = codec::decode::<T>(bytes) {
            assert_eq!(codec::encode(&value).as_deref(), Ok(bytes));
        }
    }
    one::<Chain>(bytes);
    one::<Terms>(bytes);
    one::<Attenuation>(bytes);
    one::<SignedRevocation>(bytes);
    one::<Revocation>(bytes);
    one::<SignedReceipt>(bytes);
    one::<FenceReceipt>(bytes);
    one::<Rights>(bytes);
    one::<Network>(bytes);
    one::<Application>(bytes);
    if let Ok(chain) = Chain::from_bytes(bytes) {
        assert!(verify(&chain).is_err(), "made without the issuer's key");
        let _ = (chain.claimed_terms(), chain.claimed_attenuations(), armour::write(&chain));
    }
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bit = bit % (8 * bytes.len());
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

// ---- the properties ----

proptest! {
    #[test]
    fn meet_is_commutative(a in any_scope(), b in any_scope()) {
        prop_assert_eq!(a.meet(&b), b.meet(&a));
    }

    #[test]
    fn meet_is_associative(a in any_scope(), b in any_scope(), c in any_scope()) {
        prop_assert_eq!(a.meet(&b).meet(&c), a.meet(&b.meet(&c)));
    }

    #[test]
    fn meet_is_idempotent(a in any_scope(), b in any_scope()) {
        prop_assert_eq!(&a.meet(&a), &a);
        let met = a.meet(&b);
        prop_assert_eq!(&met.meet(&met), &met);
        prop_assert_eq!(&met.meet(&a), &met, "absorbed");
    }

    #[test]
    fn meets_of_the_parts_obey_the_same_laws(
        (a, b, c) in (rights(), rights(), rights()),
        (x, y, z) in (limits(), limits(), limits()),
        (m, n, o) in (network(), network(), network()),
    ) {
        prop_assert_eq!(a.meet(b), b.meet(a));
        prop_assert_eq!(a.meet(b).meet(c), a.meet(b.meet(c)));
        prop_assert_eq!(a.meet(a), a);
        prop_assert!(a.covers(a.meet(b)) && a.without(b).meet(b).is_empty());
        prop_assert_eq!(x.meet(y), y.meet(x));
        prop_assert_eq!(x.meet(y).meet(z), x.meet(y.meet(z)));
        prop_assert_eq!(x.meet(x), x);
        prop_assert_eq!(m.meet(n), n.meet(m));
        prop_assert_eq!(m.meet(n).and_then(|l| l.meet(o)), n.meet(o).and_then(|r| m.meet(r)));
        prop_assert_eq!(m.meet(m), Some(m));
    }

    #[test]
    fn attenuation_is_monotone(terms in any_terms(), blocks in prop::collection::vec(any_attenuation(), 1..=4)) {
        let mut chain = Chain::issue(&terms, &issuer()).unwrap();
        let mut wide = verify(&chain).unwrap();
        for block in blocks {
            chain = attenuated(&chain, block);
            match verify(&chain) {
                Ok(narrow) => {
                    assert_within(&narrow, &wide);
                    wide = narrow;
                }
                // Nothing in common: that is narrower still.
                Err(error) => {
                    prop_assert_eq!(error, VerifyError::Empty);
                    return Ok(());
                }
            }
        }
    }

    #[test]
    fn a_chain_permits_the_meet_of_its_blocks(terms in any_terms(), mut block in any_attenuation()) {
        let chain = Chain::issue(&terms, &issuer()).unwrap();
        let wide = verify(&chain).unwrap();
        // A block's quota outside its signer's grants is cut (see the vectors); this is about all else.
        block.grants.iter_mut().for_each(|kept| (kept.quota_bytes, kept.quota_files) = (None, None));
        let own = Terms {
            grants: block.grants.iter().map(|kept| Grant {
                data: kept.data.clone(),
                mount: kept.mount.clone(),
                rights: kept.rights,
                quota_bytes: None,
                quota_files: None,
                max_file_bytes: kept.max_file_bytes,
                undo_secs: 0,
                ownership: Ownership::Single,
            }).collect(),
            limits: block.limits,
            networks: block.networks.clone(),
            not_before: block.not_before,
            expires: block.expires,
            ..terms.clone()
        };
        let own = verify(&Chain::issue(&own, &issuer()).unwrap()).unwrap();
        let met = scope_of(&wide).meet(&scope_of(&own));
        match verify(&attenuated(&chain, block)) {
            Ok(narrow) => prop_assert_eq!(scope_of(&narrow), met),
            Err(error) => prop_assert!(error == VerifyError::Empty && met.regions.is_empty()),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(
        terms in any_terms(),
        block in any_attenuation(),
        revocation in any_revocation(),
        receipt in any_receipt(),
        bytes: [u8; 32],
        network in network(),
    ) {
        let chain = Chain::issue(&terms, &issuer()).unwrap();
        let longer = attenuated(&chain, block.clone());
        round_trip(&terms);
        round_trip(&block);
        round_trip(&chain);
        round_trip(&longer);
        round_trip(&revocation);
        round_trip(&revocation.sign(&issuer()).unwrap());
        round_trip(&receipt);
        round_trip(&receipt.sign(&gateway()).unwrap());
        round_trip(&network);
        round_trip(&terms.grants[0]);
        round_trip(&terms.grants[0].data);
        round_trip(&terms.grants[0].mount);
        round_trip(&terms.grants[0].rights);
        round_trip(&terms.limits);
        round_trip(&terms.application);
        round_trip(&terms.audit);
        round_trip(&PublicKey::from_bytes(bytes));
        round_trip(&GatewayId::from_bytes(bytes));
        round_trip(&PolicyDigest::from_bytes(bytes));
        round_trip(&terms.id);
        round_trip::<KeyId>(&terms.issuer);
        round_trip::<Signature>(&issuer().sign(strongroom_contracts::keys::Domain::Contract, &bytes));
        prop_assert_eq!(Chain::from_bytes(&longer.to_bytes().unwrap()), Ok(longer.clone()));
        prop_assert_eq!(armour::read(&armour::write(&longer).unwrap()), Ok(longer));
    }

    #[test]
    fn a_flipped_bit_of_a_chain_is_refused(depth in 0u8..=4, bit: usize) {
        let chain = narrowed_mail(depth);
        prop_assert!(verify(&chain).is_ok());
        let bytes = flipped(&chain.to_bytes().unwrap(), bit);
        prop_assert!(Chain::from_bytes(&bytes).map(|chain| verify(&chain).is_err()).unwrap_or(true));
    }

    #[test]
    fn a_flipped_bit_of_a_statement_is_refused(
        revocation in any_revocation(),
        receipt in any_receipt(),
        bit: usize,
    ) {
        let id = gateway().public().gateway_id();
        let signed = revocation.sign(&issuer()).unwrap();
        prop_assert_eq!(signed.verify(&issuer().public(), &id), Ok(revocation));
        let bytes = flipped(&codec::encode(&signed).unwrap(), bit);
        let result = codec::decode::<SignedRevocation>(&bytes);
        prop_assert!(result.map(|signed| signed.verify(&issuer().public(), &id).is_err()).unwrap_or(true));

        let signed = receipt.sign(&gateway()).unwrap();
        prop_assert_eq!(signed.verify(&gateway().public()), Ok(receipt));
        let bytes = flipped(&codec::encode(&signed).unwrap(), bit);
        let result = codec::decode::<SignedReceipt>(&bytes);
        prop_assert!(result.map(|signed| signed.verify(&gateway().public()).is_err()).unwrap_or(true));
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>, text: String) {
        decode_as_everything(&bytes);
        prop_assert!(armour::read(&text).is_err());
        let _ = (text.parse::<PublicKey>(), text.parse::<ContractId>(), text.parse::<Network>());
        let _ = (text.parse::<Rights>(), strongroom_contracts::SecretKey::from_file_text(&text).is_err());
        let _ = (PublicKey::from_spki(&bytes), strongroom_contracts::SecretKey::from_pkcs8(&bytes).is_err());
    }

    #[test]
    fn almost_right_bytes_are_decoded_without_panic(
        depth in 0u8..=4,
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
    ) {
        // Chains, and the terms inside them: what a signer could send.
        let chain = narrowed_mail(depth);
        for original in [chain.to_bytes().unwrap(), codec::encode(&chain.claimed_terms().unwrap()).unwrap()] {
            let mut bytes = original.clone();
            for (at, byte) in &changes {
                let at = at % bytes.len();
                bytes[at] = *byte;
            }
            if bytes != original {
                decode_as_everything(&bytes);
            }
        }
    }
}

/// Not left to chance: each single bit of a chain of three blocks.
#[test]
fn every_flipped_bit_of_a_chain_is_refused() {
    let bytes = narrowed_mail(2).to_bytes().unwrap();
    for bit in 0..8 * bytes.len() {
        let accepted = Chain::from_bytes(&flipped(&bytes, bit)).is_ok_and(|chain| verify(&chain).is_ok());
        assert!(!accepted, "bit {bit}");
    }
}

#[test]
fn the_largest_contract_comes_back_from_its_file() {
    let component = "p".repeat(255);
    let path = [component.as_str(); 3].join("/");
    let grant =
        |n: usize| common::grant(&format!("{n:03}/{path}"), &format!("/{n:03}/{path}"), Rights::READ_ONLY);
    let terms = Terms { grants: (0..terms::MAX_GRANTS).map(grant).collect(), ..common::mail() };
    let kept = |grant: &Grant| common::narrowed(grant.data.as_str(), grant.mount.as_str(), grant.rights);
    let block = Attenuation {
        holder: holder(0).public(),
        ..common::attenuation(1, terms.grants.iter().map(kept).collect())
    };
    let chain = attenuated(&Chain::issue(&terms, &issuer()).unwrap(), block);
    let bytes = chain.to_bytes().unwrap();
    assert!(bytes.len() > codec::MAX_BYTES / 2, "{} bytes are hardly the largest", bytes.len());
    assert_eq!(armour::read(&armour::write(&chain).unwrap()), Ok(chain));
}

#[test]
fn a_reason_has_a_longest_length() {
    let revocation = |length| Revocation {
        version: revocation::VERSION,
        issuer: issuer().public().id(),
        gateway: gateway().public().gateway_id(),
        subject: Subject::Contract(ContractId::from_bytes([1; 16])),
        issued_at: NOW,
        why: "w".repeat(length),
    };
    assert!(revocation(MAX_WHY_BYTES).sign(&issuer()).is_ok());
    assert!(revocation(MAX_WHY_BYTES + 1).sign(&issuer()).is_err());
    assert!(revocation(0).sign(&gateway()).is_err(), "it names another issuer");
}

#[test]
fn a_chain_at_its_longest_takes_no_more() {
    let chain = narrowed_mail(4);
    let block = common::attenuation(5, vec![common::narrowed("shared", "/shared", Rights::READ_ONLY)]);
    assert_eq!(chain.attenuate(block, &holder(4)), Err(VerifyError::Depth(6)));
}
