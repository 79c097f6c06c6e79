//! From the text of a policy file to a [`Policy`], collecting every mistake on the way.

mod grant;
mod settings;
mod syntax;
mod table;

use std::ops::Range;

use strongroom_contracts::terms::MAX_GRANTS;
use strongroom_contracts::{Application, PolicyDigest};
use toml_edit::{Document, TableLike};

use crate::error::PolicyError;
use crate::place::{Setting, SourceText};
use crate::policy::{DEFAULT_LIFETIME_SECS, Policy};
use table::Table;

/// The longest policy file that is read, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;

const TOP_KEYS: [&str; 12] = [
    "application",
    "guest",
    "lifetime",
    "until",
    "networks",
    "audit",
    "undo-space",
    "undo-full",
    "grant",
    "limits",
    "detection",
    "recovery",
];

/// What was read from one file.
pub(crate) struct Read {
    pub(crate) policy: Option<Policy>,
    pub(crate) errors: Vec<PolicyError>,
    /// For which application the file is, even if it has mistakes.
    pub(crate) claim: Option<Claim>,
}

/// A file's word on whose policy it is.
pub(crate) struct Claim {
    pub(crate) application: Application,
    pub(crate) source: SourceText,
    pub(crate) span: Range<usize>,
}

/// Collects the mistakes of one file.
pub(crate) struct Errors<'a> {
    pub(crate) source: &'a SourceText,
    list: Vec<PolicyError>,
}

impl Errors<'_> {
    pub(crate) fn push(&mut self, error: PolicyError) {
        self.list.push(error);
    }

    pub(crate) fn at(&self, span: Range<usize>, message: impl Into<String>) -> PolicyError {
        PolicyError::new(self.source, span, message)
    }
}

pub(crate) fn read(source: &SourceText) -> Read {
    let mut errors = Errors { source, list: vec![] };
    let (policy, claim) = read_text(&mut errors);
    let application = claim.as_ref().map(|claim| &claim.application);
    let mut list: Vec<_> = errors.list.into_iter().map(|error| error.of_application(application)).collect();
    list.sort_by_key(|error| {
        let place = error.place();
        (place.line, place.column)
    });
    Read { policy: policy.filter(|_| list.is_empty()), errors: list, claim }
}

fn read_text(errors: &mut Errors<'_>) -> (Option<Policy>, Option<Claim>) {
    let source = errors.source;
    if source.text.len() > MAX_TEXT_BYTES {
        let message = format!("{} bytes are too long for a policy file", source.text.len());
        errors.push(errors.at(0..0, message).help("a policy file has at most 1 MiB"));
        return (None, None);
    }
    let document = match Document::parse(&*source.text) {
        Ok(document) => document,
        Err(error) => {
            let mut found = syntax::mistakes(&source.text);
            // What is right by syntax and wrong all the same: a key that is there twice, a date of the 32nd.
            let span = error.span().unwrap_or(0..0);
            let line = |span: &Range<usize>| source.place(span).line;
            if !found.iter().any(|(other, _)| line(other) == line(&span)) {
                found.push((span, error.message().to_owned()));
            }
            for (span, message) in found {
                errors.push(errors.at(span, format!("not TOML: {message}")));
            }
            return (None, claim_by_line(source));
        }
    };
    read_top(errors, document.as_table())
}

/// Whose policy a file is that is no TOML: so that its application is disabled by name.
fn claim_by_line(source: &SourceText) -> Option<Claim> {
    let mut at = 0;
    for line in source.text.split_inclusive('\n') {
        let value = line.trim().strip_prefix("application").map(str::trim_start);
        let value = value.and_then(|rest| rest.strip_prefix('=')).map(str::trim);
        let name = value.and_then(|value| value.strip_prefix('"')).and_then(|rest| rest.split('"').next());
        if let Some(application) = name.and_then(|name| name.parse().ok()) {
            return Some(Claim { application, source: source.clone(), span: at..at + line.trim_end().len() });
        }
        at += line.len();
    }
    None
}

fn read_top(errors: &mut Errors<'_>, root: &dyn TableLike) -> (Option<Policy>, Option<Claim>) {
    let source = errors.source;
    let top = Table::new("the policy", root, 0..0);
    top.check_keys(errors, &TOP_KEYS, |key| match key {
        key if grant::KEYS.contains(&key) => Some(format!("`{key}` belongs in a [[grant]]")),
        key if settings::LIMIT_KEYS.contains(&key) => Some(format!("`{key}` belongs in [limits]")),
        key if settings::RECOVERY_KEYS.contains(&key) => Some(format!("`{key}` belongs in [recovery]")),
        key if settings::DETECTION_KEYS.contains(&key) => Some(format!("`{key}` belongs in [detection]")),
        _ => None,
    });
    let application = top.required_string(errors, "application", "\"mail\"");
    let claim = application.and_then(|text| match text.value.parse::<Application>() {
        Ok(application) => Some(Claim { application, source: source.clone(), span: text.span }),
        Err(error) => {
            errors.push(errors.at(text.span, error.to_string()));
            None
        }
    });
    let guest = settings::guest(errors, &top);
    let lifetime = top.parsed(errors, "lifetime", "8h", settings::lifetime);
    let until_secs = settings::until(errors, &top);
    let networks = settings::networks(errors, &top);
    let audit = top
        .parsed(errors, "audit", "strict", settings::audit)
        .unwrap_or(Setting::default_of(Default::default()));
    let undo_space = top.parsed(errors, "undo-space", "10 GiB", settings::undo_space);
    let undo_full = top
        .parsed(errors, "undo-full", "fence", settings::undo_full)
        .unwrap_or(Setting::default_of(Default::default()));
    let (limits, limit_places) = settings::limits(errors, &top);
    let recovery = settings::recovery(errors, &top);
    let detection = settings::detection(errors, &top, recovery.as_ref());
    let grants = grant::grants(errors, &top);
    let Some(claim) = claim else { return (None, None) };
    if grants.is_empty() && !top.has("grant") && !root.contains_key("grants") {
        let message = format!("`{}` is granted nothing", claim.application);
        errors.push(
            errors.at(claim.span.clone(), message).help(
                "add a [[grant]] with path, mount and rights; to grant nothing at all, remove the file",
            ),
        );
    }
    if grants.len() > MAX_GRANTS {
        let message =
            format!("{} grants are more than the {MAX_GRANTS} that a contract can hold", grants.len());
        errors.push(errors.at(claim.span.clone(), message));
    }
    let policy = Policy {
        application: claim.application.clone(),
        guest,
        lifetime_secs: lifetime.unwrap_or(Setting::default_of(DEFAULT_LIFETIME_SECS)),
        until_secs,
        grants,
        limits,
        limit_places,
        networks,
        audit,
        undo_space,
        undo_full,
        detection,
        recovery,
        digest: PolicyDigest::of(&source.text),
        file: source.file.clone(),
        place: source.place(&claim.span),
    };
    (Some(policy), Some(claim))
}
