//! What a policy says about recovery: which alerts begin an incident, and which steps it runs.
//!
//! This crate checks the words; the recovery daemon acts on them.

use std::fmt;

use strongroom_contracts::Network;

use crate::place::{Place, Setting};
use crate::suggest::did_you_mean;
use crate::units::{UnitError, parse_duration, show_duration};

/// The `[recovery]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Alerts that begin an incident; empty: only a person does.
    pub on: Vec<Setting<Trigger>>,
    /// What an incident does, in this order.
    pub steps: Vec<Setting<Step>>,
    /// Where the application's guest is, for alerts that name an address only; empty: as `networks` of the policy says.
    pub addresses: Vec<Setting<Network>>,
    /// The `[recovery]` line.
    pub place: Place,
}

/// An alert that begins an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// The gateway saw the contract violated.
    Violation,
    /// The gateway saw churn that looks like ransomware.
    Ransomware,
    /// The contract outran its undo space.
    UndoSpace,
    /// Intrusion detection raised an alert of a severity from `least` to `most`; 1 is the gravest (Suricata, Snort).
    Ids {
        /// The lowest number that counts.
        least: u8,
        /// The highest number that counts.
        most: u8,
    },
}

/// One step of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Void the contract and wait until nothing of it reaches the data.
    Fence,
    /// Keep audit records and undo state as evidence.
    Preserve,
    /// Take back what the contract changed in the last seconds.
    Undo {
        /// How far back, in seconds.
        secs: u64,
    },
    /// Restart the guest from its clean image.
    Restart,
    /// Issue a contract of a new generation.
    Reissue,
    /// Wait until a person confirms.
    Confirm,
}

const TRIGGERS: [&str; 5] = ["violation", "ransomware", "undo-space", "ids", "ids.severity"];
const STEPS: [&str; 6] = ["fence", "preserve", "undo", "restart", "reissue", "confirm"];

impl Recovery {
    /// Whether an alert of intrusion detection with this severity begins an incident.
    pub fn on_ids(&self, severity: u8) -> bool {
        self.on
            .iter()
            .any(|on| matches!(on.value, Trigger::Ids { least, most } if (least..=most).contains(&severity)))
    }

    /// Whether an alert of this kind begins an incident.
    pub fn on(&self, trigger: Trigger) -> bool {
        self.on.iter().any(|on| on.value == trigger)
    }
}

impl Trigger {
    /// Reads `violation`, `ransomware`, `undo-space`, `ids` or `ids.severity <= 2` (also `<` and `==`).
    ///
    /// # Errors
    /// [`UnitError`] with the message and the way out.
    pub fn parse(text: &str) -> Result<Trigger, UnitError> {
        match text.trim() {
            "violation" => Ok(Trigger::Violation),
            "ransomware" => Ok(Trigger::Ransomware),
            "undo-space" => Ok(Trigger::UndoSpace),
            "ids" => Ok(Trigger::Ids { least: 1, most: u8::MAX }),
            other => Self::parse_severity(other),
        }
    }

    fn parse_severity(text: &str) -> Result<Trigger, UnitError> {
        let word_end = text.find(|c: char| c.is_whitespace() || "<>=!".contains(c)).unwrap_or(text.len());
        let (word, condition) = text.split_at(word_end);
        if word != "ids.severity" {
            return Err(UnitError {
                message: format!("`{word}` is not an alert"),
                help: did_you_mean(word, TRIGGERS)
                    .unwrap_or_else(|| format!("alerts are {}", TRIGGERS.join(", "))),
            });
        }
        let condition = condition.trim();
        let digits = condition.trim_start_matches(['<', '=', '>', '!']);
        let operator = condition.get(..condition.len() - digits.len()).unwrap_or_default();
        let number = digits.trim().parse::<u8>().ok().filter(|number| *number > 0);
        let range = match (operator, number) {
            ("<=", Some(most)) => Some((1, most)),
            ("<", Some(above)) if above > 1 => Some((1, above - 1)),
            ("==", Some(only)) => Some((only, only)),
            _ => None,
        };
        let (least, most) = range.ok_or_else(|| UnitError {
            message: format!("`{text}` is not a condition on the severity"),
            help: "write `ids.severity <= N`, `< N` or `== N`; 1 is the gravest".to_owned(),
        })?;
        Ok(Trigger::Ids { least, most })
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Violation => f.write_str("violation"),
            Trigger::Ransomware => f.write_str("ransomware"),
            Trigger::UndoSpace => f.write_str("undo-space"),
            Trigger::Ids { least: 1, most: u8::MAX } => f.write_str("ids"),
            Trigger::Ids { least, most } if least == most => write!(f, "ids.severity == {most}"),
            Trigger::Ids { most, .. } => write!(f, "ids.severity <= {most}"),
        }
    }
}

impl Step {
    /// Reads `fence`, `preserve`, `undo 15m`, `restart`, `reissue` or `confirm`.
    ///
    /// # Errors
    /// [`UnitError`] with the message and the way out.
    pub fn parse(text: &str) -> Result<Step, UnitError> {
        let text = text.trim();
        let (word, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let step = match word {
            "fence" => Step::Fence,
            "preserve" => Step::Preserve,
            "restart" => Step::Restart,
            "reissue" => Step::Reissue,
            "confirm" => Step::Confirm,
            "undo" if argument.is_empty() => {
                return Err(UnitError {
                    message: "`undo` does not say how far back".to_owned(),
                    help: "write for instance `undo 15m`".to_owned(),
                });
            }
            "undo" => return Ok(Step::Undo { secs: parse_duration(argument)? }),
            _ => {
                return Err(UnitError {
                    message: format!("`{word}` is not a step of recovery"),
                    help: did_you_mean(word, STEPS)
                        .unwrap_or_else(|| format!("steps are {}", STEPS.join(", "))),
                });
            }
        };
        if argument.is_empty() {
            Ok(step)
        } else {
            Err(UnitError {
                message: format!("`{word}` takes nothing after it"),
                help: format!("write `{word}`"),
            })
        }
    }

    /// The word of the step, without its argument.
    pub const fn word(self) -> &'static str {
        match self {
            Step::Fence => "fence",
            Step::Preserve => "preserve",
            Step::Undo { .. } => "undo",
            Step::Restart => "restart",
            Step::Reissue => "reissue",
            Step::Confirm => "confirm",
        }
    }

    /// The position of the step in an incident: steps run in rising order.
    pub(crate) fn rank(self) -> usize {
        STEPS.iter().position(|word| *word == self.word()).unwrap_or(STEPS.len())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Undo { secs } => write!(f, "undo {}", show_duration(*secs)),
            other => f.write_str(other.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_shown() {
        for text in ["violation", "ransomware", "undo-space", "ids", "ids.severity <= 2", "ids.severity == 3"]
        {
            assert_eq!(Trigger::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Trigger::parse("ids.severity<3"), Trigger::parse("ids.severity <= 2"));
        for text in ["fence", "preserve", "undo 15m", "restart", "reissue", "confirm"] {
            assert_eq!(Step::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_name_the_way_out() {
        assert_eq!(Trigger::parse("voilation").unwrap_err().help, "did you mean `violation`?");
        assert_eq!(Step::parse("restrat").unwrap_err().help, "did you mean `restart`?");
        assert_eq!(Step::parse("undo").unwrap_err().message, "`undo` does not say how far back");
        assert_eq!(Step::parse("fence now").unwrap_err().message, "`fence` takes nothing after it");
        assert!(Step::parse("undo soon").is_err());
        for bad in [
            "ids.severity",
            "ids.severity >= 2",
            "ids.severity <= 0",
            "ids.severity < 1",
            "ids.severity <= 2 x",
            "",
        ] {
            assert!(Trigger::parse(bad).is_err(), "{bad}");
        }
    }
}
