//! What kind of lab a caller asks for, and what that means on this machine, checked before anything is made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::needs::{self, Privilege};
use super::place::{LabName, Place};
use super::{network, rootfs, services};

/// What kind of lab to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; two labs of one user differ in it.
    pub name: LabName,
    /// A directory of policy files, one app guest for each; the sample policies when not given.
    pub policy: Option<PathBuf>,
    /// The data root; a small made-up one, removed with the lab, when not given.
    pub data: Option<PathBuf>,
    /// Only initialise the installation and start the gateway: no contracts, no mounts.
    pub bare: bool,
    /// Only the guests and the network: no programs under test at all.
    pub empty: bool,
    /// Ports of the storage guest that app guests reach besides the native door, for comparing with other servers.
    pub open_ports: Vec<u16>,
    /// Whether app guests reach the base domain's enrolment address ([`super::ENROL_ADDRESS`]), for recovery.
    pub enrolment: bool,
    /// Whether guests have `/dev/cpu_dma_latency`, by which Strongroom keeps processors awake during bursts of requests.
    pub awake: bool,
    /// More host directories that every guest sees, read-only.
    pub shares: Vec<PathBuf>,
    /// The program `lab`, which plays the keeper and the guests' first processes. Found by itself when not given.
    pub lab_program: Option<PathBuf>,
    /// Whether the lab outlives this process. Otherwise it ends with the [`super::Lab`] or the process, whichever is first.
    pub detached: bool,
}

impl Options {
    /// The default lab under `name`, ending with its [`super::Lab`].
    #[must_use]
    pub fn named(name: LabName) -> Self {
        Self {
            name,
            policy: None,
            data: None,
            bare: false,
            empty: false,
            open_ports: Vec::new(),
            enrolment: false,
            awake: true,
            shares: Vec::new(),
            lab_program: None,
            detached: false,
        }
    }

    /// The default lab for a test, under a name of its own.
    #[must_use]
    pub fn for_test(purpose: &str) -> Self {
        Self::named(LabName::unique(purpose))
    }
}

/// What the options mean.
pub(super) struct Wanted {
    pub(super) apps: Vec<String>,
    /// The data root on the host.
    pub(super) data: PathBuf,
    /// Host directories that every guest sees.
    pub(super) shares: Vec<PathBuf>,
    /// The program `lab`.
    pub(super) program: PathBuf,
    /// The directory of the programs under test.
    pub(super) programs: PathBuf,
    pub(super) privilege: Privilege,
}

impl Wanted {
    pub(super) fn new(options: &Options, place: &Place) -> Result<Self> {
        let program = lab_program(options.lab_program.as_deref())?;
        let programs = program_directory(&program);
        let privilege = needs::check(&programs, options.empty)?;
        let data = match &options.data {
            Some(dir) => dir
                .canonicalize()
                .with_context(|| format!("cannot use `{}` as the data root", dir.display()))?,
            None => place.disk.join("data"),
        };
        let shares = shares(options, &programs)?;
        refuse_exposure("the data root", &data, &shares)?;
        refuse_exposure("the lab's directory", &place.disk, &shares)?;
        Ok(Self { apps: applications(options)?, data, shares, program, programs, privilege })
    }
}

fn shares(options: &Options, programs: &Path) -> Result<Vec<PathBuf>> {
    let mut shares = vec![programs.to_owned()];
    // The conformance suites, where `tools/setup.sh` puts them.
    if let Some(tools) = programs.parent().map(|dir| dir.join("tools/bin")).filter(|dir| dir.is_dir()) {
        shares.push(tools);
    }
    for share in &options.shares {
        shares.push(share.canonicalize().with_context(|| format!("cannot share `{}`", share.display()))?);
    }
    Ok(shares)
}

pub(super) fn lab_program(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    // A test program is one directory below the programs: target/PROFILE/deps.
    let beside = me.parent().map(|dir| dir.join("lab"));
    let above = me.parent().and_then(Path::parent).map(|dir| dir.join("lab"));
    beside.into_iter().chain(above).find(|path| path.is_file()).with_context(|| {
        format!("there is no program `lab` beside `{}`: build it with `make lab`", me.display())
    })
}

fn program_directory(lab_program: &Path) -> PathBuf {
    std::env::var_os("STRONGROOM_BIN_DIR").map_or_else(
        || lab_program.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned),
        PathBuf::from,
    )
}

fn applications(options: &Options) -> Result<Vec<String>> {
    let Some(dir) = &options.policy else {
        return Ok(vec!["mail".to_owned(), "editor".to_owned()]);
    };
    let mut apps = Vec::new();
    for file in services::policy_files(dir)? {
        let app = services::application_of(&file)?;
        // Used as a directory and a host name.
        if app.is_empty() || app.len() > 60 || app.starts_with('.') || app.contains(['/', '\0', '\n']) {
            bail!("`{}` is about `{app}`, which cannot name a guest", file.display());
        }
        if matches!(app.as_str(), "base" | "storage") || apps.contains(&app) {
            bail!("`{}` is about `{app}`, a name that another guest has", file.display());
        }
        apps.push(app);
    }
    if apps.is_empty() {
        bail!("`{}` holds no policy file (NAME.toml)", dir.display());
    }
    if apps.len() > network::MAX_APPS {
        bail!("`{}` holds {} policies: a lab has room for {}", dir.display(), apps.len(), network::MAX_APPS);
    }
    Ok(apps)
}

/// Every guest sees the system's directories and the shares: what belongs to one guest must not be in them.
fn refuse_exposure(what: &str, path: &Path, shares: &[PathBuf]) -> Result<()> {
    let system = rootfs::SYSTEM.iter().map(|dir| Path::new("/").join(dir));
    if let Some(seen) = system.chain(shares.iter().cloned()).find(|dir| path.starts_with(dir)) {
        bail!(
            "{what} `{}` is below `{}`, which every guest sees: put one of them elsewhere",
            path.display(),
            seen.display()
        );
    }
    Ok(())
}
