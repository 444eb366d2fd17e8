//! The tracing file system: where it is, and what the records of classic tracepoints look like on this kernel
//! (Documentation/trace/events.rst).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where it is mounted, by custom; the loader looks at the same places.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A field of a tracepoint's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// From the begin of the record, in bytes.
    pub offset: u32,
    /// In bytes.
    pub size: u32,
}

/// The mounted file system, if it can be read.
pub fn find() -> Option<PathBuf> {
    let readable = |path: &PathBuf| fs::read_dir(path.join("events")).is_ok();
    PLACES.into_iter().map(PathBuf::from).find(readable)
}

/// Fields of the tracepoint `category/name`, without those that all records share.
///
/// # Errors
/// If there is no such tracepoint or its format cannot be read.
pub fn fields(tracefs: &Path, event: &str) -> io::Result<Vec<Field>> {
    let text = fs::read_to_string(tracefs.join("events").join(event).join("format"))?;
    Ok(parse(&text))
}

fn parse(format: &str) -> Vec<Field> {
    format.lines().filter_map(field).filter(|field| !field.name.starts_with("common_")).collect()
}

/// `field:unsigned char saddr[4]; offset:32; size:4; signed:0;`, with tabs.
fn field(line: &str) -> Option<Field> {
    let mut parts = line.trim().strip_prefix("field:")?.split(';');
    let declaration = parts.next()?;
    let mut number = |key: &str| parts.next()?.trim().strip_prefix(key)?.parse().ok();
    let (offset, size) = (number("offset:")?, number("size:")?);
    let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
    Some(Field { name: name.to_owned(), offset, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        let format = "name: inet_sock_set_state\nID: 1\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
            \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
            \tfield:__data_loc char[] comm;\toffset:12;\tsize:4;\tsigned:0;\n\
            \nprint fmt: \"family=%s\", REC->family\n";
        let found: Vec<_> = parse(format)
            .into_iter()
            .map(|field| format!("{}@{}:{}", field.name, field.offset, field.size))
            .collect();
        assert_eq!(found, ["skaddr@8:8", "saddr@32:4", "comm@12:4"]);
        assert_eq!(parse("no format at all\n\tfield:int x"), []);
    }
}
