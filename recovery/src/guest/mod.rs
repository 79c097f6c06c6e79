//! Guests: how one is started again from its clean image.
//!
//! A driver says what is to be done as a list of [`Action`]s; one place carries them out, so that a dry run shows exactly
//! what a run does. The list is safe to repeat from its beginning after a crash anywhere in it: stopping a stopped guest
//! is no failure, and what was kept as evidence is not kept again.

mod act;
mod command;
mod dry_run;
mod libvirt;
mod overlay;
mod qemu;
mod xenstore;
mod xl;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use strongroom_contracts::Application;

pub use act::{Action, ActionError, perform};

use crate::config::Span;

/// How a guest is driven, as `recovery.toml` says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum GuestConfig {
    /// `virsh`.
    Libvirt(libvirt::Libvirt),
    /// `xl`.
    Xl(xl::Xl),
    /// QEMU itself.
    Qemu(qemu::Qemu),
    /// Commands of one's own.
    Command(command::Command),
    /// Nothing is done.
    DryRun(dry_run::DryRun),
}

/// A restart that is wanted.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The guest's name.
    pub guest: &'a str,
    /// The application in it.
    pub application: &'a Application,
    /// The incident.
    pub incident: u64,
    /// Where evidence goes.
    pub evidence: &'a Path,
    /// The file with the enrolment secret, if there is one.
    pub secret: Option<&'a Path>,
}

/// Starts guests from their clean image.
pub trait Driver: Send + Sync {
    /// What is wrong with its settings.
    ///
    /// # Errors
    /// In words.
    fn check(&self) -> Result<(), String>;
    /// The programs that it runs.
    fn programs(&self) -> Vec<String>;
    /// What it does to restart a guest, in order.
    fn restart(&self, job: &Job<'_>) -> Vec<Action>;
    /// Which setting is missing without which a secret would not reach the guest.
    fn lacks_for_secret(&self) -> Option<&'static str> {
        None
    }
}

impl GuestConfig {
    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        match self {
            GuestConfig::Libvirt(driver) => driver,
            GuestConfig::Xl(driver) => driver,
            GuestConfig::Qemu(driver) => driver,
            GuestConfig::Command(driver) => driver,
            GuestConfig::DryRun(driver) => driver,
        }
    }

    /// What is wrong with its settings.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        self.driver().check()
    }

    /// The programs that it needs and this machine lacks.
    pub fn missing(&self) -> Vec<String> {
        let mut programs = self.driver().programs();
        programs.sort();
        programs.dedup();
        programs.retain(|program| crate::run::find(program).is_none());
        programs
    }
}

/// Two minutes: what starting a guest takes at most.
fn two_minutes() -> Span {
    Span(Duration::from_secs(120))
}

/// A vector of words from literals and values.
fn argv<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn absolute(what: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() { Ok(()) } else { Err(format!("{what}: write a whole path, from `/` on")) }
}

/// Fills `{name}` in words in; names that are not known were refused by [`check_words`].
fn fill(words: &[String], values: &[(&str, String)]) -> Vec<String> {
    let one = |word: &String| {
        values.iter().fold(word.clone(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
    };
    words.iter().map(one).collect()
}

/// Refuses an empty command and names in braces that nothing fills in.
fn check_words(what: &str, words: &[String], known: &[&str]) -> Result<(), String> {
    if words.is_empty() {
        return Err(format!("{what}: write the program and its arguments"));
    }
    for word in words {
        let mut rest = word.as_str();
        while let Some(start) = rest.find('{') {
            let tail = rest.get(start + 1..).unwrap_or_default();
            let name: String = tail.chars().take_while(|c| c.is_ascii_lowercase()).collect();
            let closed = tail.get(name.len()..).is_some_and(|after| after.starts_with('}'));
            if closed && !name.is_empty() && !known.contains(&name.as_str()) {
                return Err(format!("{what}: `{{{name}}}` is not known; there are {}", list(known)));
            }
            rest = tail;
        }
    }
    Ok(())
}

fn list(known: &[&str]) -> String {
    known.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", ")
}

/// The file in the evidence to which an overlay is moved.
fn kept(job: &Job<'_>, overlay: &Path) -> PathBuf {
    let name = overlay.file_name().unwrap_or(std::ffi::OsStr::new("overlay"));
    job.evidence.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(toml: &str) -> Vec<String> {
        let config: GuestConfig = toml_edit::de::from_str(toml).unwrap();
        config.check().unwrap();
        let application = "mail".parse().unwrap();
        let job = Job {
            guest: "mail-guest",
            application: &application,
            incident: 7,
            evidence: Path::new("/e"),
            secret: Some(Path::new("/s")),
        };
        config.driver().restart(&job).iter().map(Action::to_string).collect()
    }

    #[test]
    fn libvirt_starts_from_a_new_overlay() {
        let plan = plan(
            "driver = \"libvirt\"\nbase = \"/i/clean.qcow2\"\noverlay = \"/i/mail.qcow2\"\nsecret-file = \"/run/mail\"",
        );
        assert_eq!(
            plan,
            [
                "insist that `virsh domblklist --inactive mail-guest` names /i/mail.qcow2",
                "virsh destroy mail-guest (may fail)",
                "wait until `virsh domstate mail-guest` says `shut off`",
                "move /i/mail.qcow2 to /e/mail.qcow2",
                "qemu-img create -q -f qcow2 -F qcow2 -b /i/clean.qcow2 /i/mail.qcow2",
                "hand the secret over in /run/mail",
                "virsh start --force-boot mail-guest",
                "empty /run/mail",
            ]
        );
    }

    #[test]
    fn a_libvirt_guest_without_a_file_for_it_cannot_have_a_secret() {
        let lacks = |more: &str| {
            let text =
                format!("driver = \"libvirt\"\nbase = \"/i/b.qcow2\"\noverlay = \"/i/o.qcow2\"\n{more}");
            let config: GuestConfig = toml_edit::de::from_str(&text).unwrap();
            config.driver().lacks_for_secret()
        };
        assert_eq!(lacks(""), Some("secret-file"));
        assert_eq!(lacks("secret-file = \"/run/mail\""), None);
    }

    #[test]
    fn xl_hands_the_secret_over_before_the_guest_runs() {
        let plan = plan(
            "driver = \"xl\"\nconfig = \"/etc/xen/mail.cfg\"\nbase = \"/i/b.qcow2\"\noverlay = \"/i/o.qcow2\"",
        );
        assert_eq!(
            plan,
            [
                "insist that `xl -N create /etc/xen/mail.cfg` names /i/o.qcow2",
                "xl destroy mail-guest (may fail)",
                "wait until `xl domid mail-guest` fails",
                "move /i/o.qcow2 to /e/o.qcow2",
                "qemu-img create -q -f qcow2 -F qcow2 -b /i/b.qcow2 /i/o.qcow2",
                "xl create -p -q /etc/xen/mail.cfg",
                "write the secret to strongroom/enrol of mail-guest in XenStore",
                "xl unpause mail-guest",
            ]
        );
    }

    #[test]
    fn xl_without_an_overlay_leaves_disks_to_the_domains_configuration() {
        let plan = plan("driver = \"xl\"\nconfig = \"/etc/xen/mail.cfg\"\ndomain = \"mail\"");
        assert_eq!(plan[..2], ["xl destroy mail (may fail)", "wait until `xl domid mail` fails"]);
        assert!(!plan.iter().any(|step| step.contains("qemu-img")), "{plan:?}");
    }

    #[test]
    fn qemu_gets_the_secret_by_fw_cfg() {
        let plan = plan(
            "driver = \"qemu\"\nbase = \"/i/b.qcow2\"\noverlay = \"/i/o.qcow2\"\npidfile = \"/run/mail.pid\"\n\
             command = [\"qemu-system-x86_64\", \"-drive\", \"file={overlay},if=virtio\"]",
        );
        assert_eq!(
            plan,
            [
                "kill the process of /run/mail.pid",
                "move /i/o.qcow2 to /e/o.qcow2",
                "qemu-img create -q -f qcow2 -F qcow2 -b /i/b.qcow2 /i/o.qcow2",
                "qemu-system-x86_64 -drive file=/i/o.qcow2,if=virtio -fw_cfg name=opt/strongroom/enrol,file=/s \
                 -daemonize -pidfile /run/mail.pid",
            ]
        );
    }

    #[test]
    fn commands_are_argument_vectors() {
        let plan = plan(
            "driver = \"command\"\nstop = [\"halt\", \"{guest}\"]\n\
             start = [\"boot\", \"{guest} {application}\", \"{incident}\", \"{secret}\", \"{evidence}\", \"$(x)\"]",
        );
        assert_eq!(plan, ["halt mail-guest", "boot 'mail-guest mail' 7 /s /e '$(x)'"]);
    }

    #[test]
    fn a_dry_run_does_nothing() {
        assert_eq!(
            plan("driver = \"dry-run\""),
            ["nothing: guest mail-guest would be restarted from its clean image"]
        );
    }

    #[test]
    fn missing_programs_are_known_before_anything_is_done() {
        let config: GuestConfig =
            toml_edit::de::from_str("driver = \"command\"\nstart = [\"no-such-program-here\"]").unwrap();
        assert_eq!(config.missing(), ["no-such-program-here"]);
    }
}
