//! `--path` and `--rights`: which part of what is allowed is wanted.
//!
//! Their order counts: `--rights` after a `--path` holds for that path; `--rights` before any `--path`, or without one,
//! holds for every path that has none of its own.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use strongroom_contracts::{DataPath, MountPath, Rights};
use strongroom_policy::{Narrowing, Policy};

use crate::failure::Failure;

/// The wanted parts, in the order given; empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NarrowArgs {
    /// Each with its own rights, if it has any.
    pub parts: Vec<Part>,
}

/// One wanted part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// As it was written; `None`: every grant.
    pub path: Option<String>,
    /// `None`: all that is allowed there.
    pub rights: Option<Rights>,
}

/// A path as people may write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// From the data root.
    Data(DataPath),
    /// As seen in the mount.
    Mount(MountPath),
}

impl Wanted {
    /// Reads `users/alice/Mail` or `/Mail`.
    pub fn parse(text: &str) -> Result<Wanted, Failure> {
        let parsed = match text.starts_with('/') {
            true => text.parse().map(Wanted::Mount),
            false => text.parse().map(Wanted::Data),
        };
        parsed.map_err(|error: strongroom_contracts::NameError| Failure::bad(format!("--path: {error}")))
    }
}

/// The wanted parts of a policy: paths as seen in the mount become data paths.
pub fn narrowings(policy: &Policy, args: &NarrowArgs) -> Result<Vec<Narrowing>, Failure> {
    let part = |part: &Part| {
        let path = match part.path.as_deref().map(Wanted::parse).transpose()? {
            None => None,
            Some(Wanted::Data(path)) => Some(path),
            Some(Wanted::Mount(mount)) => Some(policy.data_path(&mount).ok_or_else(|| {
                let mounts: Vec<_> = policy.grants.iter().map(|one| one.grant.mount.as_str()).collect();
                Failure::denied(format!(
                    "the policy does not allow it: {}: no grant is mounted at {mount}",
                    policy.file
                ))
                .hint(format!(
                    "mount paths of {}: {}",
                    policy.application,
                    mounts.join(", ")
                ))
            })?),
        };
        Ok(Narrowing { path, rights: part.rights })
    };
    args.parts.iter().map(part).collect()
}

fn order(parts: &mut Vec<Part>, words: Vec<(usize, Word)>) -> Result<(), clap::Error> {
    let mut for_all = None;
    for (_, word) in words {
        match (word, parts.last_mut()) {
            (Word::Path(path), _) => parts.push(Part { path: Some(path), rights: None }),
            (Word::Rights(rights), Some(part)) if part.rights.is_none() => part.rights = Some(rights),
            (Word::Rights(rights), None) if for_all.is_none() => for_all = Some(rights),
            (Word::Rights(_), _) => {
                return Err(clap::Error::raw(
                    ErrorKind::ArgumentConflict,
                    "--rights is given twice for the same path; write one list, such as --rights 'list read'\n",
                ));
            }
        }
    }
    if parts.is_empty() && for_all.is_some() {
        parts.push(Part { path: None, rights: for_all });
    }
    for part in parts {
        part.rights = part.rights.or(for_all);
    }
    Ok(())
}

enum Word {
    Path(String),
    Rights(Rights),
}

impl FromArgMatches for NarrowArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let paths = matches.indices_of("path").into_iter().flatten();
        let texts = matches.get_many::<String>("path").into_iter().flatten();
        let mut words: Vec<_> = paths.zip(texts.cloned().map(Word::Path)).collect();
        let places = matches.indices_of("rights").into_iter().flatten();
        let rights = matches.get_many::<Rights>("rights").into_iter().flatten();
        words.extend(places.zip(rights.copied().map(Word::Rights)));
        words.sort_by_key(|(place, _)| *place);
        let mut parts = vec![];
        order(&mut parts, words)?;
        Ok(NarrowArgs { parts })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = NarrowArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for NarrowArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("path")
                    .long("path")
                    .value_name("PATH")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(String))
                    .help("Grant only this path, or one below a grant; repeat for more [default: every grant]")
                    .long_help(
                        "Grant only this path, from the data root (users/alice/Mail/lists) or as seen in the mount \
                         (/Mail/lists); repeat for more [default: every grant]",
                    ),
            )
            .arg(
                Arg::new("rights")
                    .long("rights")
                    .value_name("RIGHTS")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(Rights))
                    .help("Grant only these rights on the --path before it; first or alone: on every path [default: all that are allowed]")
                    .long_help(
                        "Grant only these rights: names (list read create append write delete attr) or bundles (read-only \
                         append-only drop-box read-write), separated by commas or spaces. After a --path they hold for that \
                         path; before any --path, or without one, for every path that has none of its own \
                         [default: all that are allowed]",
                    ),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        NarrowArgs::augment_args(command)
    }
}

/// Reads a duration such as `8h`, for clap.
pub fn duration(text: &str) -> Result<u64, String> {
    strongroom_policy::units::parse_duration(text)
        .map_err(|error| format!("{}; {}", error.message, error.help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Vec<Part>, clap::Error> {
        let command = NarrowArgs::augment_args(Command::new("x").no_binary_name(true));
        NarrowArgs::from_arg_matches(&command.try_get_matches_from(args)?).map(|args| args.parts)
    }

    fn part(path: Option<&str>, rights: Option<Rights>) -> Part {
        Part { path: path.map(str::to_owned), rights }
    }

    #[test]
    fn rights_belong_to_the_path_before_them() {
        let (ro, all) = (Some(Rights::READ_ONLY), Some(Rights::READ_WRITE));
        assert_eq!(read(&[]).unwrap(), []);
        assert_eq!(read(&["--rights", "read-only"]).unwrap(), [part(None, ro)]);
        assert_eq!(
            read(&["--path", "a", "--rights", "list,read", "--path", "b"]).unwrap(),
            [part(Some("a"), ro), part(Some("b"), None)]
        );
        assert_eq!(
            read(&["--rights", "read-only", "--path", "a", "--path", "b", "--rights=read-write"]).unwrap(),
            [part(Some("a"), ro), part(Some("b"), all)]
        );
        assert!(read(&["--path", "a", "--rights", "read", "--rights", "list"]).is_err());
        assert!(read(&["--rights", "read", "--rights", "list"]).is_err());
        assert!(read(&["--rights", "raed"]).is_err());
    }
}
