//! The modules that a guest carries: a short list, closed over what they depend on.

use std::collections::{BTreeMap, BTreeSet};

/// Disks, and the file system of the root; loaded at boot. What a kernel has built in is not among its modules.
const BOOT: &[&str] = &["virtio_pci", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4"];

/// What jobs make hosts of: block devices that fail, networks that lose, sockets that are listed.
const ON_DEMAND: &[&str] = &[
    "dm-mod",
    "dm-delay",
    "dm-flakey",
    "loop",
    "zram",
    "overlay",
    "null_blk",
    "veth",
    "bridge",
    "dummy",
    "tun",
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "netlink_diag",
    "af_packet_diag",
    "nf_tables",
    "nft_compat",
    "tcp_bbr",
    "fuse",
    "kvm-amd",
    "crc32c-intel",
];

/// What each module needs, by name; from `modules.dep`.
pub(super) struct Modules<'a> {
    lines: BTreeMap<String, (&'a str, Vec<&'a str>)>,
}

impl<'a> Modules<'a> {
    /// Reads `modules.dep`: a path, a colon, and the paths of what must be there before it.
    pub(super) fn parse(text: &'a str) -> Self {
        let line = |line: &'a str| {
            let (path, needs) = line.split_once(':')?;
            Some((name(path), (path, needs.split_whitespace().collect())))
        };
        Self { lines: text.lines().filter_map(line).collect() }
    }

    /// Paths of all modules that guests carry.
    pub(super) fn carried(&self) -> BTreeSet<&'a str> {
        let known = BOOT.iter().chain(ON_DEMAND).filter_map(|module| self.lines.get(&name(module)));
        known.flat_map(|(path, needs)| [*path].into_iter().chain(needs.iter().copied())).collect()
    }

    /// Names of those that are loaded at boot, in this order.
    pub(super) fn at_boot(&self) -> Vec<String> {
        BOOT.iter()
            .map(|module| name(module))
            .filter(|name| self.lines.contains_key(name))
            .collect()
    }
}

/// A path without the compression of the module, which the guest's shell cannot undo.
pub(super) fn plain(path: &str) -> &str {
    path.strip_suffix(".xz").unwrap_or(path)
}

/// Name of a module from its path; `-` and `_` are the same to the kernel.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_carried() {
        let text = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
                    kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
                    kernel/drivers/block/virtio_blk.ko.xz:\nkernel/sound/soundcore.ko.xz:\n\
                    kernel/drivers/md/dm-mod.ko.xz:\n";
        let modules = Modules::parse(text);
        let carried: Vec<_> = modules.carried().into_iter().map(plain).collect();
        assert_eq!(
            carried,
            [
                "kernel/drivers/block/virtio_blk.ko",
                "kernel/drivers/md/dm-mod.ko",
                "kernel/fs/ext4/ext4.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/lib/crc16.ko"
            ]
        );
        assert_eq!(modules.at_boot(), ["virtio_blk", "ext4"]);
    }
}
