//! Lays the sources over each other and checks every value.

use std::{collections::BTreeMap, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, ConfigError, Entry, Fault, File, Origin, Problem, Setting, Sources, nearest,
    value::Value,
};

impl Config {
    /// Makes the configuration of these settings from these sources.
    ///
    /// # Errors
    /// Everything that is wrong with any source, at once.
    pub fn load(settings: &[&'static [Setting]], sources: &Sources) -> Result<Self, ConfigError> {
        let mut loader = Loader::new(settings);
        if let Some(file) = &sources.file {
            loader.file(file);
        }
        loader.standard_variables(&sources.env);
        loader.own_variables(&sources.env);
        for flag in &sources.flags {
            loader.flag(flag);
        }
        if loader.problems.is_empty() {
            Ok(loader.config)
        } else {
            Err(ConfigError { problems: loader.problems })
        }
    }
}

struct Loader {
    config: Config,
    problems: Vec<Problem>,
}

impl Loader {
    fn new(settings: &[&'static [Setting]]) -> Self {
        let config = Config { entries: Vec::new(), index: BTreeMap::new(), warnings: Vec::new() };
        let mut loader = Self { config, problems: Vec::new() };
        for setting in settings.iter().copied().flatten() {
            match setting.kind.read_text(setting.default) {
                Ok(value) => {
                    loader.config.index.insert(setting.key, loader.config.entries.len());
                    loader.config.entries.push(Entry { setting, value, origin: Origin::Default });
                }
                Err(fault) => loader.problem(format!("default of {}", setting.key), fault),
            }
        }
        loader
    }

    fn problem(&mut self, place: String, fault: Fault) {
        self.problems.push(Problem { place, fault });
    }

    fn set(&mut self, position: usize, value: Value, origin: Origin) {
        if let Some(entry) = self.config.entries.get_mut(position) {
            entry.value = value;
            entry.origin = origin;
        }
    }

    fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.config.entries.iter().map(|entry| entry.setting.key)
    }

    fn find(&self, key: &str) -> Option<(usize, &'static Setting)> {
        let position = *self.config.index.get(key)?;
        self.config.entries.get(position).map(|entry| (position, entry.setting))
    }

    fn file(&mut self, file: &File) {
        match DeTable::parse(&file.text) {
            Ok(table) => self.table(file, "", table.get_ref()),
            Err(error) => {
                let place =
                    place(&file.path, &file.text, error.span().map_or(0, |span| span.start));
                self.problem(
                    place,
                    Fault::new(error.message().trim().replace('\n', ", "), "mend the TOML there"),
                );
            }
        }
    }

    fn table(&mut self, file: &File, section: &str, table: &DeTable<'_>) {
        // The map is sorted by key; a person reads errors from top to bottom.
        let mut items: Vec<_> = table.iter().collect();
        items.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in items {
            let key = if section.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{section}.{}", name.get_ref())
            };
            self.toml_value(file, &key, name.span().start, value);
        }
    }

    fn toml_value(
        &mut self,
        file: &File,
        key: &str,
        name_offset: usize,
        value: &Spanned<DeValue<'_>>,
    ) {
        let at = |offset| format!("{}: {key}", place(&file.path, &file.text, offset));
        if let Some((position, setting)) = self.find(key) {
            match setting.kind.read_toml(value.get_ref()) {
                Ok(value) => {
                    let line = line_and_column(&file.text, name_offset).0;
                    self.set(position, value, Origin::File { path: file.path.clone(), line });
                }
                Err(fault) => self.problem(at(value.span().start), fault),
            }
            return;
        }
        let prefix = format!("{key}.");
        let is_section = self.keys().any(|known| known.starts_with(&prefix));
        match value.get_ref() {
            DeValue::Table(table) if is_section => self.table(file, key, table),
            DeValue::Table(_) => {
                let sections: Vec<_> = self
                    .keys()
                    .filter_map(|known| known.rsplit_once('.').map(|(section, _)| section))
                    .collect();
                let fault = unknown("no such section", key, sections.into_iter());
                self.problem(at(name_offset), fault);
            }
            _ if is_section => self.problem(
                at(name_offset),
                Fault::new(
                    "is a section, not a value",
                    format!("write [{key}] and its settings below"),
                ),
            ),
            _ => {
                let fault = unknown("no such setting", key, self.keys());
                self.problem(at(name_offset), fault);
            }
        }
    }

    /// Of the variables of a setting the first that is set and fits wins.
    fn standard_variables(&mut self, env: &BTreeMap<String, String>) {
        for position in 0..self.config.entries.len() {
            let setting = self.config.entries[position].setting;
            for name in setting.otel {
                let Some(text) = env.get(*name).filter(|text| !text.trim().is_empty()) else {
                    continue;
                };
                match setting.kind.read_otel(text) {
                    Ok(value) => {
                        self.set(position, value, Origin::Variable((*name).to_owned()));
                        break;
                    }
                    Err(fault) => {
                        let fault = Fault::new(format!("is ignored: {}", fault.what), fault.mend);
                        let warning = Problem { place: format!("environment {name}"), fault };
                        if !self.config.warnings.contains(&warning) {
                            self.config.warnings.push(warning);
                        }
                    }
                }
            }
        }
    }

    fn own_variables(&mut self, env: &BTreeMap<String, String>) {
        let names: Vec<String> =
            self.config.entries.iter().map(|entry| entry.setting.variable()).collect();
        for (name, text) in env.iter().filter(|(name, _)| name.starts_with("OBSERVER_")) {
            let place = format!("environment {name}");
            let Some(position) = names.iter().position(|known| known == name) else {
                self.problem(
                    place,
                    unknown("no such variable", name, names.iter().map(String::as_str)),
                );
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            match self.config.entries[position].setting.kind.read_text(text) {
                Ok(value) => self.set(position, value, Origin::Variable(name.clone())),
                Err(fault) => self.problem(place, fault),
            }
        }
    }

    fn flag(&mut self, flag: &str) {
        let Some((key, text)) = flag.split_once('=') else {
            // It may be a secret without its key, so it is not repeated.
            self.problem(
                "--set".to_owned(),
                Fault::new("has no \"=\"", "write --set key=value, such as --set interval=2s"),
            );
            return;
        };
        let key = key.trim();
        let place = format!("--set {key}");
        match self.find(key) {
            Some((position, setting)) => match setting.kind.read_text(text) {
                Ok(value) => self.set(position, value, Origin::Flag),
                Err(fault) => self.problem(place, fault),
            },
            None => {
                let fault = unknown("no such setting", key, self.keys());
                self.problem(place, fault);
            }
        }
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    match nearest(name, known) {
        Some(known) => Fault::new(what, format!("did you mean {known}?")),
        None => Fault::new(what, "`observer config` lists all settings"),
    }
}

fn place(path: &Path, text: &str, offset: usize) -> String {
    let (line, column) = line_and_column(text, offset);
    format!("{}:{line}:{column}", path.display())
}

/// Line and column of a byte offset, both from 1, the column in characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start =
        before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}
