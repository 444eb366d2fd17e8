//! Places in mapped files, from `/proc/PID/maps` (proc_pid_maps(5)).

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

/// Name of each address's place, `binary+0xOFFSET` in the file; `None` outside of mapped files. `addresses` are sorted.
///
/// Errors: the process is gone, or not ours to look at.
pub(super) fn places(pid: u32, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let path = format!("/proc/{pid}/maps");
    let explained = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    places_in(BufReader::new(File::open(&path).map_err(explained)?), addresses).map_err(explained)
}

fn places_in(lines: impl BufRead, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let mut places = vec![None; addresses.len()];
    for line in lines.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&line) else { continue };
        let first = addresses.partition_point(|&address| address < mapping.start);
        let inside = addresses[first..].iter().take_while(|&&address| address < mapping.end);
        for (place, address) in places[first..].iter_mut().zip(inside) {
            *place = Some(format!(
                "{}+{:#x}",
                mapping.file,
                (address - mapping.start).wrapping_add(mapping.offset)
            ));
        }
    }
    Ok(places)
}

struct Mapping<'a> {
    start: u64,
    end: u64,
    offset: u64,
    /// The last part of the path.
    file: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let offset = hex(fields.nth(1)?)?;
        let path = fields.nth(2)?.trim_start();
        let file = path.strip_suffix(" (deleted)").unwrap_or(path).rsplit('/').next()?;
        path.starts_with('/').then_some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            offset,
            file,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn real_lines() {
        let text = "5604a0000000-5604a0002000 r--p 00000000 08:02 173521                     /usr/bin/my app\n\
            5604a0002000-5604a0010000 r-xp 00002000 08:02 173521                     /usr/bin/my app (deleted)\n\
            5604a0f00000-5604a0f21000 rw-p 00000000 00:00 0                          [heap]\n\
            7f1000000000-7f1000001000 rwxp 00000000 00:00 0 \n\
            7f35c0a00000-7f35c0b00000 r-xp 00026000 08:02 135522                     /usr/lib/x86_64-linux-gnu/libc.so.6\n\
            nonsense\n";
        let addresses = [
            1,
            0x5604a0000000,
            0x5604a0002010,
            0x5604a0f00001,
            0x7f1000000000,
            0x7f35c0a00005,
            0x7f35c0b00000,
        ];
        let expected = [
            None,
            Some("my app+0x0"),
            Some("my app+0x2010"),
            None,
            None,
            Some("libc.so.6+0x26005"),
            None,
        ];
        let places = places_in(text.as_bytes(), &addresses).unwrap();
        assert_eq!(places.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn never_panics(text in "([0-9a-f]{1,17}-[0-9a-f]{1,17} r [0-9a-f]{1,17} 0 0 +/?[a-z/é]{0,4}\n){0,5}", address in any::<u64>()) {
            prop_assert_eq!(places_in(text.as_bytes(), &[address]).unwrap().len(), 1);
        }
    }
}
