//! Callers that frame pointers miss. The C library's memset, memcpy and the like are leaf functions without a frame: when
//! they touch a page, the frame pointer is still their caller's, and the walk begins with the caller's caller. Their return
//! address lies at the top of the stack, or in the link register of arm64.

use std::fs;

/// An executable mapping.
#[derive(Debug, PartialEq, Eq)]
struct Code<'a> {
    start: u64,
    end: u64,
    file: &'a str,
}

/// The stacks, with the return address put behind the innermost frame where that is in the C library and the return
/// address leads into code elsewhere: a link register that the library has used since leads into the library.
pub(super) fn with_callers(pid: u32, stacks: &[Vec<u64>], leaf_returns: &[u64]) -> Vec<Vec<u64>> {
    // Without maps (the process is gone) the stacks stay as they are; their names will be addresses.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let code: Vec<Code<'_>> = maps.lines().filter_map(parse).collect();
    let returns = leaf_returns.iter().copied().chain(std::iter::repeat(0));
    stacks
        .iter()
        .zip(returns)
        .map(|(stack, leaf_return)| with_caller(&code, stack, leaf_return))
        .collect()
}

fn with_caller(code: &[Code<'_>], stack: &[u64], leaf_return: u64) -> Vec<u64> {
    let file = |address: u64| {
        code.iter().find(|code| (code.start..code.end).contains(&address)).map(|code| code.file)
    };
    let mut stack = stack.to_vec();
    let innermost = stack.first().and_then(|address| file(*address));
    let is_library =
        innermost.is_some_and(|file| file.starts_with("libc.so") || file.starts_with("libc-"));
    let caller = file(leaf_return);
    if is_library && caller.is_some() && caller != innermost && stack.get(1) != Some(&leaf_return) {
        stack.insert(1, leaf_return);
    }
    stack
}

/// `start-end perms offset device inode path` (proc_pid_maps(5)); just-in-time compiled code has no path.
fn parse(line: &str) -> Option<Code<'_>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let executable = fields.next()?.contains('x');
    let path = fields.nth(3).unwrap_or_default().trim_start();
    let file = path.rsplit('/').next().unwrap_or_default();
    executable.then_some(Code { start: hex(start)?, end: hex(end)?, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-2000 r-xp 00000000 08:01 1                          /app/server
2000-3000 rw-p 00000000 08:01 1                          /app/server
7000-9000 r-xp 00000000 08:01 2                          /usr/lib/x86_64-linux-gnu/libc.so.6
a000-b000 r-xp 00000000 00:00 0
";

    #[test]
    fn the_caller_of_a_leaf_in_the_c_library_is_put_back() {
        let code: Vec<_> = MAPS.lines().filter_map(parse).collect();
        let check = |stack: &[u64], leaf_return, expect: &[u64]| {
            assert_eq!(
                with_caller(&code, stack, leaf_return),
                expect,
                "{stack:x?} {leaf_return:x}"
            );
        };
        check(&[0x7100, 0x1200], 0x1100, &[0x7100, 0x1100, 0x1200]);
        check(&[0x7100, 0x1200], 0xa100, &[0x7100, 0xa100, 0x1200]);
        check(&[0x7100, 0x1100], 0x1100, &[0x7100, 0x1100]);
        check(&[0x7100, 0x1200], 0x2100, &[0x7100, 0x1200]);
        check(&[0x7100, 0x1200], 0x7200, &[0x7100, 0x1200]);
        check(&[0x7100, 0x1200], 0, &[0x7100, 0x1200]);
        check(&[0x1100, 0x1200], 0x1300, &[0x1100, 0x1200]);
        check(&[], 0x1300, &[]);
    }
}
