//! Labs: a base domain, a storage guest and any number of app guests as namespaces on one machine.
//!
//! One *keeper* process per lab is the first process of a PID namespace; every guest lives below it, so the kernel
//! removes processes, mounts and links together when the keeper ends, however it ends. The keeper's own network
//! namespace is the switch that joins the guests. Nothing of a lab is visible in the host's namespaces; on the host's
//! disks it owns two directories (their places are in `place.rs`), which `down` removes.
//!
//! A lab is for trying and testing, not a security boundary between the host and its guests: those need real virtual
//! machines.

mod command;
mod data;
mod down;
mod enter;
mod guest;
mod handle;
mod hypervisor;
mod keeper;
mod needs;
mod network;
mod place;
mod plan;
mod record;
mod rootfs;
mod services;
pub(crate) mod sys;
mod up;
mod wanted;

pub use command::GuestCommand;
pub use down::{down, down_all};
pub use enter::{EnterOptions, enter};
pub use guest::run as run_guest_init;
pub use handle::Lab;
pub use hypervisor::{Hypervisor, ask as ask_hypervisor};
pub use keeper::run as run_keeper;
pub use network::{ADMIN_ADDRESS, ENROL_ADDRESS, GATEWAY_ADDRESS};
pub use place::LabName;
pub use record::{GuestState, LabStatus, status_of, statuses};
pub use services::StopHow;
pub use wanted::Options;
