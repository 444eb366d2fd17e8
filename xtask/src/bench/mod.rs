//! `cargo xtask bench`.

/// What to measure.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// none
    Agent,
}

pub(crate) fn bench(_bench: &Bench) -> anyhow::Result<()> {
    Ok(())
}
