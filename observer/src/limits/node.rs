//! The bound of V8's old space: what Node.js is told, else what V8 takes by the size of memory.

use crate::signal::limit::Node;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The limit, from the command line, from the environment as `/proc/PID/environ` has it, or from V8's default for
/// `memory_bytes`: that of the host, or of the control group where that is less. What a program sets at run time
/// (v8.setFlagsFromString) is not seen.
pub(super) fn limit(command_line: &str, environ: &[u8], memory_bytes: u64) -> Node {
    let from = |text: &str, source: &str| {
        let bytes = old_space(text, memory_bytes)?;
        Some(Node { heap_limit_bytes: bytes, heap_limit_source: source.to_owned() })
    };
    let variable = |name: &[u8]| {
        let mut all = environ.split(|&byte| byte == 0);
        let value = all.find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    // PM2 in cluster mode keeps a worker's arguments there, and writes over its command line.
    let environment = ["pm2_env", "NODE_OPTIONS"];
    from(command_line, "command_line")
        .or_else(|| {
            environment.iter().find_map(|name| from(&variable(name.as_bytes())?, "environment"))
        })
        .unwrap_or_else(|| Node {
            heap_limit_bytes: default_old_space(memory_bytes),
            heap_limit_source: "default".to_owned(),
        })
}

/// `--max-old-space-size=MIB` or `--max-old-space-size-percentage=SHARE` in a text; the last one counts. V8 takes `_` for
/// `-`.
fn old_space(text: &str, memory_bytes: u64) -> Option<u64> {
    let text = text.replace('_', "-");
    let after =
        text.rmatch_indices("--max-old-space-size").map(|(at, name)| &text[at + name.len()..]);
    after.into_iter().find_map(|rest| {
        let (rest, is_share) = match rest.strip_prefix("-percentage") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let rest = rest.strip_prefix(['=', ' '])?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        let number: u64 = digits.parse().ok()?;
        let bytes = if is_share {
            memory_bytes / 100 * number.min(100)
        } else {
            number.saturating_mul(MIB)
        };
        // Zero is V8's word for its default.
        (bytes > 0).then_some(bytes)
    })
}

/// What V8 takes on a 64-bit host, from Node.js 12 on (V8's src/heap/heap.cc, HeapSizeFromPhysicalMemory and
/// MaxOldGenerationSize): half of memory, 256 MiB at least, 2 GiB at most, 4 GiB from 15 GiB of memory on.
fn default_old_space(memory_bytes: u64) -> u64 {
    let is_large = memory_bytes.saturating_add(512 * MIB) / GIB >= 15;
    (memory_bytes / 2).clamp(256 * MIB, if is_large { 4 * GIB } else { 2 * GIB })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        #[track_caller]
        fn check(command_line: &str, environ: &str, expected: (u64, &str)) {
            let node = limit(command_line, environ.as_bytes(), 4 * GIB);
            let found = (node.heap_limit_bytes / MIB, node.heap_limit_source.as_str());
            assert_eq!(found, expected, "{command_line} {environ}");
        }
        check("node --max-old-space-size=512 a.js", "", (512, "command_line"));
        check(
            "node --max_old_space_size 300 a.js",
            "NODE_OPTIONS=--max-old-space-size=7",
            (300, "command_line"),
        );
        check("node --max-old-space-size=1 --max-old-space-size=2", "", (2, "command_line"));
        check(
            "node a.js",
            "A=1\0NODE_OPTIONS=--trace-gc --max-old-space-size=800\0B=2",
            (800, "environment"),
        );
        check("node a.js", "XNODE_OPTIONS=--max-old-space-size=800", (2048, "default"));
        check(
            "node /srv/a",
            "pm2_env={\"node_args\":[\"--max-old-space-size=400\"]}",
            (400, "environment"),
        );
        check("node --max-old-space-size-percentage=50 a", "", (2047, "command_line"));
        check("node --max-old-space-size=0 a", "", (2048, "default"));
        check("node --max-old-space-size", "", (2048, "default"));
        check("node --max-old-space-size=99999999999999999999", "", (2048, "default"));
    }

    /// As `v8.getHeapStatistics().heap_size_limit` of Node.js 20 says in control groups of these sizes, less the young
    /// generation's three semispaces.
    #[test]
    fn defaults_by_memory() {
        let check = |memory: u64, expected: u64| {
            assert_eq!(default_old_space(memory * MIB), expected * MIB)
        };
        check(400, 256);
        check(1000, 500);
        check(3000, 1500);
        check(24105, 4096);
        check(8 * 1024, 2048);
        check(15 * 1024 - 512, 4096);
        check(0, 256);
    }

    proptest! {
        #[test]
        fn never_panics(line in ".{0,80}", environ in proptest::collection::vec(any::<u8>(), 0..200), memory in any::<u64>()) {
            let node = limit(&format!("--max-old-space-size{line}"), &environ, memory);
            prop_assert!(node.heap_limit_bytes > 0);
        }
    }
}
