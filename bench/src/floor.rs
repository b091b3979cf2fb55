//! The bare server: what the machine allows. One thread reads all that has come, appends it to a
//! preallocated file, syncs once a turn, answers and forwards under credit, over TCP or in WebSocket
//! frames. No queue, no leases, no protocol.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use clap::ValueEnum;
use tokio::net::{TcpListener, TcpStream};

use crate::Failed;
use crate::drivers::frames;

/// The file is preallocated, as the broker's segments are, and written around.
const FILE_BYTES: u64 = 64 << 20;
/// What is read from a connection at once: a window of tasks.
const READ_BYTES: usize = 128 << 10;
/// How long a block of waiting tasks grows.
const BLOCK_BYTES: usize = 256 << 10;
/// An answer and an ack carry the first bytes of their task.
pub(crate) const ID_BYTES: usize = 8;

/// What travels under the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// A length (u32, little endian) and a body
    Tcp,
    /// Binary frames, those of clients masked
    Websocket,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to append to
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    listen: std::net::SocketAddr,
    #[arg(long, value_enum)]
    framing: Framing,
    /// Sync once a turn, before anything is answered
    #[arg(long)]
    sync: bool,
    /// Tasks that a worker may have without an ack
    #[arg(long)]
    credit: usize,
}

/// Runs the bare server: one thread, which also syncs.
pub(crate) fn serve(args: Args) -> Result<(), Failed> {
    let mut file = std::fs::File::create(&args.file)?;
    file.write_all(&vec![0; FILE_BYTES as usize])?;
    file.sync_all()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await?;
        let mut floor = Floor {
            log: Log { file, at: 0, sync: args.sync },
            framing: args.framing,
            credit: args.credit,
            peers: Vec::new(),
            fresh: Vec::new(),
            waiting: VecDeque::new(),
            next: 0,
        };
        loop {
            floor.wait(&listener).await?;
            floor.turn()?;
        }
    })
}

/// A file that is written around.
struct Log {
    file: std::fs::File,
    at: u64,
    sync: bool,
}

impl Log {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.at + bytes.len() as u64 > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It has not said yet what it is.
    Stranger,
    Producer,
    Worker,
}

struct Peer {
    stream: TcpStream,
    role: Role,
    input: BytesMut,
    output: BytesMut,
    /// Of a worker: tasks that it has without an ack.
    held: usize,
    /// It has gone.
    ended: bool,
}

struct Floor {
    log: Log,
    framing: Framing,
    credit: usize,
    peers: Vec<Peer>,
    /// What goes to the log in this turn: tasks, and the acks that came with them.
    fresh: Vec<u8>,
    /// Tasks that no worker had credit for, in blocks, framed as they are forwarded.
    waiting: VecDeque<BytesMut>,
    /// The worker whose turn it is.
    next: usize,
}

impl Floor {
    /// Waits until something came, or can be written that could not be.
    async fn wait(&mut self, listener: &TcpListener) -> Result<(), Failed> {
        poll_fn(|context| self.poll(listener, context)).await
    }

    fn poll(&mut self, listener: &TcpListener, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while let Poll::Ready(accepted) = listener.poll_accept(context) {
            let (stream, _) = accepted?;
            stream.set_nodelay(true)?;
            let (input, output) = (BytesMut::with_capacity(READ_BYTES), BytesMut::new());
            self.peers.push(Peer { stream, role: Role::Stranger, input, output, held: 0, ended: false });
        }
        let mut ready = false;
        for peer in &mut self.peers {
            if peer.poll_read(context)? {
                ready = true;
            }
            if !peer.output.is_empty() && peer.stream.poll_write_ready(context).is_ready() {
                ready = true;
            }
        }
        if ready { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn turn(&mut self) -> Result<(), Failed> {
        self.fresh.clear();
        // One that has grown is not grown further: what has left it would be moved each time.
        let room = self.waiting.back().is_some_and(|block| block.len() < BLOCK_BYTES);
        let mut block = if room { self.waiting.pop_back().unwrap_or_default() } else { BytesMut::new() };
        let mut tasks = 0;
        for peer in &mut self.peers {
            tasks += peer.take(self.framing, &mut self.fresh, &mut block)?;
        }
        // An ack alone waits for the next task: nobody waits for it.
        if tasks > 0 {
            self.log.append(&self.fresh)?;
        }
        if !block.is_empty() {
            self.waiting.push_back(block);
        }
        self.forward();
        for peer in &mut self.peers {
            peer.write();
        }
        self.peers.retain(|peer| !peer.ended);
        Ok(())
    }

    /// Gives the waiting tasks to the workers, one each in turn, while they have credit.
    fn forward(&mut self) {
        let credit = self.credit;
        let mut full = 0;
        while full < self.peers.len() {
            let Some(block) = self.waiting.front_mut() else { return };
            self.next = (self.next + 1) % self.peers.len();
            let peer = &mut self.peers[self.next];
            if peer.role != Role::Worker || peer.held >= credit || peer.ended {
                full += 1;
                continue;
            }
            full = 0;
            peer.held += 1;
            // What waits is whole, and was framed here.
            let length = match self.framing {
                Framing::Tcp => frames::length(block),
                Framing::Websocket => frames::websocket_length(block),
            }
            .unwrap_or(block.len());
            peer.output.extend_from_slice(&block[..length]);
            block.advance(length);
            if block.is_empty() {
                self.waiting.pop_front();
            }
        }
    }
}

impl Peer {
    /// Reads what is there; says whether there was anything.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Result<bool, Failed> {
        let mut any = false;
        while !self.ended && self.stream.poll_read_ready(context)?.is_ready() {
            self.input.reserve(READ_BYTES / 2);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => self.ended = true,
                // One read a turn: nobody starves the others.
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => self.ended = true,
            }
            any = true;
        }
        Ok(any)
    }

    /// Takes the frames that are whole; answers those of a producer, which are written once they are
    /// synced. Says how many were tasks.
    fn take(&mut self, framing: Framing, log: &mut Vec<u8>, tasks: &mut BytesMut) -> Result<usize, Failed> {
        if self.role == Role::Stranger && !self.greet(framing) {
            return Ok(0);
        }
        let mut count = 0;
        let Peer { input, output, held, role, .. } = self;
        let mut task = |body: &[u8]| {
            log.extend_from_slice(&(body.len() as u32).to_le_bytes());
            log.extend_from_slice(body);
            if *role == Role::Worker {
                *held = held.saturating_sub(1);
                return;
            }
            count += 1;
            let id = &body[..body.len().min(ID_BYTES)];
            match framing {
                Framing::Tcp => {
                    frames::put(output, id);
                    frames::put(tasks, body);
                }
                Framing::Websocket => {
                    frames::put_websocket(output, id);
                    frames::put_websocket(tasks, body);
                }
            }
        };
        match framing {
            Framing::Tcp => frames::take(input, &mut task),
            Framing::Websocket => frames::take_websocket(input, &mut task)?,
        }
        Ok(count)
    }

    /// Finds out what the other is: by the first byte, or by the path that it upgrades on.
    fn greet(&mut self, framing: Framing) -> bool {
        let kind = match framing {
            Framing::Tcp => {
                let Some(first) = self.input.first().copied() else { return false };
                self.input.advance(1);
                first
            }
            Framing::Websocket => {
                let Some(request) = frames::upgrade(&mut self.input) else { return false };
                self.output.extend_from_slice(request.answer.as_bytes());
                request.path.as_bytes().get(1).copied().unwrap_or_default()
            }
        };
        self.role = if kind == frames::WORKER { Role::Worker } else { Role::Producer };
        true
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) {
        while !self.output.is_empty() && !self.ended {
            match self.stream.try_write(&self.output) {
                Ok(written) => self.output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
        // What was reserved for a window is used again, instead of growing behind what was sent.
        if self.output.is_empty() {
            self.output.clear();
        }
    }
}
