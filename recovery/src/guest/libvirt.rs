//! Guests of libvirt, by `virsh`.
//!
//! The domain's XML names the overlay as its disk, and for enrolment an fw_cfg entry backed by `secret-file`
//! (`<sysinfo type='fwcfg'><entry name='opt/strongroom/enrol' file='…'/></sysinfo>`).

use std::path::PathBuf;

use serde::Deserialize;

use super::{Action, Driver, Job, absolute, argv, overlay, two_minutes};
use crate::config::Span;

/// Settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Libvirt {
    /// The domain; without it, the guest's name.
    domain: Option<String>,
    /// The connection, such as `qemu:///system`; without it, virsh's own default.
    connect: Option<String>,
    /// The clean image, in qcow2.
    base: PathBuf,
    /// The overlay that the domain's XML names as its disk.
    overlay: PathBuf,
    /// The file behind the fw_cfg entry.
    secret_file: Option<PathBuf>,
    /// The user and group numbers that QEMU runs under, if it is not root: they get to read `secret-file`.
    secret_owner: Option<(u32, u32)>,
    #[serde(default = "two_minutes")]
    timeout: Span,
}

impl Libvirt {
    fn virsh(&self, words: &[&str]) -> Vec<String> {
        let mut all = argv(["virsh"]);
        if let Some(connect) = &self.connect {
            all.extend(argv(["--connect", connect]));
        }
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }
}

impl Driver for Libvirt {
    fn check(&self) -> Result<(), String> {
        self.secret_file.as_deref().map_or(Ok(()), |file| absolute("secret-file", file))?;
        overlay::check(&self.base, &self.overlay)
    }

    fn programs(&self) -> Vec<String> {
        argv(["virsh", overlay::QEMU_IMG])
    }

    fn lacks_for_secret(&self) -> Option<&'static str> {
        self.secret_file.is_none().then_some("secret-file")
    }

    fn restart(&self, job: &Job<'_>) -> Vec<Action> {
        let domain = self.domain.as_deref().unwrap_or(job.guest);
        let timeout = self.timeout.0;
        let run = |words: &[&str], may_fail| Action::Run { argv: self.virsh(words), timeout, may_fail };
        let state = self.virsh(&["domstate", domain]);
        let overlay = self.overlay.display().to_string();
        let mut list = vec![
            // Before anything is done to the guest: one that starts from another disk (after a snapshot, say) would not be
            // clean, and what it did would not be kept.
            Action::Insist {
                argv: self.virsh(&["domblklist", "--inactive", domain]),
                otherwise: format!(
                    "the domain {domain} does not name {overlay} as a disk: nothing was done to the guest (see virsh dumpxml --inactive {domain})"
                ),
                word: overlay,
                timeout,
            },
            run(&["destroy", domain], true),
            Action::Await { argv: state, says: Some("shut off".to_owned()), timeout },
        ];
        list.extend(overlay::renew(job, &self.base, &self.overlay));
        let secret = self.secret_file.as_ref().zip(job.secret);
        if let Some((file, secret)) = secret {
            let (from, to) = (secret.to_owned(), file.clone());
            list.push(Action::HandOver { from, to, owner: self.secret_owner });
        }
        // A saved state (`virsh managedsave`, or libvirt-guests at a shutdown) is the attacked guest's memory.
        list.push(run(&["start", "--force-boot", domain], false));
        if let Some((file, _)) = secret {
            // The domain must find the file when it is started by hand, too.
            list.push(Action::Empty { file: file.clone() });
        }
        list
    }
}
