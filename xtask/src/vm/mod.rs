//! `cargo xtask vm`: other kernels, in software emulation.

mod disk;
mod packages;
mod stage;

use anyhow::Result;
use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Vm {
    /// Make the disk of `--disk` from this host's packages, and say where it is.
    Disk,
}

/// Does it.
pub(crate) fn vm(vm: &Vm) -> Result<()> {
    match vm {
        Vm::Disk => println!("{}", disk::root_image()?.display()),
    }
    Ok(())
}
