//! The seam between the log and a disk: what the log asks of one directory of files.
//!
//! Real files are here; the tests bring a disk that forgets what was not synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What somebody is to do with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To look at it.
    Read,
    /// To change it.
    Write,
}

/// One directory. Names have no path in them.
///
/// A created, renamed or removed name is durable only after [`sync_dir`](Storage::sync_dir).
pub trait Storage: Send + 'static {
    /// A file of this directory; stays valid when the file is renamed.
    type File: StorageFile;

    /// Takes the lock of the directory until the returned file is dropped; `None` if another holds it. Who only reads may
    /// have it of a directory that nobody can write to.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    fn lock(&self, name: &str, access: Access) -> io::Result<Option<Self::File>>;

    /// The names of all files, in any order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file, for reading and writing; an old one of this name loses its bytes.
    ///
    /// # Errors
    /// When the disk refuses, e.g. with `StorageFull`.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file for reading, and for writing where that is allowed.
    ///
    /// # Errors
    /// `NotFound`, or whatever the disk says.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name, in place of the file that had it.
    ///
    /// # Errors
    /// When the disk refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// When the disk refuses.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names durable.
    ///
    /// # Errors
    /// When the disk fails; what is durable then is unknown.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One file of a [`Storage`].
pub trait StorageFile: Send + Sync + 'static {
    /// The length in bytes.
    ///
    /// # Errors
    /// When the disk fails.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, or whatever the disk says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Then any part of `bytes` may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes all that was written, and the length, durable.
    ///
    /// # Errors
    /// Then what was written since the last sync may be gone, even if it can still be read: never try again.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the file at least `bytes` long and reserves the room, so that later writes find it.
    ///
    /// # Errors
    /// `StorageFull` when there is no room.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Cuts the file, or makes it longer by zeros.
    ///
    /// # Errors
    /// When the disk refuses.
    fn set_length(&self, bytes: u64) -> io::Result<()>;
}

/// The files of a real directory.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// The directory at `path`; makes it, and those above it, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made or is not a directory.
    pub fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        let directory = path.as_ref().to_path_buf();
        fs::create_dir_all(&directory)?;
        if !fs::metadata(&directory)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Storage for Files {
    type File = File;

    fn lock(&self, name: &str, access: Access) -> io::Result<Option<File>> {
        let path = self.path(name);
        let file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
            // A copy that can only be looked at: nobody can write to it, but it may be mounted elsewhere too.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && access == Access::Read => {
                File::open(&path).or_else(|_| File::open(&self.directory))?
            }
            opened => opened?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not Unicode is not one of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.path(name);
        match OpenOptions::new().read(true).write(true).open(&path) {
            // `store check` must be able to look at a directory that it may not write to.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(&path)
            }
            other => other,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

impl StorageFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve (NFS, ZFS). Zeros take the room just as well.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => fill_with_zeros(self, bytes),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }
}

fn fill_with_zeros(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut offset = file.metadata()?.len();
    while offset < bytes {
        let step = zeros.len().min(usize::try_from(bytes - offset).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..step], offset)?;
        offset += step as u64;
    }
    Ok(())
}
