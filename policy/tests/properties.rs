//! Properties of policies: no text upsets the reader, the difference is the difference, the ceiling holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{MAIL, app, good, issue, key, set};

use proptest::prelude::*;
use strongroom_contracts::{Chain, DataPath, Right, Rights, VerifyContext};
use strongroom_policy::{Change, Issue, Narrowing, PolicySet, Verb, diff, explain};

/// One grant of a generated policy: path, rights, quota in bytes.
type Row = (String, Rights, Option<u32>);

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..=4).prop_map(|components| components.join("/"))
}

fn rights() -> impl Strategy<Value = Rights> {
    (1u8..128).prop_map(|bits| Rights::from_bits(bits).unwrap())
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec((path(), rights(), prop::option::of(0u32..4)), 1..6)
}

fn text(rows: &[Row]) -> String {
    let mut text = "application = \"mail\"\n".to_owned();
    for (n, (path, rights, quota)) in rows.iter().enumerate() {
        text += &format!("[[grant]]\npath = \"{path}\"\nmount = \"/m{n}\"\n");
        let names: Vec<_> = rights.iter().map(Right::name).collect();
        text += &format!("rights = \"{}\"\n", names.join(" "));
        text += &quota.map(|quota| format!("quota = {quota}\n")).unwrap_or_default();
    }
    text
}

fn policies(rows: &[Row]) -> PolicySet {
    good(&[("mail", &text(rows))])
}

/// What rows permit at a path, by the plainest reading of the design.
fn permitted(rows: &[Row], path: &str) -> Rights {
    let holds = |row: &&Row| path == row.0 || path.starts_with(&format!("{}/", row.0));
    rows.iter().filter(holds).flat_map(|row| row.1.iter()).collect()
}

/// What changes say about a path: the rights gained and lost there.
fn said(changes: &[Change], path: &str) -> [Rights; 2] {
    let below = |outer: &str| path == outer || path.starts_with(&format!("{outer}/"));
    [Verb::Gains, Verb::Loses].map(|verb| {
        let of_path = changes.iter().filter(|change| {
            change.verb == verb
                && change.path.as_deref().is_some_and(below)
                && !change.except.iter().any(|path| below(path))
        });
        of_path
            .flat_map(|change| &change.rights)
            .flat_map(|right| right.parse::<Rights>().unwrap().iter())
            .collect()
    })
}

/// Text that looks like a policy: pieces of one, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[[grant]]\n".to_owned()),
        Just("[grant]\n".to_owned()),
        Just("[limits]\n".to_owned()),
        Just("[recovery]\n".to_owned()),
        "(application|guest|lifetime|until|networks|audit|undo-space|undo-full|path|mount|rights|quota|files|undo|on|steps|op-rate) = "
            .prop_map(|key| key),
        "(\"[a-z/. 0-9]{0,12}\"|[0-9]{1,20}|\\[|\\]|\\{|\\}|,|true|2027-01-0[0-9]|'''|\"\"\"|\\\\u[0-9a-f]{4})[\n ]"
            .prop_map(|value| value),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn read_and_show(text: &str) {
    let set = set(&[("any", text), ("mail", MAIL)]);
    for error in set.errors() {
        assert!(!error.render(false).is_empty() && !error.render(true).is_empty());
        assert!(error.place().line >= 1 && error.place().column >= 1);
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text: String) {
        read_and_show(&text);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        read_and_show(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn almost_policies_are_read_without_panic(text in pieces()) {
        read_and_show(&text);
    }

    #[test]
    fn a_policy_with_one_letter_changed_is_read_without_panic(at in 0..MAIL.len(), letter: char) {
        let mut text = MAIL.to_owned();
        text.replace_range(at..=at, letter.encode_utf8(&mut [0; 4]));
        read_and_show(&text);
    }

    #[test]
    fn explain_says_what_is_permitted(rows in rows(), path in path()) {
        let explanation = explain(&policies(&rows), &app("mail"), &path.parse().unwrap()).unwrap();
        let allowed: Rights = explanation
            .rights
            .iter()
            .filter(|answer| answer.allowed)
            .flat_map(|answer| answer.right.parse::<Rights>().unwrap().iter().collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(allowed, permitted(&rows, &path));
    }

    #[test]
    fn a_policy_does_not_differ_from_itself(rows in rows(), rotate: usize) {
        let same = policies(&rows);
        prop_assert_eq!(diff(&same, &same), vec![]);
        // Nor from itself in another order; mounts go by position, so they change, and nothing else.
        let mut turned = rows.clone();
        turned.rotate_left(rotate % rows.len());
        let changes = diff(&same, &policies(&turned));
        prop_assert!(changes.iter().all(|change| change.setting == Some("mount")), "{:?}", changes);
    }

    #[test]
    fn the_difference_is_that_of_what_is_permitted(old in rows(), new in rows(), path in path()) {
        let changes = diff(&policies(&old), &policies(&new));
        let (before, after) = (permitted(&old, &path), permitted(&new, &path));
        prop_assert_eq!(said(&changes, &path), [after.without(before), before.without(after)]);
    }

    #[test]
    fn the_difference_turns_around(old in rows(), new in rows()) {
        let rights = |old: &[Row], new: &[Row]| {
            let changes = diff(&policies(old), &policies(new));
            let mut list: Vec<_> = changes
                .into_iter()
                .filter(|change| !change.rights.is_empty())
                .map(|change| (change.verb == Verb::Gains, change.path, change.rights, change.except))
                .collect();
            list.sort();
            list
        };
        let mut turned = rights(&new, &old);
        turned.iter_mut().for_each(|change| change.0 = !change.0);
        turned.sort();
        prop_assert_eq!(rights(&old, &new), turned);
    }

    #[test]
    fn what_is_issued_lies_within_the_policy(
        rows in rows(),
        wishes in prop::collection::vec((prop::option::of(path()), prop::option::of(rights())), 0..4),
        lifetime in prop::option::of(0u64..40_000),
    ) {
        let (issuer, holder, gateway) = (key(), key(), key());
        let policies = policies(&rows);
        let policy = policies.get(&app("mail")).unwrap();
        let narrowing = |(path, rights): &(Option<String>, Option<Rights>)| Narrowing {
            path: path.as_ref().map(|path| path.parse::<DataPath>().unwrap()),
            rights: *rights,
        };
        let wish = Issue {
            narrow: wishes.iter().map(narrowing).collect(),
            lifetime_secs: lifetime,
            ..issue(&issuer, &holder, &gateway)
        };
        let Ok(terms) = policy.terms(&wish) else { return Ok(()) };
        for grant in &terms.grants {
            prop_assert!(policy.grants.iter().any(|one| grant.within(&one.grant)), "{:?}", grant);
        }
        let chain = Chain::issue(&terms, &issuer).unwrap();
        let gateway = gateway.public().gateway_id();
        let context = VerifyContext { issuer: &issuer.public(), gateway: &gateway, now: wish.now_secs };
        let effective = chain.verify(context).unwrap();
        prop_assert!(effective.expires - effective.not_before <= policy.lifetime_secs.value);
        for grant in &effective.grants {
            let ceiling = permitted(&rows, grant.data.as_str());
            prop_assert!(ceiling.covers(grant.rights));
            // Never more than was wished for, either.
            let wished = wishes.iter().any(|(path, rights)| {
                path.as_ref().is_none_or(|path| path == grant.data.as_str())
                    && rights.is_none_or(|rights| rights.covers(grant.rights))
            });
            prop_assert!(wishes.is_empty() || wished);
        }
    }
}
