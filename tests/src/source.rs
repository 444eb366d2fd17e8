//! Load programs in other languages: their sources are part of the test binary and are written out when used.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A source file in a directory of its own, with what was built from it.
pub struct Source {
    dir: TempDir,
    name: &'static str,
}

impl Source {
    /// Writes it out.
    pub fn new(name: &'static str, text: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        std::fs::write(dir.path().join(name), text).expect("a temporary file can be written");
        Self { dir, name }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The source file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    /// Compiles it as C, unoptimized and with frame pointers, into a program of this name that needs no library; gives its
    /// path.
    #[track_caller]
    pub fn compile_c(&self, program: &str) -> PathBuf {
        self.compile(program, &["-static"])
    }

    /// Likewise, but it takes the C library where the dynamic linker finds it.
    #[track_caller]
    pub fn compile_dynamic_c(&self, program: &str) -> PathBuf {
        self.compile(program, &[])
    }

    #[track_caller]
    fn compile(&self, program: &str, own: &[&str]) -> PathBuf {
        let binary = self.dir.path().join(program);
        let flags = ["-O0", "-g", "-fno-omit-frame-pointer", "-Wall", "-Werror", "-o"];
        let cc = Command::new("cc").args(own).args(flags).arg(&binary).arg(self.path()).output();
        let cc = cc.expect("cc can be started");
        assert!(cc.status.success(), "cc: {}", String::from_utf8_lossy(&cc.stderr));
        binary
    }
}
