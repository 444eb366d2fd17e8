//! The agent's side: starts the child, hands it the request, waits for the answer until a deadline.

use std::{
    io::ErrorKind,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::{MAX_MESSAGE, Request, Response};

/// Requests that are under way or wait at once; more are refused. One child runs at a time.
pub const MAX_WAITING: usize = 4;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// Too many requests wait.
    #[error("{MAX_WAITING} requests for symbols wait already")]
    Busy,
    /// The child took too long and was ended.
    #[error("no symbols within {0:?}")]
    Deadline(Duration),
    /// The child could not be started or talked to.
    #[error("cannot run `{program} symbolize`: {source}")]
    Child {
        /// What was to be run.
        program: String,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// The child's answer makes no sense, as it was ended half-way or failed.
    #[error("`observer symbolize` ended with {status} and no answer: {source}")]
    Answer {
        /// How the child ended.
        status: ExitStatus,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
}

/// Asks children for names, one at a time.
#[derive(Debug)]
pub struct Client {
    program: PathBuf,
    arguments: Vec<String>,
    deadline: Duration,
    waiting: Semaphore,
    running: Semaphore,
}

impl Client {
    /// A client that runs this very program with the argument `symbolize`. `deadline` is for one child, from its start.
    pub fn new(deadline: Duration) -> Self {
        // Not current_exe(): this one is still there after the binary was replaced by an upgrade.
        Client::with_program("/proc/self/exe".into(), vec!["symbolize".to_owned()], deadline)
    }

    fn with_program(program: PathBuf, arguments: Vec<String>, deadline: Duration) -> Self {
        let (waiting, running) = (Semaphore::new(MAX_WAITING), Semaphore::new(1));
        Client { program, arguments, deadline, waiting, running }
    }

    /// Names what is asked for. Needs a runtime with IO and time. If the future is dropped, the child is ended.
    pub async fn ask(&self, request: &Request) -> Result<Response, Error> {
        let _place = self.waiting.try_acquire().map_err(|_full| Error::Busy)?;
        let _turn = self.running.acquire().await.map_err(|_closed| Error::Busy)?;
        let failed = |source| Error::Child { program: self.program.display().to_string(), source };
        let mut child = self.spawn().map_err(failed)?;
        match timeout(self.deadline, converse(&mut child, request)).await {
            Ok(answered) => {
                let (answer, status) = answered.map_err(failed)?;
                serde_json::from_slice(&answer).map_err(|source| Error::Answer { status, source })
            }
            Err(_elapsed) => {
                child.kill().await.map_err(failed)?;
                Err(Error::Deadline(self.deadline))
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Writes the request, reads the answer to its end, and waits for the child's.
async fn converse(child: &mut Child, request: &Request) -> std::io::Result<(Vec<u8>, ExitStatus)> {
    let mut answer = Vec::new();
    if let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) {
        let written = input.write_all(&serde_json::to_vec(request)?).await;
        drop(input);
        output.take(MAX_MESSAGE).read_to_end(&mut answer).await?;
        // How a child ended that did not read all says more than that its pipe is broken, and it may have answered.
        match written {
            Err(error) if answer.is_empty() && error.kind() != ErrorKind::BrokenPipe => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok((answer, child.wait().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Client {
        Client::with_program("/bin/sh".into(), vec!["-c".to_owned(), script.to_owned()], deadline)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers() {
        let client = shell(
            r#"read -r request; case "$request" in *'"pid":7'*) echo '{"stacks":[["main"]]}';; esac"#,
            LONG,
        );
        let response = run(client.ask(&Request { pid: 7, ..Request::default() })).unwrap();
        assert_eq!(
            response,
            Response { stacks: vec![vec!["main".to_owned()]], ..Response::default() }
        );
    }

    #[test]
    fn failures_say_what() {
        #[track_caller]
        fn check(client: &Client, expected: &str) {
            let error = run(client.ask(&Request::default())).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(&shell("exec sleep 1000", Duration::from_millis(50)), "within 50ms");
        check(&shell("exec >&-; exec sleep 1000", Duration::from_millis(50)), "within 50ms");
        check(&shell("exit 3", LONG), "exit status: 3");
        check(&shell("kill -9 $$", LONG), "signal: 9");
        check(&shell("echo nonsense", LONG), "exit status: 0");
        check(
            &Client::with_program("/nowhere".into(), Vec::new(), LONG),
            "cannot run `/nowhere symbolize`: No such file",
        );
    }

    #[test]
    fn one_at_a_time_and_few_waiting() {
        // Each child fails if another one runs.
        let directory = tempfile::tempdir().unwrap();
        let lock = directory.path().join("lock");
        let script =
            format!("mkdir {0} || exit 1; cat >/dev/null; rmdir {0}; echo '{{}}'", lock.display());
        let client = shell(&format!("PATH=/bin:/usr/bin; {script}"), LONG);
        let request = Request::default();
        let ask = || client.ask(&request);
        let (a, b, c, d, refused) = run(async { tokio::join!(ask(), ask(), ask(), ask(), ask()) });
        for answer in [a, b, c, d] {
            answer.unwrap();
        }
        assert!(matches!(refused, Err(Error::Busy)));
        run(ask()).unwrap();
    }
}
