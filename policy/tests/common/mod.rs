//! What the tests of this crate share.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part; tests fail by panic"
)]

use strongroom_contracts::{Application, ContractId, SecretKey};
use strongroom_policy::{Issue, Policy, PolicySet, Source};

/// The policy that the documents use as their example.
pub const MAIL: &str = r#"# policy.d/mail.toml
application = "mail"
guest = "mail-guest"
lifetime = "8h"

[[grant]]
path = "users/alice/Mail"
mount = "/Mail"
rights = "read-write"
undo = "7d"

[[grant]]
path = "users/alice/Photos"
mount = "/Photos"
rights = "append-only"
quota = "20 GiB"

[limits]
write-rate = "50 MiB/s"

[recovery]
on = ["violation", "ransomware", "ids.severity <= 2"]
steps = ["fence", "undo 15m", "restart", "reissue"]
"#;

pub fn set(files: &[(&str, &str)]) -> PolicySet {
    let source = |(name, text): &(&str, &str)| Source {
        file: format!("policy.d/{name}.toml"),
        text: (*text).to_owned(),
    };
    PolicySet::parse(files.iter().map(source).collect())
}

/// A set without mistakes.
pub fn good(files: &[(&str, &str)]) -> PolicySet {
    let set = set(files);
    assert!(set.errors().is_empty(), "{}", set.errors()[0].render(false));
    set
}

pub fn app(name: &str) -> Application {
    name.parse().expect("an application's name")
}

pub fn policy(text: &str) -> Policy {
    let set = good(&[("mail", text)]);
    set.policies().values().next().expect("a policy").clone()
}

/// A wish for all that a policy allows.
pub fn issue(issuer: &SecretKey, holder: &SecretKey, gateway: &SecretKey) -> Issue {
    Issue {
        id: ContractId::from_bytes([7; 16]),
        issuer: issuer.public().id(),
        holder: holder.public(),
        gateway: gateway.public().gateway_id(),
        generation: 1,
        now_secs: 1_800_000_000,
        lifetime_secs: None,
        narrow: vec![],
    }
}

pub fn key() -> SecretKey {
    SecretKey::generate().expect("a key")
}
