//! What differs between the architectures of guests. The emulator is the host's own, whatever it emulates.

/// Architecture of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    /// x86-64, as a PC.
    X86_64,
    /// aarch64, as QEMU's own board.
    Arm64,
}

impl Arch {
    /// The one that a name starts with, and the rest of it. Without a word of it, x86-64.
    pub(super) fn of(name: &str) -> (Self, &str) {
        match name.strip_prefix(Self::Arm64.prefix()) {
            Some(rest) => (Self::Arm64, rest),
            None => (Self::X86_64, name),
        }
    }

    /// Start of the names of its kernels.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::X86_64 => "",
            Self::Arm64 => "arm64:",
        }
    }

    /// Debian's word for it.
    pub(super) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// End of the names of kernels for virtual machines.
    pub(super) const fn flavour(self) -> &'static str {
        match self {
            Self::X86_64 => "-cloud-amd64",
            Self::Arm64 => "-cloud-arm64",
        }
    }

    /// The emulator.
    pub(super) const fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Packages of the emulator.
    pub(super) const fn qemu_packages(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => {
                &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"]
            }
            Self::Arm64 => &["qemu-system-arm", "qemu-system-common", "qemu-system-data"],
        }
    }

    /// Its machine; it has two serial ports where QEMU is given two.
    pub(super) const fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "pc",
            Self::Arm64 => "virt",
        }
    }

    /// Its CPU; one that gives the same numbers in each run if `repeatable`.
    pub(super) const fn cpu(self, repeatable: bool) -> &'static str {
        match (self, repeatable) {
            (Self::X86_64, false) => "max",
            (Self::X86_64, true) => "max,-rdrand,-rdseed",
            // The architecture's own signing of pointers costs several times as much to emulate.
            (Self::Arm64, _) => "max,pauth-impdef=on",
        }
    }

    /// Its first and its second serial port, as the kernel calls them.
    pub(super) const fn serial_ports(self) -> [&'static str; 2] {
        match self {
            Self::X86_64 => ["ttyS0", "ttyS1"],
            Self::Arm64 => ["ttyAMA0", "ttyAMA1"],
        }
    }
}
