//! Builds the BPF object and leaves it in OUT_DIR for `kernel/mod.rs` to embed.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let root = PathBuf::from(
        std::env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR not set")?,
    );
    let root = root.join("../observer-ebpf");
    let package = aya_build::Package {
        name: "observer-ebpf",
        root_dir: root.to_str().context("the path of the workspace is not UTF-8")?,
        ..aya_build::Package::default()
    };
    // `cargo xtask` names another nightly where the default one is missing or too new for the linker's LLVM.
    println!("cargo:rerun-if-env-changed=BPF_TOOLCHAIN");
    let name = std::env::var("BPF_TOOLCHAIN").ok();
    let toolchain =
        name.as_deref().map_or_else(aya_build::Toolchain::default, aya_build::Toolchain::Custom);
    aya_build::build_ebpf([package], toolchain)
        .context("cannot build the BPF programs: `cargo xtask run` installs what they need")
}
