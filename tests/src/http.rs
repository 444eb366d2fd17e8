//! One HTTP request to a loopback port.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Body of the answer to `GET path`.
pub fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Status of the answer to `GET path`, if none of its parts takes longer than `limit`. Reads to the end, so that the server
/// closes first, and the port of the client is free again at once.
pub fn status(port: u16, path: &str, limit: Duration) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let (mut line, mut reader) = (String::new(), BufReader::new(stream));
    reader.read_line(&mut line)?;
    reader.read_to_end(&mut Vec::new())?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no status: {line}")))
}
