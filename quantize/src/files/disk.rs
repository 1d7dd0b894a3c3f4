//! Files that survive a power cut: a file with its final name is complete. A file is flushed to disk before it is
//! renamed, and its folder before anything relies on the name.

use crate::files::folder::failed;
use llama3med::{Error, Result};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Writes a file under its final name once all of it is on disk. The name itself is permanent after [`flush_folder`].
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = beside(path, "new")?;
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| failed(path, "write", error))
}

/// Copies a file and flushes it to disk.
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(to)?;
    std::io::copy(&mut fs::File::open(from)?, &mut file)?;
    file.sync_all()
}

/// Flushes the folder that `path` is in, with the names in it, to disk.
#[cfg(unix)]
pub(crate) fn flush_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    match fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems do not support this.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done.map_err(|error| failed(folder, "flush", error)),
    }
}

/// Other systems cannot open folders.
#[cfg(not(unix))]
pub(crate) fn flush_folder(_: &Path) -> Result<()> {
    Ok(())
}

/// The path beside `target` with a suffix added to its name.
pub(crate) fn beside(target: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(Error::Invalid(format!("output must name a folder, found {}", target.display())));
    };
    let mut name = name.to_owned();
    name.push(format!(".{suffix}"));
    Ok(target.with_file_name(name))
}

/// Checks that a disk has enough free space.
#[cfg(unix)]
pub(crate) fn check_space(folder: &Path, n_bytes: u64) -> Result<()> {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= n_bytes {
        return Ok(());
    }
    let problem = format!("{n_bytes} bytes are needed, {free} are free");
    Err(Error::corrupt(folder.display().to_string(), "disk space", problem))
}

#[cfg(not(unix))]
pub(crate) fn check_space(_: &Path, _: u64) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_disk_that_is_too_small_is_found_before_anything_is_written() {
        let folder = std::env::temp_dir();
        check_space(&folder, 1).unwrap();
        let error = check_space(&folder, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("disk space: 18446744073709551615 bytes are needed, "), "{error}");
    }
}
