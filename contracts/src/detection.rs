//! What the gateway does when an application's changes look like ransomware, and how much it takes to look like it.

use bincode::{Decode, Encode};

/// What follows from a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Encode, Decode)]
pub enum OnVerdict {
    /// An alert for recovery and the audit trail.
    #[default]
    Alert,
    /// The same, and the application is fenced at once, until its next contract is deposited.
    Fence,
    /// Nothing is looked at.
    Off,
}

impl OnVerdict {
    /// All of them.
    pub const ALL: [OnVerdict; 3] = [OnVerdict::Alert, OnVerdict::Fence, OnVerdict::Off];

    /// The word used in policy files.
    pub const fn name(self) -> &'static str {
        match self {
            OnVerdict::Alert => "alert",
            OnVerdict::Fence => "fence",
            OnVerdict::Off => "off",
        }
    }
}

/// The most decoys of a grant.
pub const MAX_DECOYS: u8 = 16;

/// Detection for one application. No authority: attenuations leave it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Detection {
    /// What follows from a verdict.
    pub verdict: OnVerdict,
    /// Files of others harmed within about a minute that make a verdict.
    pub burst: u32,
    /// Files of others harmed within some hours.
    pub slow: u32,
    /// Files of others removed within about ten seconds, with nothing in their place.
    pub removed: u32,
    /// Files of others that the application is declared to change within a minute at most; `None`: not declared, and only
    /// what is unusual for it counts for more.
    pub churn: Option<u32>,
    /// Denied operations of one session within ten seconds that are a violation.
    pub denied: u32,
    /// Files that the gateway plants at the top of each grant whose files may be changed; whoever changes one is found out.
    pub decoys: u8,
}

impl Default for Detection {
    fn default() -> Detection {
        Detection {
            verdict: OnVerdict::Alert,
            burst: 8,
            slow: 40,
            removed: 24,
            churn: None,
            denied: 200,
            decoys: 0,
        }
    }
}
