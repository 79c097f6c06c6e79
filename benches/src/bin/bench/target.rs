//! What is compared: how each target is mounted, where its workload runs, and which processes do its work.

use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::house::{EXPORT_IN_GUEST, SSH_IN_GUEST, SSH_PORT};
use crate::peer::{self, Peer};

/// A column of the table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// The mount of a contract.
    Strongroom,
    /// sshfs as one types it.
    Sshfs,
    /// sshfs with every option that helps it.
    SshfsTuned,
    /// GlusterFS with TLS.
    Glusterfs,
    /// CephFS by ceph-fuse, its messages encrypted.
    Cephfs,
    /// MooseFS, which encrypts nothing.
    Moosefs,
    /// bindfs: what any FUSE mount of a local directory costs.
    Passthrough,
    /// The directory itself.
    Local,
}

/// Where a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    App,
    Storage,
}

/// How a worker mounts and unmounts what it measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The command that mounts; it returns when the mount is usable.
    pub(crate) command: Vec<String>,
    /// Where it mounts.
    pub(crate) point: String,
}

/// What a worker needs to know about its target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Nothing for a directory that needs no mounting.
    pub(crate) mount: Option<Mount>,
    /// An existing directory to work in, once mounted.
    pub(crate) directory: String,
}

/// AES instead of ChaCha20, two connections, and caches that trust nobody else to change anything for ten minutes.
const SSHFS_TUNING: &str = "Ciphers=aes128-gcm@openssh.com,Compression=no,max_conns=2,kernel_cache,entry_timeout=600,\
     attr_timeout=600,negative_timeout=10,dcache_timeout=600,dcache_max_size=200000";

impl Target {
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Strongroom => "strongroom",
            Self::Sshfs => "sshfs",
            Self::SshfsTuned => "sshfs tuned",
            Self::Glusterfs => "GlusterFS TLS",
            Self::Cephfs => "CephFS secure",
            Self::Moosefs => "MooseFS (plain)",
            Self::Passthrough => "passthrough",
            Self::Local => "local",
        }
    }

    pub(crate) const fn guest(self) -> Guest {
        match self {
            Self::Passthrough | Self::Local => Guest::Storage,
            _ => Guest::App,
        }
    }

    /// The network file system with servers of its own that it is, if it is one.
    pub(crate) const fn peer(self) -> Option<&'static Peer> {
        match self {
            Self::Glusterfs => Some(&peer::GLUSTERFS),
            Self::Cephfs => Some(&peer::CEPHFS),
            Self::Moosefs => Some(&peer::MOOSEFS),
            _ => None,
        }
    }

    /// Whether it is something that a user could choose instead.
    pub(crate) const fn is_choice(self) -> bool {
        !matches!(self, Self::Strongroom | Self::Passthrough | Self::Local)
    }

    /// The directory below the data root that the target's files end up in.
    pub(crate) const fn data(self) -> &'static str {
        match self {
            Self::Strongroom => "strongroom",
            Self::Sshfs => "sshfs",
            Self::SshfsTuned => "sshfs-tuned",
            Self::Glusterfs => "glusterfs",
            Self::Cephfs => "cephfs",
            Self::Moosefs => "moosefs",
            Self::Passthrough => "passthrough",
            Self::Local => "local",
        }
    }

    /// The programs in the app guest, or beside the workload, that carry its calls.
    pub(crate) const fn client_programs(self) -> &'static [&'static str] {
        match self {
            // The file that cargo builds, and the name that mount(8) looks for.
            Self::Strongroom => &["mount-strongroom", "mount.strongroom"],
            Self::Sshfs | Self::SshfsTuned => &["sshfs", "ssh"],
            Self::Glusterfs => &["glusterfs"],
            Self::Cephfs => &["ceph-fuse"],
            Self::Moosefs => &["mfsmount"],
            Self::Passthrough => &["bindfs"],
            Self::Local => &[],
        }
    }

    /// The programs in the storage guest that answer them.
    pub(crate) const fn server_programs(self) -> &'static [&'static str] {
        match self {
            Self::Strongroom => &["strongroom-gateway"],
            // Newer OpenSSH serves a connection from a program of its own.
            Self::Sshfs | Self::SshfsTuned => &["sshd", "sshd-session", "sftp-server"],
            Self::Glusterfs => &["glusterd", "glusterfsd"],
            Self::Cephfs => &["ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds"],
            Self::Moosefs => &["mfsmaster", "mfschunkserver"],
            Self::Passthrough | Self::Local => &[],
        }
    }

    /// The Debian package that provides what the target needs, and the programs that show it is there.
    pub(crate) const fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Sshfs | Self::SshfsTuned => {
                &[("sshfs", "sshfs"), ("sshd", "openssh-server"), ("ssh-keygen", "openssh-client")]
            }
            Self::Glusterfs => peer::GLUSTERFS.needs,
            Self::Cephfs => peer::CEPHFS.needs,
            Self::Moosefs => peer::MOOSEFS.needs,
            Self::Passthrough => &[("bindfs", "bindfs")],
            Self::Strongroom | Self::Local => &[],
        }
    }

    pub(crate) fn work(self) -> Work {
        let point = format!("/tmp/{}", self.data());
        let backing = format!("{EXPORT_IN_GUEST}/{}", self.data());
        match self {
            Self::Strongroom => {
                let options = format!(
                    "key=/etc/strongroom/holder.key,gateway={},allow_other,log=/var/log/strongroom/mount.log",
                    strongroom_tests::lab::GATEWAY_ADDRESS
                );
                let point = "/mnt".to_owned();
                let command = ["mount.strongroom", "/etc/strongroom/contract", &point, "-o", &options];
                Work { mount: Some(mount(&command, &point)), directory: "/mnt/bench".to_owned() }
            }
            Self::Sshfs => Work { mount: Some(sshfs(&backing, &point, None)), directory: point },
            Self::SshfsTuned => {
                Work { mount: Some(sshfs(&backing, &point, Some(SSHFS_TUNING))), directory: point }
            }
            Self::Glusterfs => Work { mount: Some(peer::GLUSTERFS.mount(&point)), directory: point },
            Self::Cephfs => Work { mount: Some(peer::CEPHFS.mount(&point)), directory: point },
            Self::Moosefs => Work { mount: Some(peer::MOOSEFS.mount(&point)), directory: point },
            Self::Passthrough => {
                let mut command = vec!["bindfs"];
                command.extend(bindfs_options());
                command.extend([backing.as_str(), &point]);
                Work { mount: Some(mount(&command, &point)), directory: point }
            }
            Self::Local => Work { mount: None, directory: backing },
        }
    }
}

/// Built on libfuse 2, bindfs writes 4 KiB at a time unless told otherwise; libfuse 3 no longer knows the option.
fn bindfs_options() -> &'static [&'static str] {
    let said = Command::new("bindfs").arg("--fuse-version").output();
    // On either stream, as the version of libfuse likes it.
    let old = said.is_ok_and(|output| {
        [output.stdout, output.stderr]
            .iter()
            .any(|text| String::from_utf8_lossy(text).contains("linked version 2."))
    });
    if old { &["-o", "big_writes"] } else { &[] }
}

pub(crate) fn mount(command: &[&str], point: &str) -> Mount {
    Mount { command: command.iter().map(|word| (*word).to_owned()).collect(), point: point.to_owned() }
}

fn sshfs(export: &str, point: &str, tuning: Option<&str>) -> Mount {
    let mut options = format!(
        "port={SSH_PORT},IdentityFile={SSH_IN_GUEST}/id,UserKnownHostsFile={SSH_IN_GUEST}/known,IdentitiesOnly=yes,\
         StrictHostKeyChecking=yes,ssh_command=ssh -F none"
    );
    if let Some(tuning) = tuning {
        options = format!("{options},{tuning}");
    }
    mount(&["sshfs", "-o", &options, &format!("root@storage:{export}"), point], point)
}
