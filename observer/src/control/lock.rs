//! One agent a host: a file locked for as long as the agent lives.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::ControlError;

/// Name of the lock file in the run folder.
const LOCK_NAME: &str = "observer.lock";

/// Proof that this process is the only agent of its run folder. The kernel gives the lock back when the process ends,
/// however it ends; the file stays, since removing it would let a third process lock another one.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    run_dir: PathBuf,
}

impl Lock {
    /// Makes the run folder if it is missing and takes its lock (flock(2)).
    ///
    /// # Errors
    /// [`ControlError::Busy`] with the pid of the agent that has it; otherwise what the system refused.
    pub fn take(run_dir: &Path) -> Result<Self, ControlError> {
        let path = run_dir.join(LOCK_NAME);
        let io = |what| {
            let path = path.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    ControlError::Folder { path: run_dir.to_owned() }
                }
                _ => ControlError::Io { what, path, source },
            }
        };
        fs::create_dir_all(run_dir).map_err(io("cannot make the folder of"))?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("cannot open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ControlError::Busy { pid: holder(&mut file), path });
            }
            Err(TryLockError::Error(source)) => return Err(io("cannot lock")(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io("cannot write"))?;
        Ok(Self { _file: file, run_dir: run_dir.to_owned() })
    }

    /// The folder that is locked.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

/// The holder writes its pid after it has the lock, so for a moment there may be none.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(16).read_to_string(&mut text).map(|_| text.trim().parse::<u32>()) {
        Ok(Ok(pid)) => format!("pid {pid}"),
        _ => "pid unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let first = Lock::take(&run_dir).unwrap();
        let error = Lock::take(&run_dir).unwrap_err().to_string();
        assert!(
            error.contains(&format!("another observer runs already (pid {})", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::take(&run_dir).unwrap();
    }

    #[test]
    fn a_lock_without_a_pid() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join(LOCK_NAME)).unwrap();
        file.lock().unwrap();
        assert!(Lock::take(dir.path()).unwrap_err().to_string().contains("pid unknown"));
    }

    #[test]
    fn a_folder_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Lock::take(&file).unwrap_err().to_string().contains("cannot make the folder of"));
    }
}
