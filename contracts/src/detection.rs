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
}

impl Default for Detection {
    fn default() -> Detection {
        Detection { verdict: OnVerdict::Alert, burst: 8, slow: 40, removed: 24 }
    }
}
