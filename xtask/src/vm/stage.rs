//! A folder that becomes a guest's disk: files of this host under their own paths, as hard links where that works.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folder. What is in it may be a file of this host by another name: nothing below it is ever written to.
pub(super) struct Stage {
    top: PathBuf,
    /// Folders of this host without links in their paths.
    resolved: BTreeMap<PathBuf, PathBuf>,
    /// Bytes of all files, in whole blocks.
    pub(super) bytes: u64,
}

/// Block of a file system.
const BLOCK: u64 = 4096;

impl Stage {
    /// Starts an empty one; what was there is removed.
    pub(super) fn new(top: &Path) -> Result<Self> {
        match fs::remove_dir_all(top) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", top.display()));
            }
            _ => fs::create_dir_all(top).with_context(|| top.display().to_string())?,
        }
        Ok(Self { top: top.to_owned(), resolved: BTreeMap::new(), bytes: 0 })
    }

    /// Adds a file, link or folder of this host under its own path; one that is not there, or is there already, is no error.
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let Ok(meta) = path.symlink_metadata() else {
            return Ok(());
        };
        let Some(target) = self.target(path)? else {
            return Ok(());
        };
        self.place(path, &meta, &target).with_context(|| format!("cannot stage {}", path.display()))
    }

    /// Adds all that is below a folder, under another path.
    pub(super) fn add_tree(&mut self, folder: &Path, target: &str) -> Result<()> {
        self.folder(target)?;
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let target = format!("{target}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.add_tree(&entry.path(), &target)?;
            } else {
                self.add_as(&entry.path(), &target)?;
            }
        }
        Ok(())
    }

    /// Adds a file or link under another path.
    pub(super) fn add_as(&mut self, path: &Path, target: &str) -> Result<()> {
        let place = self.top.join(target.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a path below the top")?)?;
        let meta = path.symlink_metadata().with_context(|| path.display().to_string())?;
        self.place(path, &meta, &place).with_context(|| format!("cannot stage {target}"))
    }

    /// Adds an empty folder.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        let place = self.top.join(path.trim_start_matches('/'));
        fs::create_dir_all(&place).with_context(|| place.display().to_string())
    }

    /// Adds a symbolic link.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        symlink(target, self.top.join(path)).with_context(|| format!("cannot stage {path}"))
    }

    /// Adds a file with this text.
    pub(super) fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let place = self.top.join(path.trim_start_matches('/'));
        // A link to a file of this host must go before the file is written.
        if place.symlink_metadata().is_ok() {
            fs::remove_file(&place)?;
        }
        fs::create_dir_all(place.parent().context("a path below the top")?)?;
        fs::write(&place, text).with_context(|| place.display().to_string())
    }

    /// Whether a path of this host, its links followed, has been added.
    pub(super) fn has(&self, path: &Path) -> bool {
        let real = path.canonicalize();
        real.is_ok_and(|real| self.below(&real).is_some_and(|place| place.exists()))
    }

    fn below(&self, absolute: &Path) -> Option<PathBuf> {
        Some(self.top.join(absolute.strip_prefix("/").ok()?))
    }

    /// Where a path of this host goes: its folder without links, so that `/lib/x` and `/usr/lib/x` are one file.
    fn target(&mut self, path: &Path) -> Result<Option<PathBuf>> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        if !self.resolved.contains_key(folder) {
            let Ok(real) = folder.canonicalize() else {
                return Ok(None);
            };
            self.parents(&real)?;
            self.resolved.insert(folder.to_owned(), real);
        }
        Ok(self.below(&self.resolved[folder].join(name)))
    }

    /// Makes a folder of this host and those above it, with their owners and modes.
    fn parents(&self, real: &Path) -> Result<()> {
        let mut folders: Vec<_> = real.ancestors().collect();
        folders.pop();
        for folder in folders.iter().rev() {
            let target = self.below(folder).context("a folder of this host is absolute")?;
            make_folder(&folder.metadata()?, &target)
                .with_context(|| format!("cannot stage {}", folder.display()))?;
        }
        Ok(())
    }

    fn place(&mut self, path: &Path, meta: &fs::Metadata, target: &Path) -> io::Result<()> {
        if meta.is_dir() {
            return make_folder(meta, target);
        }
        if target.symlink_metadata().is_ok() {
            return Ok(());
        }
        if meta.is_symlink() {
            return symlink(fs::read_link(path)?, target);
        }
        self.bytes += meta.len().next_multiple_of(BLOCK);
        // Another file system, or not the owner: a copy does as well.
        fs::hard_link(path, target).or_else(|_no_link| match fs::copy(path, target) {
            // Not root: what only root can read stays behind.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            copied => copied.map(drop),
        })
    }
}

fn make_folder(meta: &fs::Metadata, target: &Path) -> io::Result<()> {
    if target.is_dir() {
        return Ok(());
    }
    fs::create_dir(target)?;
    // Only root gives folders away; owned by whoever builds the disk, they serve as well.
    let _owner_stays = chown(target, Some(meta.uid()), Some(meta.gid()));
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_folders_are_followed_and_those_of_files_kept() {
        let top = std::env::temp_dir().join(format!("observer-stage-{}", std::process::id()));
        let mut stage = Stage::new(&top).expect("a temporary folder");
        stage.add(Path::new("/proc/self/mounts")).expect("a link below a link");
        let pid = std::process::id();
        let place = top.join(format!("proc/{pid}/mounts"));
        // The kernel shows it as a file of a process, so it was copied.
        assert!(place.symlink_metadata().is_ok(), "{}", place.display());
        assert!(stage.has(Path::new("/proc/self/mounts")));
        stage.add(Path::new("/no/such/file")).expect("no error");
        stage.write("/etc/hosts", "127.0.0.1 localhost\n").expect("can be written");
        assert_eq!(fs::read_to_string(top.join("etc/hosts")).expect("is there").len(), 20);
        fs::remove_dir_all(&top).expect("can be removed");
    }
}
