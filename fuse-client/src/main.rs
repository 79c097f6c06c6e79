//! `mount.strongroom`: mounts what a contract grants.

use std::process::ExitCode;

fn main() -> ExitCode {
    strongroom_channel::one_arena();
    strongroom_fuse_client::cli::run(std::env::args_os().skip(1).collect())
}
