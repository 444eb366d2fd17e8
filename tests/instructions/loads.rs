//! The loads: each makes one kind of event, in a loop that does as little else as it can.

use std::{
    io::{self, PipeReader, PipeWriter, Read as _, Write as _, pipe},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread::{self, JoinHandle},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    thread::gettid,
};

/// Bytes between two touches: each is a page fault.
const PAGE: usize = 4096;

/// More than the C library keeps of what was freed, so that each turn starts with fresh pages.
const FRESH_BYTES: usize = 64 << 20;

/// Something that can be repeated.
pub trait Load {
    /// Does it this many times.
    fn repeat(&mut self, count: u32) -> io::Result<()>;

    /// Threads that take part.
    fn threads(&self) -> Vec<u32> {
        vec![this_thread()]
    }
}

fn this_thread() -> u32 {
    gettid().as_raw_nonzero().get().unsigned_abs()
}

/// One end of a conversation: a byte in, a byte out.
struct End {
    input: PipeReader,
    output: PipeWriter,
    /// Where it waits for the byte; without one it waits in read(2).
    poll: Option<OwnedFd>,
}

impl End {
    fn new(input: PipeReader, output: PipeWriter, polls: bool) -> io::Result<Self> {
        let poll = polls.then(|| epoll::create(epoll::CreateFlags::CLOEXEC)).transpose()?;
        if let Some(poll) = &poll {
            epoll::add(poll, &input, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Self { input, output, poll })
    }

    fn receive(&mut self) -> io::Result<()> {
        if let Some(poll) = &self.poll {
            let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
            epoll::wait(poll, &mut events[..], None)?;
        }
        self.input.read_exact(&mut [0])
    }

    fn send(&mut self) -> io::Result<()> {
        self.output.write_all(&[0])
    }
}

/// Two threads on one CPU that hand a byte to and fro.
pub struct Talk {
    end: End,
    partner: u32,
    _thread: JoinHandle<()>,
}

impl Talk {
    /// Starts the partner. If it `polls`, both are event loops.
    pub fn new(polls: bool) -> io::Result<Self> {
        let ((there_in, there_out), (back_in, back_out)) = (pipe()?, pipe()?);
        let mut there = End::new(there_in, back_out, polls)?;
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            tell.send(this_thread()).ok();
            // Ends with the other end of its pipe.
            while there.receive().and_then(|()| there.send()).is_ok() {}
        });
        let partner = told.recv().map_err(io::Error::other)?;
        Ok(Self { end: End::new(back_in, there_out, polls)?, partner, _thread: thread })
    }
}

impl Load for Talk {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        (0..count).try_for_each(|_| self.end.send().and_then(|()| self.end.receive()))
    }

    fn threads(&self) -> Vec<u32> {
        vec![this_thread(), self.partner]
    }
}

/// Connections that are opened, accepted and closed.
pub struct Connect(pub TcpListener);

impl Load for Connect {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        let address = self.0.local_addr()?;
        for _ in 0..count {
            let client = TcpStream::connect(address)?;
            let (server, _) = self.0.accept()?;
            drop(client);
            drop(server);
        }
        Ok(())
    }
}

/// A database that answers without being asked: the shortest reply of PostgreSQL, in a packet of its own, and the
/// acknowledgement of it.
pub struct Answer {
    client: TcpStream,
    server: TcpStream,
}

impl Answer {
    /// Connects.
    pub fn new(listener: &TcpListener) -> io::Result<Self> {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        server.set_nodelay(true)?;
        Ok(Self { client, server })
    }
}

impl Load for Answer {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        for _ in 0..count {
            self.server.write_all(b"Z\0\0\0\x05T")?;
            self.client.read_exact(&mut [0; 6])?;
        }
        Ok(())
    }
}

/// Pages that are touched for the first time.
pub struct Touch;

impl Load for Touch {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        let mut memory = vec![0_u8; FRESH_BYTES];
        memory.iter_mut().step_by(PAGE).take(count as usize).for_each(|byte| *byte = 1);
        std::hint::black_box(&memory);
        Ok(())
    }
}

/// Processes that end at once.
pub struct Live(pub String);

impl Load for Live {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        for _ in 0..count {
            Command::new(&self.0).env_clear().status()?;
        }
        Ok(())
    }
}

/// System calls that are over at once: polls without waiting, or what is no poll.
pub struct Call {
    poll: Option<OwnedFd>,
}

impl Call {
    /// Polls, or not.
    pub fn new(polls: bool) -> io::Result<Self> {
        let poll = polls.then(|| epoll::create(epoll::CreateFlags::CLOEXEC)).transpose()?;
        Ok(Self { poll })
    }
}

impl Load for Call {
    fn repeat(&mut self, count: u32) -> io::Result<()> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        for _ in 0..count {
            match &self.poll {
                Some(poll) => {
                    let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
                    epoll::wait(poll, &mut events[..], Some(&at_once))?;
                }
                None => drop(rustix::process::getppid()),
            }
        }
        Ok(())
    }
}

/// Processes that sleep, for iterators to walk over. Reading is all that happens then.
pub struct Sleepers(Vec<Child>);

impl Sleepers {
    /// Starts them.
    pub fn new(count: u32) -> io::Result<Self> {
        let start = |_| Command::new("sleep").arg("infinity").stdin(Stdio::null()).spawn();
        (0..count).map(start).collect::<io::Result<_>>().map(Self)
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Who has ended already is waited for all the same.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Load for Sleepers {
    fn repeat(&mut self, _count: u32) -> io::Result<()> {
        Ok(())
    }
}

/// Connections that stay open, for iterators to walk over.
pub struct Open {
    _pairs: Vec<(TcpStream, TcpStream)>,
}

impl Open {
    /// Opens them.
    pub fn new(listener: &TcpListener, count: u32) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let open = |_| Ok((TcpStream::connect(address)?, listener.accept()?.0));
        Ok(Self { _pairs: (0..count).map(open).collect::<io::Result<_>>()? })
    }
}

impl Load for Open {
    fn repeat(&mut self, _count: u32) -> io::Result<()> {
        Ok(())
    }
}
