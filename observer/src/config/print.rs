//! `observer config`: the effective configuration as TOML that can be read back (but for its secrets).

use super::{
    Config, Entry, Kind,
    value::{MASK, Value},
};

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
    match (entry.setting.kind, &entry.value) {
        (Kind::Secret, Value::Text(text)) if !text.is_empty() => {
            Value::Text(MASK.to_owned()).to_toml()
        }
        (Kind::Text, Value::Text(text)) => Value::Text(without_credentials(text)).to_toml(),
        (_, value) => value.to_toml(),
    }
}

/// Masks the user information of a URL (RFC 3986 section 3.2.1), which may hold a password.
pub(crate) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://{MASK}{}", &rest[at..]),
        None => text.to_owned(),
    }
}

/// A path may hold a newline, which would end the comment.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}
