//! The rules: from files to problems, each a line that names the file and the mend.

/// A file of the workspace.
pub(super) struct File {
    /// From the top of the workspace.
    pub(super) path: String,
    /// What it says.
    pub(super) text: String,
}

/// Longest Rust file. The middle file that eats a product starts with an exception.
const MAX_LINES: usize = 500;

/// Registry of signals.
const REGISTRY: &str = "observer/src/signal/mod.rs";

/// Rooms in which `unsafe` may be written.
const UNSAFE_ROOMS: &[&str] = &["observer/src/kernel", "observer-ebpf/src/"];

/// The core: no IO, no clock.
const CORE: &[&str] = &[
    "observer/src/signal",
    "observer/src/state",
    "observer/src/detect",
    "observer/src/snapshot",
    "observer/src/export/encode",
];

/// What the core may not say.
const IMPURE: &[&str] =
    &["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now", "std::fs", "File::open"];

/// Starts of paths that exist on one machine only. In two halves, so that this file passes.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/tmp", "/wt"),
    concat!("/tmp", "/setup"),
    concat!("/root/", ".cargo"),
    concat!("/root/", ".rustup"),
    concat!("/Us", "ers/"),
];

/// Before a sleep in a test stands a comment that starts so and gives the reason.
const SLEEP_REASON: &str = "// sleep: ";

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}

fn has(files: &[File], path: &str) -> bool {
    files.iter().any(|file| file.path == path)
}

fn text_of<'a>(files: &'a [File], path: &str) -> &'a str {
    files.iter().find(|file| file.path == path).map_or("", |file| &file.text)
}

/// Lines with their numbers, without comments and without what stands in quotes.
fn code(text: &str) -> impl Iterator<Item = (usize, String)> {
    let bare = |line: &str| {
        let line = line.split("//").next().unwrap_or_default().replace("\\\"", "");
        line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
    };
    text.lines().enumerate().map(move |(index, line)| (index + 1, bare(line)))
}

/// Whether a line holds the word, not as a part of another.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

pub(super) fn length(files: &[File]) -> Vec<String> {
    let problem = |file: &File| {
        let lines = file.text.lines().count();
        (lines > MAX_LINES).then(|| {
            format!(
                "{}: {lines} lines; split it by what changes together, {MAX_LINES} at most",
                file.path
            )
        })
    };
    rust(files).filter_map(problem).collect()
}

pub(super) fn module_docs(files: &[File]) -> Vec<String> {
    rust(files)
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| {
            format!("{}:1: start it with `//! ` and a sentence that says what it is for", file.path)
        })
        .collect()
}

pub(super) fn signals(files: &[File]) -> Vec<String> {
    let registry = text_of(files, REGISTRY);
    let names: Vec<_> = registry
        .split("&")
        .filter_map(|part| part.split_once("::SIGNAL").map(|(name, _)| name))
        .filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
        .collect();
    if names.is_empty() {
        return vec![format!("{REGISTRY}: no `&<signal>::SIGNAL` in `ALL`")];
    }
    let mut problems = Vec::new();
    for name in names {
        let place =
            |folder: &str| (format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs"));
        let exists = |folder: &str| {
            let (file, nested) = place(folder);
            has(files, &file) || has(files, &nested)
        };
        // A folder, or the file that lists the signals in it, and how.
        let kernel_half = [
            ("observer-ebpf/abi", "lib.rs", format!("pub mod {name};")),
            ("observer-ebpf/src", "main.rs", format!("mod {name};")),
        ];
        let user_half = [
            ("observer/src/signal", "mod.rs", format!("pub mod {name};")),
            ("tests/kernel", "main.rs", format!("mod {name};")),
        ];
        // A signal that needs no program has no kernel half; one that has a part of it has it all.
        let has_programs = kernel_half.iter().any(|(folder, ..)| exists(folder));
        let kernel_half = kernel_half.into_iter().filter(|_| has_programs);
        for (folder, list, line) in kernel_half.chain(user_half) {
            let (file, nested) = place(folder);
            if !has(files, &file) && !has(files, &nested) {
                problems.push(format!(
                    "{file}: missing; signal `{name}` has a file of its name in every folder"
                ));
            }
            let list = format!("{folder}/{list}");
            if !text_of(files, &list).lines().any(|found| found.trim() == line) {
                problems.push(format!("{list}: add the line `{line}`"));
            }
        }
    }
    problems
}

pub(super) fn unsafe_code(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in rust(files) {
        let is_test_with_reason = ["tests/", "observer/tests/", "observer/benches/"]
            .iter()
            .any(|room| file.path.starts_with(room))
            && file.text.contains("unsafe_code,");
        if UNSAFE_ROOMS.iter().any(|room| file.path.starts_with(room)) || is_test_with_reason {
            continue;
        }
        for (number, _) in code(&file.text).filter(|(_, line)| has_word(line, "unsafe")) {
            problems.push(format!(
                "{}:{number}: `unsafe` belongs in {}; move it there behind a safe function",
                file.path,
                UNSAFE_ROOMS.join(" or ")
            ));
        }
    }
    problems
}

pub(super) fn pure_core(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in rust(files).filter(|file| CORE.iter().any(|room| file.path.starts_with(room))) {
        let product = file.text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code(product) {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                problems.push(format!(
                    "{}:{number}: the core may not use `{word}`; take the value as an argument",
                    file.path
                ));
            }
        }
    }
    problems
}

pub(super) fn line_ends(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                problems.push(format!(
                    "{}:{}: remove the space at the end of the line",
                    file.path,
                    index + 1
                ));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            problems.push(format!("{}: end the last line with a newline", file.path));
        }
    }
    problems
}

pub(super) fn machine_paths(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            for start in MACHINE_PATHS {
                let found = line.match_indices(start).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c))
                });
                if found {
                    problems.push(format!("{}:{}: `{start}` exists on one machine only; take the path from the environment or make it relative", file.path, index + 1));
                }
            }
        }
    }
    problems
}

pub(super) fn sleeps(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in rust(files) {
        let in_tests = file.path.starts_with("tests/");
        let test_module =
            file.text.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
        let lines: Vec<_> = file.text.lines().collect();
        for (number, line) in code(&file.text) {
            let sleeps = line.contains("thread::sleep") || line.contains("time::sleep");
            let index = number - 1;
            let reasoned = index
                .checked_sub(1)
                .is_some_and(|above| lines[above].trim().starts_with(SLEEP_REASON));
            if sleeps && !line.contains("use ") && (in_tests || index > test_module) && !reasoned {
                problems.push(format!(
                    "{}:{number}: wait for a condition with a deadline; if it must sleep, say why in a line `{SLEEP_REASON}<reason>` above",
                    file.path
                ));
            }
        }
    }
    problems
}

pub(super) fn links(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (index, line) in file.text.lines().enumerate() {
            for rest in line.split("](").skip(1) {
                let target = rest.split([')', '#']).next().unwrap_or_default();
                if !target.ends_with(".md") || target.contains("://") {
                    continue;
                }
                let path = resolved(folder, target);
                if !has(files, &path) {
                    problems.push(format!(
                        "{}:{}: the link leads to {path}, which does not exist",
                        file.path,
                        index + 1
                    ));
                }
            }
        }
    }
    problems
}

/// A relative link, seen from the top.
fn resolved(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    /// The rule finds one problem, and it starts so; or none, if that is empty.
    fn check(rule: fn(&[File]) -> Vec<String>, files: &[File], expected: &str) {
        let problems = rule(files);
        match problems.as_slice() {
            [] => assert_eq!(expected, "", "nothing found"),
            [problem] => {
                assert!(!expected.is_empty() && problem.starts_with(expected), "{problem}")
            }
            more => panic!("{more:#?}"),
        }
    }

    #[test]
    fn length_counts_lines() {
        check(length, &[file("a.rs", &"x\n".repeat(500))], "");
        check(length, &[file("a.rs", &"x\n".repeat(501))], "a.rs: 501 lines");
        check(length, &[file("a.md", &"x\n".repeat(501))], "");
    }

    #[test]
    fn docs_come_first() {
        check(module_docs, &[file("a.rs", "//! What.\n#![no_std]\n")], "");
        check(module_docs, &[file("a.rs", "// What.\n")], "a.rs:1: start it");
    }

    #[test]
    fn a_new_signal_is_led_to_its_places() {
        let mut files = vec![
            file(REGISTRY, "pub mod dns;\npub const ALL: &[&Signal] = &[&dns::SIGNAL];\n"),
            file("observer/src/signal/dns.rs", ""),
            file("observer-ebpf/abi/lib.rs", "pub mod dns;\n"),
            file("observer-ebpf/abi/dns/mod.rs", ""),
            file("observer-ebpf/src/main.rs", "mod dns;\n"),
            file("observer-ebpf/src/dns.rs", ""),
            file("tests/kernel/main.rs", "mod dns;\n"),
        ];
        check(signals, &files, "tests/kernel/dns.rs: missing");
        files.push(file("tests/kernel/dns.rs", ""));
        check(signals, &files, "");
        files[4].text.clear();
        check(signals, &files, "observer-ebpf/src/main.rs: add the line `mod dns;`");
        check(signals, &[], "observer/src/signal/mod.rs: no");
        let without_programs: Vec<_> =
            files.into_iter().filter(|file| !file.path.starts_with("observer-ebpf/")).collect();
        check(signals, &without_programs, "");
    }

    #[test]
    fn unsafe_is_found_outside_its_rooms() {
        let text = "fn f() { unsafe { g() } }\n";
        check(unsafe_code, &[file("observer/src/top/mod.rs", text)], "observer/src/top/mod.rs:1: ");
        check(unsafe_code, &[file("observer/src/kernel/ring.rs", text)], "");
        check(
            unsafe_code,
            &[file("observer-ebpf/abi/lib.rs", "#![forbid(unsafe_code)] // unsafe\n")],
            "",
        );
        check(unsafe_code, &[file("tests/src/lib.rs", text)], "tests/src/lib.rs:1: ");
        let reasoned = format!("#![expect(unsafe_code, reason = \"fork\")]\n{text}");
        check(unsafe_code, &[file("tests/src/lib.rs", &reasoned)], "");
        check(unsafe_code, &[file("xtask/src/a.rs", "let word = \"unsafe\";\n")], "");
    }

    #[test]
    fn the_core_takes_time_as_an_argument() {
        let text = "let now = Instant::now();\n";
        check(
            pure_core,
            &[file("observer/src/signal/tcp.rs", text)],
            "observer/src/signal/tcp.rs:1: ",
        );
        check(pure_core, &[file("observer/src/agent.rs", text)], "");
        let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{ {text} }}\n");
        check(pure_core, &[file("observer/src/state.rs", &tested)], "");
    }

    #[test]
    fn line_ends_are_clean() {
        check(line_ends, &[file("a.md", "one\ntwo\n")], "");
        check(line_ends, &[file("a.md", "one \ntwo\n")], "a.md:1: remove");
        check(line_ends, &[file("a.md", "one\ntwo")], "a.md: end");
    }

    #[test]
    fn machine_paths_are_found() {
        let path = format!("see {}main\n", MACHINE_PATHS[0]);
        check(machine_paths, &[file("a.md", &path)], "a.md:1: ");
        check(machine_paths, &[file("a.md", "target/wo/rk\n/home/app/server.js\n")], "");
    }

    #[test]
    fn a_sleep_needs_a_reason() {
        let text = "fn f() {\n    thread::sleep(PAUSE);\n}\n";
        check(sleeps, &[file("tests/kernel/tcp.rs", text)], "tests/kernel/tcp.rs:2: ");
        check(sleeps, &[file("observer/src/agent.rs", text)], "");
        let tested = format!("#[cfg(test)]\n{text}");
        check(sleeps, &[file("observer/src/agent.rs", &tested)], "observer/src/agent.rs:3: ");
        let reasoned = text.replace("    thread", "    // sleep: between two looks\n    thread");
        check(sleeps, &[file("tests/kernel/tcp.rs", &reasoned)], "");
    }

    #[test]
    fn links_are_followed() {
        let files = |link: &str| {
            [file("docs/a.md", &format!("see [it]({link})\n")), file("README.md", "\n")]
        };
        check(links, &files("../README.md"), "");
        check(links, &files("https://example.org/x.md"), "");
        check(links, &files("b.md#part"), "docs/a.md:1: the link leads to docs/b.md");
    }
}
