//! Names of kernel functions, from `/proc/kallsyms`, read from its start and not kept.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use super::trimmed;

/// Bytes that a function can have at most. A symbol further below an address is of something else.
const MAX_FUNCTION: u64 = 1 << 20;

/// Names of kernel addresses; the address in hex where the kernel keeps its symbols to itself (kernel.kptr_restrict).
pub fn kernel_symbols(addresses: &[u64]) -> Vec<String> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let names = names(&sorted, &mut Vec::new());
    let name = |address| names[sorted.binary_search(address).ok()?].clone();
    addresses
        .iter()
        .map(|address| name(address).unwrap_or_else(|| format!("{address:#x}")))
        .collect()
}

/// Names of sorted addresses; `None` where no symbol is known.
pub(super) fn names(addresses: &[u64], problems: &mut Vec<String>) -> Vec<Option<String>> {
    let read =
        File::open("/proc/kallsyms").and_then(|file| names_in(BufReader::new(file), addresses));
    let names = read.unwrap_or_else(|error| {
        problems.push(format!("/proc/kallsyms: {error}"));
        vec![None; addresses.len()]
    });
    if !names.is_empty() && names.iter().all(Option::is_none) {
        problems.push("no kernel symbols: set kernel.kptr_restrict to 1 and run as root, or see kernel.lockdown".to_owned());
    }
    names
}

fn names_in(lines: impl BufRead, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let mut nearest: Vec<(u64, Option<String>)> = vec![(0, None); addresses.len()];
    for line in lines.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some((start, name)) = parse_line(&line) else { continue };
        let first = addresses.partition_point(|&address| address < start);
        let inside =
            addresses[first..].iter().take_while(|&&address| address - start < MAX_FUNCTION);
        for ((best, slot), _) in nearest[first..].iter_mut().zip(inside) {
            // Of several names of one address, the first is the function's own; aliases follow.
            if *best < start {
                (*best, *slot) = (start, Some(name.clone()));
            }
        }
    }
    Ok(nearest.into_iter().map(|(_, name)| name).collect())
}

/// `ADDRESS TYPE NAME [MODULE]`; code only. A restricted kernel says address 0.
fn parse_line(line: &str) -> Option<(u64, String)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok().filter(|&address| address > 0)?;
    fields.next().filter(|kind| matches!(*kind, "t" | "T" | "w" | "W"))?;
    let name = fields.next()?;
    Some((
        address,
        trimmed(
            &fields.next().map_or_else(|| name.to_owned(), |module| format!("{name} {module}")),
        ),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, addresses: &[u64], expected: &[Option<&str>]) {
        let names = names_in(text.as_bytes(), addresses).unwrap();
        assert_eq!(names.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn nearest_below() {
        let text = "ffffffff81000000 T _stext\nffffffff81000100 T do_epoll_wait\nffffffff81000100 T __alias\nffffffff81000200 d data\n\
            ffffffff81000300 t schedule\nffffffffc0000000 t nf_hook\t[nf_conntrack]\nffffffffa0000000 t bpf_prog_x\t[bpf]\n\
            0000000000000000 T hidden\nnonsense\n";
        check(
            text,
            &[
                5,
                0xffffffff81000000,
                0xffffffff81000150,
                0xffffffff81000250,
                0xffffffff81000400,
                0xffffffffc0000010,
                0xffffffffd0000000,
            ],
            &[
                None,
                Some("_stext"),
                Some("do_epoll_wait"),
                Some("do_epoll_wait"),
                Some("schedule"),
                Some("nf_hook [nf_conntrack]"),
                None,
            ],
        );
        check(
            "0000000000000000 T _stext\n0000000000000000 t schedule\n",
            &[0xffffffff81000000],
            &[None],
        );
        check("", &[], &[]);
    }

    #[test]
    fn this_kernel() {
        let text = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let Some(line) = text
            .lines()
            .find(|line| line.ends_with(" T schedule") && !line.starts_with("0000000000000000"))
        else {
            println!("skipped: this kernel hides its symbols");
            return;
        };
        let address = u64::from_str_radix(&line[..16], 16).unwrap();
        assert_eq!(kernel_symbols(&[address + 1, 7, address]), ["schedule", "0x7", "schedule"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "([0-9a-f]{1,17} [tTd] [a-zé]{0,3}\n){0,6}", address in any::<u64>()) {
            prop_assert_eq!(names_in(text.as_bytes(), &[address]).unwrap().len(), 1);
        }
    }
}
