//! What the host is, read once at the start.

use std::{fs, path::Path};

use rustix::{
    system::uname,
    time::{ClockId, Timespec, clock_gettime},
};

/// Bytes read of the files below `/etc`.
const MAX_BYTES: u64 = 64 * 1024;

/// Identity of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Host name (`host.name`).
    pub host_name: String,
    /// Kernel release.
    pub kernel: String,
    /// machine-id(5) (`host.id`); empty if the host has none.
    pub host_id: String,
    /// /proc/sys/kernel/random/boot_id, which is another one after each boot; empty if unreadable.
    pub boot_id: String,
    /// PRETTY_NAME of os-release(5) (`os.description`); empty if unknown.
    pub os_description: String,
    /// VERSION_ID of os-release(5) (`os.version`); empty if unknown.
    pub os_version: String,
    /// Time of boot: the real time less the time since boot, so that it includes time suspended and is precise.
    pub boot_unix_ns: u64,
}

impl Info {
    /// Reads the files below `root` (`/`), and asks the kernel.
    pub fn read(root: &Path) -> Self {
        let name = uname();
        let os_release =
            text(&root.join("etc/os-release")).or_else(|| text(&root.join("usr/lib/os-release")));
        let value = |key: &str| {
            os_release.as_deref().and_then(|text| os_release_value(text, key)).unwrap_or_default()
        };
        let host_id = ["etc/machine-id", "var/lib/dbus/machine-id"]
            .iter()
            .find_map(|path| machine_id(&text(&root.join(path))?));
        Info {
            host_name: name.nodename().to_string_lossy().into_owned(),
            kernel: name.release().to_string_lossy().into_owned(),
            host_id: host_id.unwrap_or_default(),
            boot_id: text(&root.join("proc/sys/kernel/random/boot_id"))
                .map_or_else(String::new, |id| id.trim().to_owned()),
            os_description: value("PRETTY_NAME"),
            os_version: value("VERSION_ID"),
            boot_unix_ns: boot_unix_ns(),
        }
    }
}

/// The time of boot. The two clocks are read one after the other, and a pause between them would shift it, so of several
/// readings the tightest counts.
fn boot_unix_ns() -> u64 {
    const READINGS: usize = 5;
    let reading = |_| {
        let before = nanoseconds(clock_gettime(ClockId::Boottime));
        let real = nanoseconds(clock_gettime(ClockId::Realtime));
        let after = nanoseconds(clock_gettime(ClockId::Boottime));
        (after.saturating_sub(before), real.saturating_sub(before.midpoint(after)))
    };
    (0..READINGS).map(reading).min().map_or(0, |(_, boot)| boot)
}

/// A clock's time; 0 before 1970.
pub(super) fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

fn text(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// An id is 32 hex digits; `uninitialized` is not one (machine-id(5)).
fn machine_id(text: &str) -> Option<String> {
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// A value of os-release(5), without its shell quotes.
fn os_release_value(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let bare =
        ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    Some(bare.unwrap_or(value).replace('\\', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_made_host() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")
            .unwrap();
        fs::write(
            root.path().join("etc/os-release"),
            "NAME=\"X\"\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID='13'\n",
        )
        .unwrap();
        let info = Info::read(root.path());
        assert_eq!(info.host_id, "0123456789abcdef0123456789abcdef");
        assert_eq!(
            (info.os_description.as_str(), info.os_version.as_str()),
            ("Debian GNU/Linux 13 (trixie)", "13")
        );
        assert!(!info.kernel.is_empty() && !info.host_name.is_empty());
    }

    #[test]
    fn of_a_bare_host() {
        let root = tempfile::tempdir().unwrap();
        let info = Info::read(root.path());
        assert_eq!((info.host_id.as_str(), info.os_description.as_str()), ("", ""));
        assert_eq!(machine_id("uninitialized\n"), None);
        assert_eq!(os_release_value("PRETTY_NAME=", "PRETTY_NAME").as_deref(), Some(""));
        assert_eq!(os_release_value("PRETTY_NAME=\"", "PRETTY_NAME").as_deref(), Some("\""));
    }

    #[test]
    fn boot_is_where_the_kernel_says() {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let btime: u64 =
            stat.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse().unwrap();
        assert!((boot_unix_ns() / 1_000_000_000).abs_diff(btime) <= 1);
        assert!(boot_unix_ns().abs_diff(boot_unix_ns()) < 50_000_000, "stable");
    }
}
