//! Tells the linker of the BPF programs to write copies and fills in place, instead of as calls.
//!
//! A program that calls a function of its own is compiled by the kernel as several. Before 6.5 (commit 0108a4e9f358,
//! "bpf: ensure main program has an extable") the kernel may then take a load through a null pointer, which it allows and
//! reads as zero, for one of its own mistakes: an oops in the agent's thread, seen on Debian's 5.10.0-46.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Given by the build script of the agent.
    println!("cargo:rustc-check-cfg=cfg(bpf_target_arch, values(\"x86_64\", \"aarch64\"))");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
