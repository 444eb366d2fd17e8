//! Names of addresses in a process: from its binaries' symbol tables, else from the map that a just-in-time compiler
//! writes, else the place in the file.

use blazesym::{
    Pid,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Process, Source},
    },
};

use super::{maps, perf_map, trimmed};

/// Names of sorted addresses; `None` where nothing is known of one.
pub(super) fn names(
    pid: u32,
    addresses: &[u64],
    problems: &mut Vec<String>,
) -> Vec<Option<String>> {
    let mut names = symbols(pid, addresses).unwrap_or_else(|error| {
        problems.push(format!("no symbols of process {pid}: {error}"));
        vec![None; addresses.len()]
    });
    let later =
        [perf_map::names as fn(u32, &[u64]) -> std::io::Result<Vec<Option<String>>>, maps::places];
    for source in later {
        let (missing, unnamed): (Vec<usize>, Vec<u64>) = names
            .iter()
            .zip(addresses)
            .enumerate()
            .filter(|(_, (name, _))| name.is_none())
            .map(|(i, (_, &a))| (i, a))
            .unzip();
        if unnamed.is_empty() {
            break;
        }
        match source(pid, &unnamed) {
            Ok(found) => {
                missing.into_iter().zip(found).for_each(|(index, name)| names[index] = name)
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    names
}

/// From symbol tables, demangled. Debug information is left alone: it is many times larger.
fn symbols(pid: u32, addresses: &[u64]) -> Result<Vec<Option<String>>, blazesym::Error> {
    let symbolizer = Symbolizer::builder()
        .enable_code_info(false)
        .enable_inlined_fns(false)
        .enable_demangling(true)
        .build();
    let mut process = Process::new(Pid::from(pid));
    process.debug_syms = false;
    // Its reader loads whole maps, and gives up at a line that is being written.
    process.perf_map = false;
    let found = symbolizer
        .symbolize(&Source::Process(process.clone()), Input::AbsAddr(addresses))
        .or_else(|_| {
            // Opening through `/proc/PID/map_files` takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; by path it does not.
            process.map_files = false;
            symbolizer.symbolize(&Source::Process(process), Input::AbsAddr(addresses))
        })?;
    let name =
        |symbolized: Symbolized<'_>| symbolized.into_sym().map(|symbol| trimmed(&symbol.name));
    Ok(found.into_iter().map(name).collect())
}
