//! What is measured: the rows of the table, in the order in which they run.
//!
//! The order within a group is part of the measurement: later rows use what earlier ones made.

use serde::{Deserialize, Serialize};

/// Rows that run together on one target before the next target has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// One large file.
    File,
    /// Many small files in one directory.
    Small,
    /// A source tree, through the programs people use.
    Tree,
    /// Small changes, each made durable.
    Sync,
}

impl Group {
    pub(crate) const ALL: [Self; 4] = [Self::File, Self::Small, Self::Tree, Self::Sync];
}

/// The unit of a row's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// MiB per second.
    MibPerSecond,
    /// Operations per second.
    PerSecond,
    /// Seconds for the whole step: less is better.
    Seconds,
}

impl Unit {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::MibPerSecond => "MiB/s",
            Self::PerSecond => "/s",
            Self::Seconds => "s",
        }
    }

    /// How many times better `ours` is than `theirs`: above 1 is always better for us.
    pub(crate) fn advantage(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::MibPerSecond | Self::PerSecond => ours / theirs,
            Self::Seconds => theirs / ours,
        }
    }
}

macro_rules! rows {
    ($($row:ident $key:literal $group:ident $unit:ident $title:literal;)*) => {
        /// One line of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub(crate) enum Row {
            $(#[serde(rename = $key)] $row,)*
        }

        impl Row {
            /// Every row, in the order of the table.
            pub(crate) const ALL: &[Self] = &[$(Self::$row,)*];

            /// Its name on the command line and in the JSON.
            pub(crate) const fn key(self) -> &'static str {
                match self { $(Self::$row => $key,)* }
            }

            /// Its name in the table.
            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$row => $title,)* }
            }

            pub(crate) const fn group(self) -> Group {
                match self { $(Self::$row => Group::$group,)* }
            }

            pub(crate) const fn unit(self) -> Unit {
                match self { $(Self::$row => Unit::$unit,)* }
            }
        }
    };
}

rows! {
    SequentialWrite "seq-write" File MibPerSecond "sequential write 1 MiB + fsync";
    SequentialReadCold "seq-read-cold" File MibPerSecond "sequential read, cold";
    SequentialReadAgain "seq-read-again" File MibPerSecond "sequential read, again";
    RandomRead1 "rand-read-1" File PerSecond "random read 4 KiB, depth 1";
    RandomRead16 "rand-read-16" File PerSecond "random read 4 KiB, depth 16";
    RandomWrite "rand-write" File PerSecond "random write 4 KiB + fsync";
    Create "create" Small PerSecond "create 4 KiB file";
    ReaddirCold "readdir-cold" Small PerSecond "readdir, cold (entries)";
    StatCold "stat-cold" Small PerSecond "stat, cold";
    StatWarm "stat-warm" Small PerSecond "stat, warm";
    ReadSmallCold "read-small-cold" Small PerSecond "read 4 KiB file, cold";
    ReadSmallAgain "read-small-again" Small PerSecond "read 4 KiB file, again";
    Delete "delete" Small PerSecond "delete";
    Untar "untar" Tree Seconds "untar";
    FindCold "find-cold" Tree Seconds "find -ls, cold";
    FindWarm "find-warm" Tree Seconds "find -ls, warm";
    GrepCold "grep-cold" Tree Seconds "grep -r, cold";
    GrepAgain "grep-again" Tree Seconds "grep -r, again";
    GitAdd "git-add" Tree Seconds "git add";
    GitCommit "git-commit" Tree Seconds "git commit";
    GitStatusWarm "git-status-warm" Tree Seconds "git status, warm";
    GitStatusCold "git-status-cold" Tree Seconds "git status, cold";
    RemoveTree "rm-rf" Tree Seconds "rm -rf";
    Append "append" Sync PerSecond "append 4 KiB + fsync";
    Sqlite "sqlite" Sync PerSecond "SQLite transactions";
}

impl Row {
    /// What is aimed at: how many times as good as the local passthrough, and as the best peer.
    pub(crate) const fn goals(self) -> (f64, f64) {
        match self {
            Self::SequentialWrite => (2.0, 2.0),
            Self::SequentialReadCold => (0.7, 2.0),
            Self::SequentialReadAgain => (4.0, 1.2),
            Self::RandomRead1 => (0.4, 2.5),
            Self::RandomRead16 => (0.5, 3.0),
            Self::RandomWrite => (0.4, 1.5),
            Self::Create => (0.7, 4.0),
            Self::ReaddirCold => (0.4, 1.0),
            Self::StatCold => (0.6, 3.0),
            Self::StatWarm => (0.9, 1.0),
            Self::ReadSmallCold => (0.5, 4.0),
            Self::ReadSmallAgain => (3.0, 10.0),
            Self::Delete => (0.6, 2.0),
            Self::Untar => (0.7, 2.5),
            Self::FindCold => (0.6, 1.5),
            Self::FindWarm => (0.9, 1.0),
            Self::GrepCold => (0.5, 3.0),
            Self::GrepAgain => (2.0, 5.0),
            Self::GitAdd | Self::GitCommit => (0.6, 3.0),
            Self::GitStatusWarm => (1.0, 2.0),
            Self::GitStatusCold => (0.5, 3.0),
            Self::RemoveTree => (0.6, 1.0),
            Self::Append => (0.35, 1.3),
            Self::Sqlite => (0.6, 1.5),
        }
    }
}

impl std::str::FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|row| row.key() == text).ok_or_else(|| {
            let keys: Vec<_> = Self::ALL.iter().map(|row| row.key()).collect();
            format!("there is no row `{text}`; the rows are {}", keys.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_key_names_its_row_on_the_command_line_and_in_json() {
        for row in Row::ALL {
            assert_eq!(row.key().parse::<Row>().unwrap(), *row);
            assert_eq!(serde_json::to_string(row).unwrap(), format!("\"{}\"", row.key()));
        }
        assert!("seq-wriet".parse::<Row>().unwrap_err().contains("seq-write"));
    }

    #[test]
    fn more_than_one_is_better_whatever_the_unit() {
        assert!(Unit::PerSecond.advantage(200.0, 100.0) > 1.0);
        assert!(Unit::MibPerSecond.advantage(50.0, 100.0) < 1.0);
        assert!(Unit::Seconds.advantage(1.0, 2.0) > 1.0);
    }
}
