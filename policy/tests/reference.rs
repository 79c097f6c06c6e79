//! The policy reference is true: its examples are read, its answers are given, its keys and words are all there are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{app, good, issue, key};

use strongroom_contracts::{Audit, Ownership, Right, Rights};
use strongroom_policy::{DEFAULT_LIFETIME_SECS, Issue, Narrowing, PolicySet, diff, explain, units};

const REFERENCE: &str = include_str!("../../docs/policy-reference.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let start = format!("```{language}\n");
    REFERENCE.split(start.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The policy of an example, by its application.
fn example(name: &str) -> PolicySet {
    let text = blocks("toml").into_iter().find(|text| text.contains(&format!("application = \"{name}\"")));
    good(&[(name, text.expect("an example"))])
}

#[test]
fn every_example_is_a_policy() {
    let examples = blocks("toml");
    assert!(examples.len() >= 5);
    for text in examples {
        assert_eq!(good(&[("example", text)]).policies().len(), 1);
    }
}

#[test]
fn the_examples_mean_what_the_text_says() {
    let set = example("accounts");
    let accounts = set.get(&app("accounts")).unwrap();
    assert_eq!(accounts.lifetime_secs.value, 5400);
    assert_eq!(accounts.audit.value, Audit::Strict);
    assert_eq!(accounts.until_secs.as_ref().unwrap().value, 1_909_072_800);
    assert_eq!(accounts.networks.as_ref().unwrap().value.len(), 3);
    let set = example("photos");
    let photos = set.get(&app("photos")).unwrap();
    let [first, second, third] = [0, 1, 2].map(|n| &photos.grants[n].grant);
    assert_eq!(first.rights, "append-only attr".parse().unwrap());
    assert_eq!((first.quota_bytes, first.quota_files), (Some(500_000_000_000), Some(200_000)));
    assert_eq!((first.max_file_bytes, first.undo_secs), (Some(4 << 30), 14 * 86400));
    assert_eq!((second.rights, second.quota_bytes, second.undo_secs), (Rights::DROP_BOX, None, 0));
    assert_eq!(third.ownership, Ownership::Preserve);
    assert_eq!(second.ownership, Ownership::Single);
    let set = example("indexer");
    let indexer = set.get(&app("indexer")).unwrap();
    assert_eq!((indexer.limits.op_rate, indexer.limits.in_flight), (Some(1000), Some(64)));
    assert_eq!(indexer.lifetime_secs.value, DEFAULT_LIFETIME_SECS);
    assert_eq!(units::parse_duration("8h"), Ok(DEFAULT_LIFETIME_SECS), "the default that the table states");
    assert_eq!((indexer.audit.value, &indexer.networks, &indexer.recovery), (Audit::Normal, &None, &None));
    let set = example("browser");
    assert_eq!(set.get(&app("browser")).unwrap().recovery.as_ref().unwrap().steps.len(), 6);
}

#[test]
fn explain_answers_as_shown() {
    let explanation = explain(&example("mail"), &app("mail"), &"users/alice/Photos/2024".parse().unwrap());
    assert!(blocks("text").contains(&explanation.unwrap().to_string().as_str()));
}

#[test]
fn refusals_and_changes_are_worded_as_shown() {
    let set = example("mail");
    let policy = set.get(&app("mail")).unwrap();
    let refusal = |path: &str, rights: Option<Rights>, lifetime_secs| {
        let narrow = vec![Narrowing { path: Some(path.parse().unwrap()), rights }];
        let wish = Issue { narrow, lifetime_secs, ..issue(&key(), &key(), &key()) };
        format!("{}\n", policy.terms(&wish).unwrap_err())
    };
    for text in [
        refusal("users/alice/Photos", Some(Rights::only(Right::Write)), None),
        refusal("users/alice/Photos", None, Some(9 * 3600)),
        refusal("users/bob", None, None),
    ] {
        assert!(REFERENCE.contains(&text), "{text}");
    }
    let mail = blocks("toml")[0];
    let changed =
        |from: &str, to: &str| diff(&set, &good(&[("mail", &mail.replace(from, to))]))[0].to_string();
    for text in [changed("append-only", "read-write"), changed("\"8h\"", "\"1d\"")] {
        assert!(REFERENCE.contains(&format!("{text}\n")), "{text}");
    }
}

/// A key that is added to the language and not to the reference is found here: the messages list all keys.
#[test]
fn every_key_and_word_has_its_row() {
    let unknown = "x-x-x-x-x-x = 1\n";
    let text =
        format!("{unknown}[[grant]]\n{unknown}[limits]\n{unknown}[recovery]\n{unknown}steps = [\"x-x-x\"]\n");
    let wrong = format!("{text}on = [\"x-x-x-x-x\"]\n");
    let set = common::set(&[("mail", &wrong)]);
    let mut words = 0;
    for error in set.errors() {
        let help = error.help_text().unwrap_or_default();
        let list = ["known keys are ", "steps are ", "alerts are "]
            .iter()
            .find_map(|start| help.strip_prefix(start));
        for word in list.into_iter().flat_map(|list| list.split(", ")) {
            let row = [
                format!("| `{word}`"),
                format!("| `{word} "),
                format!("## `[{word}]`"),
                format!("## `[[{word}]]`"),
            ];
            assert!(row.iter().any(|row| REFERENCE.contains(row)), "{word} is not in the reference");
            words += 1;
        }
    }
    assert!(words >= 9 + 8 + 5 + 3 + 6 + 5, "{words} words: {:#?}", set.errors());
    for right in Right::ALL {
        assert!(REFERENCE.contains(&format!("| `{right}` |")));
    }
    for (bundle, _) in Rights::BUNDLES {
        assert!(REFERENCE.contains(&format!("| `{bundle}` |")));
    }
}
