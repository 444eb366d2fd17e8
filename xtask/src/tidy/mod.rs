//! House rules that no compiler checks, as tests. Each failure says what to change, and where.

mod rules;

use std::{fs, path::Path};

use self::rules::File;
use crate::workspace;

/// Folders that are not ours to judge.
const SKIPPED_FOLDERS: &[&str] = &["target", ".git"];

/// Endings of the files that people write.
const WRITTEN: &[&str] = &["rs", "md", "toml", "sh", "c", "js", "java", "txt", "sql"];

fn files() -> Vec<File> {
    let top = workspace();
    let mut found = Vec::new();
    walk(&top, &top, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(top: &Path, folder: &Path, found: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace can be read") {
        let path = entry.expect("an entry of the workspace can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                walk(top, &path, found);
            }
        } else if path.extension().is_some_and(|end| WRITTEN.iter().any(|wanted| end == *wanted)) {
            let text = fs::read(&path).expect("a file of the workspace can be read");
            let path =
                path.strip_prefix(top).expect("below the top").to_string_lossy().into_owned();
            found.push(File { path, text: String::from_utf8_lossy(&text).into_owned() });
        }
    }
}

fn check(rule: impl Fn(&[File]) -> Vec<String>) {
    let files = files();
    assert!(files.iter().any(|file| file.path == "xtask/src/main.rs"), "the workspace is found");
    let problems = rule(&files);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn files_are_short() {
    check(rules::length);
}

#[test]
fn modules_have_docs() {
    check(rules::module_docs);
}

#[test]
fn a_signal_has_its_file_in_every_folder() {
    check(rules::signals);
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    check(rules::unsafe_code);
}

#[test]
fn the_core_reads_no_clock_and_no_file() {
    check(rules::pure_core);
}

#[test]
fn lines_end_cleanly() {
    check(rules::line_ends);
}

#[test]
fn no_file_names_a_developer_machine() {
    check(rules::machine_paths);
}

#[test]
fn tests_wait_for_conditions() {
    check(rules::sleeps);
}

#[test]
fn links_in_docs_lead_somewhere() {
    check(rules::links);
}
