//! Runs each hot program of the agent alone under a load that calls it, in a guest that counts instructions, and prints
//! how long each load took: without a program, with an empty one, with ours. `cargo xtask bench instructions` starts it.
//!
//! Argument: a program that ends at once. Output: a line of JSON a case.

mod loads;

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use loads::{Answer, Call, Connect, Live, Load, Open, Sleepers, Talk, Touch};
use observer::kernel::{
    alone::{self, Alone},
    programs::Hook,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

/// Port of connections that the agent follows.
const WATCHED_PORT: u16 = 5432;

/// Measurements of each kind.
const ROUNDS: usize = 2;

/// Longer than what the kernel puts off until later.
const SETTLE: Duration = Duration::from_millis(500);

/// Objects for iterators to walk over.
const OBJECTS: u32 = 200;

type Error = Box<dyn std::error::Error>;

/// A program, and what makes it run.
struct Case {
    name: &'static str,
    program: &'static str,
    hook: Hook,
    /// Repetitions of the load; of an iterator, readings.
    count: u32,
    /// Whether the threads of the load are watched.
    watched: bool,
    load: fn(&Setup) -> Result<Box<dyn Load>, Error>,
}

/// What the loads share.
struct Setup {
    watched: TcpListener,
    other: TcpListener,
    nothing: String,
}

/// What is printed.
#[derive(Default, Serialize)]
struct Row {
    case: &'static str,
    program: &'static str,
    hook: String,
    /// Why this kernel does not run the program; empty if it does.
    refused: String,
    /// The load, with a program on a hook that it does not reach.
    bare_ns: Vec<u64>,
    /// An empty program on the hook.
    empty: Vec<Sample>,
    /// Ours.
    ours: Vec<Sample>,
}

/// One round with one program.
#[derive(Serialize)]
struct Sample {
    /// The load.
    load_ns: u64,
    /// Runs of the program in another load, of the same length, in which the kernel counted them.
    runs: u64,
    /// Time in the program, in that other load.
    run_ns: u64,
}

const fn case(
    name: &'static str,
    program: &'static str,
    hook: Hook,
    count: u32,
    load: fn(&Setup) -> Result<Box<dyn Load>, Error>,
) -> Case {
    Case { name, program, hook, count, watched: false, load }
}

/// A hook that no load reaches.
const ELSEWHERE: Hook = Hook::TpBtf("mark_victim");

const SWITCH: Hook = Hook::TpBtf("sched_switch");
const STATE: Hook = Hook::TpBtf("inet_sock_set_state");
const CALL: Hook = Hook::TpBtf("sys_enter");
const POLL: Hook = Hook::Entry("do_epoll_wait");
const PACKETS: Hook = Hook::Packets;

const CASES: &[Case] = &[
    // First, as long as no connection that was closed lingers in the table of sockets.
    case("row, task", "task_rows", Hook::Iter("task"), 10, |_| {
        Ok(Box::new(Sleepers::new(OBJECTS)?))
    }),
    case("row, socket", "tcp_rows", Hook::Iter("tcp"), 10, |setup| {
        Ok(Box::new(Open::new(&setup.watched, OBJECTS)?))
    }),
    case("row, file", "socket_holders", Hook::Iter("task_file"), 10, |setup| {
        Ok(Box::new(Open::new(&setup.watched, OBJECTS)?))
    }),
    case("switch, not watched", "sched_switch", SWITCH, 3_000, |_| Ok(Box::new(Talk::new(true)?))),
    Case {
        watched: true,
        ..case("switch, turn of a watched event loop", "sched_switch", SWITCH, 3_000, |_| {
            Ok(Box::new(Talk::new(true)?))
        })
    },
    Case {
        watched: true,
        ..case("switch, watched, no event loop", "sched_switch", SWITCH, 3_000, |_| {
            Ok(Box::new(Talk::new(false)?))
        })
    },
    case("TCP state, port not watched", "inet_sock_set_state", STATE, 300, |setup| {
        Ok(Box::new(Connect(setup.other.try_clone()?)))
    }),
    case("TCP state, port watched", "inet_sock_set_state", STATE, 300, |setup| {
        Ok(Box::new(Connect(setup.watched.try_clone()?)))
    }),
    case("page fault, sampled", "page_fault", Hook::PageFaults, 1_000, |_| Ok(Box::new(Touch))),
    case("fork", "process_fork", Hook::TpBtf("sched_process_fork"), 50, live),
    case("exec", "process_exec", Hook::TpBtf("sched_process_exec"), 50, live),
    case("exit", "process_exit", Hook::TpBtf("sched_process_exit"), 50, live),
    case("system call, no poll", "epoll_enter", CALL, 10_000, |_| Ok(Box::new(Call::new(false)?))),
    Case {
        watched: true,
        ..case("system call, poll of a watched loop", "epoll_enter", CALL, 10_000, |_| {
            Ok(Box::new(Call::new(true)?))
        })
    },
    Case {
        watched: true,
        ..case("function, poll of a watched loop", "epoll_wait_enter", POLL, 10_000, |_| {
            Ok(Box::new(Call::new(true)?))
        })
    },
    case("packet, port not looked at", "reply_ends", PACKETS, 3_000, |setup| {
        Ok(Box::new(Answer::new(&setup.other)?))
    }),
    case("packet, end of a reply", "reply_ends", PACKETS, 3_000, |setup| {
        Ok(Box::new(Answer::new(&setup.watched)?))
    }),
];

fn live(setup: &Setup) -> Result<Box<dyn Load>, Error> {
    Ok(Box::new(Live(setup.nothing.clone())))
}

fn main() -> Result<(), Error> {
    let nothing =
        std::env::args().nth(1).ok_or("the argument is missing: a program that ends at once")?;
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus)?;
    let setup = Setup {
        watched: TcpListener::bind(("127.0.0.1", WATCHED_PORT))?,
        other: TcpListener::bind(("127.0.0.1", 0))?,
        nothing,
    };
    let mut alone = Alone::load()?;
    alone.tables.set_ports(&[WATCHED_PORT])?;
    alone.tables.set_reply_ports(&[], &[WATCHED_PORT])?;
    for case in CASES {
        let row =
            measure(case, &setup, &mut alone).map_err(|error| format!("{}: {error}", case.name))?;
        say(&serde_json::to_string(&row)?);
    }
    Ok(())
}

fn measure(case: &Case, setup: &Setup, alone: &mut Alone) -> Result<Row, Error> {
    let row = Row {
        case: case.name,
        program: case.program,
        hook: case.hook.describe(),
        ..Row::default()
    };
    match alone.attach(case.program, case.hook) {
        Ok(()) => alone.detach(case.program)?,
        Err(error) => return Ok(Row { refused: error.to_string(), ..row }),
    }
    let mut load = (case.load)(setup)?;
    let (mut bare_ns, mut empty, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    // The first round fills caches and tables.
    for round in 0..=ROUNDS {
        let bare = bare(case, alone, &mut *load)?;
        let nothing = sample(case, alone::empty(case.hook), alone, &mut *load)?;
        let something = sample(case, case.program, alone, &mut *load)?;
        if round > 0 {
            bare_ns.push(bare);
            empty.push(nothing);
            ours.push(something);
        }
    }
    Ok(Row { bare_ns, empty, ours, ..row })
}

/// The load, with a program elsewhere: attaching one changes what the kernel's allocators have at hand.
fn bare(case: &Case, alone: &mut Alone, load: &mut dyn Load) -> Result<u64, Error> {
    if matches!(case.hook, Hook::Iter(_)) {
        return Ok(0);
    }
    let elsewhere = alone::empty(ELSEWHERE);
    alone.attach(elsewhere, ELSEWHERE)?;
    let ns = timed(|| Ok(load.repeat(case.count)?))?;
    alone.detach(elsewhere)?;
    Ok(ns)
}

fn sample(
    case: &Case,
    program: &str,
    alone: &mut Alone,
    load: &mut dyn Load,
) -> Result<Sample, Error> {
    alone.attach(program, case.hook)?;
    let threads = if case.watched { load.threads() } else { Vec::new() };
    if !threads.iter().all(|tid| alone.tables.watch(*tid)) {
        return Err("two threads of the load share a slot".into());
    }
    let load_ns = timed(|| repeat(case, program, alone, load))?;
    let counting = alone::count_runs()?;
    repeat(case, program, alone, load)?;
    drop(counting);
    let (runs, time) = alone.runs(program)?;
    threads.iter().for_each(|tid| alone.tables.unwatch(*tid));
    alone.detach(program)?;
    Ok(Sample { load_ns, runs, run_ns: u64::try_from(time.as_nanos())? })
}

fn timed(body: impl FnOnce() -> Result<(), Error>) -> Result<u64, Error> {
    // sleep: the kernel frees what was detached some time later; in a guest that counts instructions, waiting is none
    thread::sleep(SETTLE);
    let start = Instant::now();
    body()?;
    Ok(u64::try_from(start.elapsed().as_nanos())?)
}

fn repeat(case: &Case, program: &str, alone: &mut Alone, load: &mut dyn Load) -> Result<(), Error> {
    match case.hook {
        Hook::Iter(_) => Ok((0..case.count).try_for_each(|_| alone.read(program))?),
        _ => Ok(load.repeat(case.count)?),
    }
}

#[expect(clippy::print_stdout, reason = "the task reads it there")]
fn say(line: &str) {
    println!("{line}");
}
