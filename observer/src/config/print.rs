//! `observer config`: the effective configuration as TOML that can be read back (but for its secrets).

use super::{Config, Entry, Kind, value::MASK};

impl Config {
    /// Every setting with its help, what it takes and where its value came from, as comments. Secrets are masked.
    pub fn to_toml(&self) -> String {
        let mut sections: Vec<(&str, Vec<(&str, &Entry)>)> = vec![("", Vec::new())];
        for entry in &self.entries {
            let (section, name) =
                entry.setting.key.rsplit_once('.').unwrap_or(("", entry.setting.key));
            match sections.iter_mut().find(|(known, _)| *known == section) {
                Some((_, entries)) => entries.push((name, entry)),
                None => sections.push((section, vec![(name, entry)])),
            }
        }
        let mut text = String::new();
        for (section, entries) in sections {
            if !section.is_empty() {
                text += &format!("[{section}]\n");
            }
            for (name, entry) in entries {
                text += &format!("# {}\n", entry.setting.help);
                text += &format!(
                    "# {}; from: {}\n",
                    entry.setting.kind.wanted(),
                    one_line(&entry.origin.to_string())
                );
                text += &format!("{name} = {}\n\n", shown(entry));
            }
        }
        text
    }
}

fn shown(entry: &Entry) -> String {
    let empty = entry.value.to_toml();
    match entry.setting.kind {
        Kind::Secret if empty != "\"\"" => format!("\"{MASK}\""),
        _ => empty,
    }
}

/// A path may hold a newline, which would end the comment.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}
