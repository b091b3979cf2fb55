//! A disk in memory that forgets what was not synced, fails when told to, and counts what is asked of it.
//!
//! Every file has the bytes that a reader sees and the bytes that a power cut leaves; between them stand the
//! writes since the last sync. Names work the same way, with `sync_dir`. What a power cut keeps of unsynced
//! writes is decided by a seed, for each 512-byte sector by itself: torn, reordered, or all of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use taskyard::log::{Access, Storage, StorageFile};

const SECTOR_BYTES: usize = 512;

/// A small generator of numbers for tests: the same seed, the same run.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation, and nothing else, fails with EIO. A failed sync loses what it should have kept, though
    /// that can still be read.
    Eio,
    /// The operation fails for want of room.
    NoSpace,
    /// A write writes half of what it should and fails; any other operation fails with EIO.
    ShortWrite,
    /// A write writes everything and fails all the same; any other operation fails with EIO.
    LateError,
    /// The power fails: this operation and all later ones fail.
    PowerCut,
}

#[derive(Clone, Default)]
struct State {
    files: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    locked: bool,
    /// How many files are open, and how many were at most.
    open: usize,
    open_most: usize,
    operations: u64,
    fault: Option<(u64, Fault)>,
    /// The same, of the operations of one thread; those that are still to go well.
    fault_of: Option<(ThreadId, u64, Fault)>,
    powered_off: bool,
    capacity: Option<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone)]
enum NameChange {
    Link(String, usize),
    Rename(String, String),
    Remove(String),
}

/// The disk; clones of the handle are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// One file of a `SimDisk`, or its lock.
pub(crate) struct SimFile {
    state: Arc<Mutex<State>>,
    inode: Option<usize>,
}

impl SimDisk {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk that is now the same; without faults and unlocked.
    pub(crate) fn fork(&self) -> Self {
        let mut state = self.state().clone();
        state.locked = false;
        (state.fault, state.fault_of) = (None, None);
        state.powered_off = false;
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// What a power cut now leaves, as `seed` decides. 0 keeps nothing unsynced, 1 keeps all.
    pub(crate) fn crash(&self, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut state = self.state().clone();
        state.fault_of = None;
        for inode in &mut state.files {
            for change in std::mem::take(&mut inode.pending) {
                inode.keep_some(change, seed, &mut dice);
            }
            inode.seen = inode.durable.clone();
        }
        let pending = std::mem::take(&mut state.pending_names);
        let kept = match seed {
            0 => 0,
            1 => pending.len(),
            // A journal keeps the first few of them; a disk without one may keep any.
            _ if seed.is_multiple_of(2) => dice.below(pending.len() as u64 + 1) as usize,
            _ => usize::MAX,
        };
        for (place, change) in pending.into_iter().enumerate() {
            let keep = if kept == usize::MAX { dice.below(2) == 0 } else { place < kept };
            if keep {
                change.apply(&mut state.durable_names);
            }
        }
        state.names = state.durable_names.clone();
        state.locked = false;
        state.fault = None;
        state.powered_off = false;
        state.operations = 0;
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Makes the `number`th operation from now on, counted from 1, go wrong.
    pub(crate) fn fail_at(&self, number: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.operations + number, fault));
    }

    /// Makes the `number`th operation of this thread from now on, counted from 1, go wrong.
    pub(crate) fn fail_here_at(&self, number: u64, fault: Fault) {
        self.state().fault_of = Some((std::thread::current().id(), number - 1, fault));
    }

    /// Whether it is still to go wrong.
    pub(crate) fn is_yet_to_fail_here(&self) -> bool {
        self.state().fault_of.is_some()
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Bytes that all files together may have; `None` for any.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes that all files have.
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    /// The most files that were open at a time since this was asked last.
    pub(crate) fn open_most(&self) -> usize {
        let mut state = self.state();
        let open = state.open;
        std::mem::replace(&mut state.open_most, open)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// All files with their bytes, for comparing.
    pub(crate) fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, &inode)| (name.clone(), state.files[inode].seen.clone())).collect()
    }

    /// Changes a file behind the log's back, durably.
    pub(crate) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.names[name];
        let inode = &mut state.files[inode];
        change(&mut inode.seen);
        inode.durable = inode.seen.clone();
        inode.pending.clear();
    }

    pub(crate) fn flip(&self, name: &str, offset: usize) {
        self.tamper(name, |bytes| bytes[offset] ^= 0x10);
    }

    pub(crate) fn truncate(&self, name: &str, bytes: usize) {
        self.tamper(name, |content| content.truncate(bytes));
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// Puts a file there, durably.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.files.len();
        state.files.push(Inode { seen: bytes.clone(), durable: bytes, pending: Vec::new() });
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().map(|&inode| self.files[inode].seen.len() as u64).sum()
    }

    /// Counts an operation; says what is wrong with it, if it is.
    fn operation(&mut self) -> io::Result<Option<Fault>> {
        self.operations += 1;
        if self.powered_off {
            return Err(io::Error::other("the power is off"));
        }
        let here = match &mut self.fault_of {
            Some((thread, 0, _)) if *thread == std::thread::current().id() => self.fault_of.take(),
            Some((thread, left, _)) if *thread == std::thread::current().id() => {
                *left -= 1;
                None
            }
            _ => None,
        };
        let fault = self.fault.filter(|(at, _)| *at == self.operations).map(|(_, fault)| fault);
        match here.map(|(_, _, fault)| fault).or(fault) {
            Some(fault) => match fault {
                Fault::Eio => Err(io::Error::from_raw_os_error(5)),
                Fault::NoSpace => Err(io::Error::from(io::ErrorKind::StorageFull)),
                Fault::PowerCut => {
                    self.powered_off = true;
                    Err(io::Error::other("the power is off"))
                }
                Fault::ShortWrite | Fault::LateError => Ok(Some(fault)),
            },
            None => Ok(None),
        }
    }

    /// As `operation`, for those that cannot be short.
    fn whole_operation(&mut self) -> io::Result<()> {
        match self.operation()? {
            Some(_) => Err(io::Error::from_raw_os_error(5)),
            None => Ok(()),
        }
    }

    fn grow_to(&mut self, inode: usize, bytes: usize) -> io::Result<()> {
        let growth = bytes.saturating_sub(self.files[inode].seen.len()) as u64;
        if growth > 0 && self.capacity.is_some_and(|capacity| self.used() + growth > capacity) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

    fn keep_some(&mut self, change: Change, seed: u64, dice: &mut Dice) {
        match change {
            _ if seed == 0 => {}
            _ if seed == 1 => change.apply(&mut self.durable),
            Change::Length(_) => {
                if dice.below(2) == 0 {
                    change.apply(&mut self.durable);
                }
            }
            Change::Write { offset, bytes } => {
                // Sometimes all, sometimes nothing, mostly some sectors.
                let mood = dice.below(4);
                let mut start = 0;
                while start < bytes.len() {
                    let end = (SECTOR_BYTES - (offset + start) % SECTOR_BYTES + start).min(bytes.len());
                    if mood == 0 || (mood > 1 && dice.below(2) == 0) {
                        let bytes = bytes[start..end].to_vec();
                        Change::Write { offset: offset + start, bytes }.apply(&mut self.durable);
                    }
                    start = end;
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Self::Length(bytes) => content.resize(*bytes, 0),
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name, inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl SimDisk {
    fn file(&self, inode: usize) -> SimFile {
        let mut state = self.state();
        state.open += 1;
        state.open_most = state.open_most.max(state.open);
        drop(state);
        SimFile { state: Arc::clone(&self.state), inode: Some(inode) }
    }
}

impl Storage for SimDisk {
    type File = SimFile;

    fn lock(&self, _name: &str, _access: Access) -> io::Result<Option<SimFile>> {
        let mut state = self.state();
        state.whole_operation()?;
        if std::mem::replace(&mut state.locked, true) {
            return Ok(None);
        }
        Ok(Some(SimFile { state: Arc::clone(&self.state), inode: None }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.whole_operation()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        state.whole_operation()?;
        if let Some(&inode) = state.names.get(name) {
            // As a real one: whoever has that file open finds it empty.
            state.files[inode].change(Change::Length(0));
            drop(state);
            return Ok(self.file(inode));
        }
        let inode = state.files.len();
        state.files.push(Inode::default());
        state.names.insert(name.to_owned(), inode);
        state.pending_names.push(NameChange::Link(name.to_owned(), inode));
        drop(state);
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        state.whole_operation()?;
        let inode = state.inode(name)?;
        drop(state);
        Ok(self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        state.inode(from)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        change.clone().apply(&mut state.names);
        state.pending_names.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        state.inode(name)?;
        state.names.remove(name);
        state.pending_names.push(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }
}

impl SimFile {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inode(&self) -> usize {
        self.inode.expect("nobody reads or writes the lock")
    }
}

impl StorageFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.whole_operation()?;
        Ok(state.files[self.inode()].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        let offset = offset as usize;
        match state.files[self.inode()].seen.get(offset..offset + buffer.len()) {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        let offset = offset as usize;
        let fault = state.operation()?;
        let written = if fault == Some(Fault::ShortWrite) { &bytes[..bytes.len() / 2] } else { bytes };
        state.grow_to(self.inode(), offset + written.len())?;
        state.files[self.inode()].change(Change::Write { offset, bytes: written.to_vec() });
        match fault {
            Some(_) => Err(io::Error::from_raw_os_error(5)),
            None => Ok(()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        let result = state.whole_operation();
        let powered_off = state.powered_off;
        let inode = &mut state.files[self.inode()];
        match result {
            Ok(()) => inode.durable = inode.seen.clone(),
            // The power went before: what happens to the writes is decided by the crash.
            Err(_) if powered_off => return result,
            // The kernel calls the pages clean now; the disk never got them.
            Err(_) => {}
        }
        inode.pending.clear();
        result
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        let bytes = bytes as usize;
        state.grow_to(self.inode(), bytes)?;
        let inode = &mut state.files[self.inode.expect("a file")];
        if inode.seen.len() < bytes {
            inode.change(Change::Length(bytes));
        }
        Ok(())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.whole_operation()?;
        state.grow_to(self.inode(), bytes as usize)?;
        state.files[self.inode()].change(Change::Length(bytes as usize));
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state();
        match self.inode {
            Some(_) => state.open -= 1,
            None => state.locked = false,
        }
    }
}
