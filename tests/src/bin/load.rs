//! Load in a process of its own, so that a test can own it, stop it and kill it.
//!
//! `conns SYSTEM PORT COUNT`: opens, uses and closes connections, a few at a time; prints each [`Record`].
//! `hold SYSTEM PORT COUNT`: opens and uses connections and prints their records; closes them at a line on its input and
//! prints their records again; ends with its input.
//! `hog CPU NICE`: listens and never sleeps, on one CPU.

use std::{io::BufRead as _, net::TcpListener};

use observer_tests::{postgres, redis, wire::Record};
use rustix::{
    process::nice,
    thread::{CpuSet, sched_setaffinity},
};

/// Connections that are open at the same time.
const BATCH: usize = 20;

enum Client {
    Postgres(postgres::Client),
    Redis(redis::Client),
}

impl Client {
    fn connect(system: &str, port: u16) -> std::io::Result<Self> {
        match system {
            "postgres" => postgres::Client::connect(port).map(Self::Postgres),
            "redis" => redis::Client::connect(port).map(Self::Redis),
            _ => Err(std::io::Error::other(format!("no client for {system}"))),
        }
    }

    /// Moves an amount of data that differs from connection to connection.
    fn work(&mut self, index: usize) -> std::io::Result<()> {
        let size = index * 37 % 20_000;
        match self {
            Self::Postgres(client) => client.query(&format!("SELECT repeat('x', {size})")),
            Self::Redis(client) => {
                client.command(&["SET", "key", &"x".repeat(size)])?;
                client.command(&["GET", "key"]).map(drop)
            }
        }
    }

    fn record(&self) -> Record {
        match self {
            Self::Postgres(client) => client.wire.record(),
            Self::Redis(client) => client.wire.record(),
        }
    }

    /// Every second PostgreSQL connection lets the server close first.
    fn close(self, index: usize) -> Record {
        match self {
            Self::Postgres(client) if index.is_multiple_of(2) => client.close_after_server(),
            Self::Postgres(client) => client.close(),
            Self::Redis(client) => client.close(),
        }
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match *args {
        ["conns", system, port, count] => conns(system, number(port)?, number(count)?),
        ["hold", system, port, count] => hold(system, number(port)?, number(count)?),
        ["hog", cpu, level] => hog(number(cpu)?, number(level)?),
        _ => Err(std::io::Error::other(format!("unknown load {args:?}"))),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> std::io::Result<T> {
    text.parse().map_err(|_not_a_number| std::io::Error::other(format!("no number: {text}")))
}

fn conns(system: &str, port: u16, count: usize) -> std::io::Result<()> {
    for first in (0..count).step_by(BATCH) {
        let batch: Vec<usize> = (first..count.min(first + BATCH)).collect();
        let mut clients = Vec::new();
        for index in &batch {
            clients.push(Client::connect(system, port)?);
            clients[index - first].work(*index)?;
        }
        clients.into_iter().zip(batch).for_each(|(client, index)| print(&client.close(index)));
    }
    Ok(())
}

fn hold(system: &str, port: u16, count: usize) -> std::io::Result<()> {
    let mut clients = Vec::new();
    for index in 0..count {
        let mut client = Client::connect(system, port)?;
        client.work(index)?;
        clients.push(client);
    }
    clients.iter().for_each(|client| print(&client.record()));
    let mut input = std::io::stdin().lock().lines();
    input.next().transpose()?;
    clients.into_iter().enumerate().for_each(|(index, client)| print(&client.close(index)));
    input.next().transpose().map(drop)
}

fn hog(cpu: usize, level: i32) -> std::io::Result<()> {
    let _listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)?;
    nice(level)?;
    say("spinning");
    // Not by the CPU's instruction for it: an emulator leaves its own loop at each, and the guest's clock then all but stands.
    loop {
        std::hint::black_box(());
    }
}

fn print(record: &Record) {
    say(&serde_json::to_string(record).expect("a record is plain data"));
}

#[expect(clippy::print_stdout, reason = "the test reads it there")]
fn say(line: &str) {
    println!("{line}");
}
