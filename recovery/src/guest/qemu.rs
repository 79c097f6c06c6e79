//! Guests that are QEMU processes of their own, without libvirt. The secret goes in by fw_cfg (QEMU, `docs/specs/fw_cfg`);
//! QEMU reads its file once, as it starts.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Action, Driver, Job, absolute, argv, check_words, fill, overlay, two_minutes};
use crate::config::Span;

/// Settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    /// QEMU and its arguments; `{overlay}` is filled in. The driver adds `-fw_cfg`, `-daemonize` and `-pidfile`.
    command: Vec<String>,
    /// The clean image, in qcow2.
    base: PathBuf,
    /// The overlay.
    overlay: PathBuf,
    /// Where QEMU notes its process.
    pidfile: PathBuf,
    #[serde(default = "two_minutes")]
    timeout: Span,
}

const KNOWN: [&str; 3] = ["overlay", "guest", "application"];

impl Driver for Qemu {
    fn check(&self) -> Result<(), String> {
        check_words("command", &self.command, &KNOWN)?;
        absolute("pidfile", &self.pidfile)?;
        overlay::check(&self.base, &self.overlay)
    }

    fn programs(&self) -> Vec<String> {
        self.command.first().cloned().into_iter().chain([overlay::QEMU_IMG.to_owned()]).collect()
    }

    fn restart(&self, job: &Job<'_>) -> Vec<Action> {
        let mut list = vec![Action::Kill { pidfile: self.pidfile.clone() }];
        list.extend(overlay::renew(job, &self.base, &self.overlay));
        let values = [
            ("overlay", self.overlay.display().to_string()),
            ("guest", job.guest.to_owned()),
            ("application", job.application.to_string()),
        ];
        let mut command = fill(&self.command, &values);
        if let Some(secret) = job.secret {
            // A comma in an option's value is doubled (QEMU, qemu-option.c).
            let file = secret.display().to_string().replace(',', ",,");
            command.extend(argv(["-fw_cfg", &format!("name=opt/strongroom/enrol,file={file}")]));
        }
        command.extend(argv(["-daemonize", "-pidfile", &self.pidfile.display().to_string()]));
        list.push(Action::Run { argv: command, timeout: self.timeout.0, may_fail: false });
        list
    }
}
