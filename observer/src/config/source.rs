//! The texts that a configuration is made from, read once: file, environment, flags.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use super::{ConfigError, Fault, Problem};

/// Read when `--config` is not given and it exists.
pub const DEFAULT_FILE: &str = "/etc/observer/observer.toml";

/// A configuration file larger than this is a mistake (a log, a device), not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What [`super::Config::load`] reads. Tests fill it by hand.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file, if there is one.
    pub file: Option<File>,
    /// Environment; only `OBSERVER_*` and the `OTEL_*` names of settings are looked at.
    pub env: BTreeMap<String, String>,
    /// `key=value` of each `--set`, in order; the last of a key wins.
    pub flags: Vec<String>,
}

/// Text of a configuration file.
#[derive(Debug, Clone)]
pub struct File {
    /// For messages.
    pub path: PathBuf,
    /// TOML.
    pub text: String,
}

impl Sources {
    /// Reads the sources of this process: `path` (`--config`), else [`DEFAULT_FILE`] if it exists; the environment; `flags`.
    ///
    /// # Errors
    /// A file that cannot be read, and an `OBSERVER_*` variable that is not UTF-8.
    pub fn of_process(path: Option<&Path>, flags: &[String]) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => Some(read(path)?),
            None => match read(Path::new(DEFAULT_FILE)) {
                Err((ErrorKind::NotFound, _)) => None,
                result => Some(result?),
            },
        };
        Ok(Self { file, env: environment(std::env::vars_os())?, flags: flags.to_vec() })
    }
}

impl From<(ErrorKind, Problem)> for ConfigError {
    fn from((_, problem): (ErrorKind, Problem)) -> Self {
        problem.into()
    }
}

fn read(path: &Path) -> Result<File, (ErrorKind, Problem)> {
    let problem = |kind: ErrorKind, what: String, mend: &str| {
        (kind, Problem { place: path.display().to_string(), fault: Fault::new(what, mend) })
    };
    let unreadable = |error: std::io::Error| {
        problem(
            error.kind(),
            format!("cannot be read: {error}"),
            "check the path given to --config and its permissions",
        )
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(problem(
            ErrorKind::FileTooLarge,
            "is larger than 1 MiB".to_owned(),
            "give the path of a TOML file",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        problem(
            ErrorKind::InvalidData,
            format!("is not UTF-8 at byte {offset}"),
            "save the file as UTF-8",
        )
    })?;
    Ok(File { path: path.to_owned(), text })
}

fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut env = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) =
            name.to_str().filter(|name| name.starts_with("OBSERVER_") || name.starts_with("OTEL_"))
        else {
            continue;
        };
        match value.into_string() {
            Ok(value) => {
                env.insert(name.to_owned(), value);
            }
            // A standard variable that cannot be read is as good as unset.
            Err(_) if name.starts_with("OTEL_") => {}
            Err(_) => {
                return Err(Problem {
                    place: name.to_owned(),
                    fault: Fault::new("is not UTF-8", "set it to UTF-8 text"),
                }
                .into());
            }
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: Option<&[u8]>, expect: &str| {
            let path = dir.path().join(name);
            if let Some(bytes) = bytes {
                std::fs::write(&path, bytes).unwrap();
            }
            match Sources::of_process(Some(&path), &[]) {
                Ok(sources) => assert_eq!(sources.file.unwrap().text, expect),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(expect) && text.contains(name), "{text}");
                }
            }
        };
        check("good.toml", Some(b"group = 'x'"), "group = 'x'");
        check("missing.toml", None, "cannot be read");
        check("latin1.toml", Some(b"a = '\xff'"), "not UTF-8 at byte 5");
        check("huge.toml", Some(&vec![b'#'; 1 << 20 | 1]), "larger than 1 MiB");
    }

    #[test]
    fn variables_that_are_not_utf8() {
        let of =
            |name: &str| environment([(name.into(), OsString::from_vec(vec![0xff]))].into_iter());
        assert!(
            of("OBSERVER_GROUP").unwrap_err().to_string().contains("OBSERVER_GROUP: is not UTF-8")
        );
        assert!(of("OTEL_SERVICE_NAME").unwrap().is_empty());
        assert!(of("HOME").unwrap().is_empty());
    }
}
