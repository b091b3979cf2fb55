//! The bare server: what the machine allows. It reads frames, appends them to a preallocated file,
//! syncs once a turn, answers and forwards. No queue, no leases, no protocol.

use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

use crate::Failed;
use crate::broker::wait_for;

/// The first byte of a connection: what it is.
pub(crate) const PRODUCER: u8 = b'p';
pub(crate) const WORKER: u8 = b'w';

/// The file is preallocated, as the broker's segments are, and written around.
const FILE_BYTES: u64 = 64 << 20;

/// Frames of a length (u32, little endian) and a body.
#[derive(Default)]
pub(crate) struct Frames {
    buffer: bytes::BytesMut,
}

impl Frames {
    pub(crate) async fn fill(&mut self, from: &mut OwnedReadHalf) -> Result<(), Failed> {
        self.buffer.reserve(16 << 10);
        match from.read_buf(&mut self.buffer).await? {
            0 => Err("the connection ended".into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn next(&mut self) -> Option<bytes::Bytes> {
        let length = u32::from_le_bytes(self.buffer.get(..4)?.try_into().ok()?) as usize;
        if self.buffer.len() < 4 + length {
            return None;
        }
        let _ = self.buffer.split_to(4);
        Some(self.buffer.split_to(length).freeze())
    }
}

pub(crate) fn put(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
}

/// The bare server as a process of its own.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    file: PathBuf,
}

impl Server {
    pub(crate) fn start(parent: &Path) -> Result<Server, Failed> {
        let file = parent.join(format!("taskyard-bench-{}-floor", std::process::id()));
        let mut child = Command::new(std::env::current_exe()?)
            .arg("floor-server")
            .env("TASKYARD_BENCH_FLOOR_FILE", &file)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().ok_or("its output was not piped")?).read_line(&mut address)?;
        let address = address.trim().to_owned();
        wait_for(&address)?;
        Ok(Server { child, address, file })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Runs the bare server: one thread, which also syncs.
pub(crate) fn serve() -> Result<(), Failed> {
    let path = std::env::var("TASKYARD_BENCH_FLOOR_FILE")?;
    let mut file = std::fs::File::create(path)?;
    file.write_all(&vec![0; FILE_BYTES as usize])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(listen(file))
}

type Submitted = (Arc<Mutex<OwnedWriteHalf>>, bytes::Bytes);

async fn listen(file: std::fs::File) -> Result<(), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    crate::print(&listener.local_addr()?.to_string());
    let (submits, inbox) = mpsc::channel(4096);
    let (workers, new_workers) = mpsc::channel(16);
    tokio::spawn(turn(file, inbox, new_workers));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, submits.clone(), workers.clone()));
    }
}

async fn connection(
    stream: TcpStream,
    submits: mpsc::Sender<Submitted>,
    workers: mpsc::Sender<OwnedWriteHalf>,
) -> Result<(), Failed> {
    let (mut read, write) = stream.into_split();
    let kind = read.read_u8().await?;
    let mut frames = Frames::default();
    if kind == WORKER {
        workers.send(write).await?;
        loop {
            frames.fill(&mut read).await?;
            while frames.next().is_some() {}
        }
    }
    let write = Arc::new(Mutex::new(write));
    loop {
        frames.fill(&mut read).await?;
        while let Some(frame) = frames.next() {
            submits.send((write.clone(), frame)).await?;
        }
    }
}

/// Takes what has arrived, appends it, syncs, answers and forwards.
async fn turn(
    mut file: std::fs::File,
    mut inbox: mpsc::Receiver<Submitted>,
    mut workers: mpsc::Receiver<OwnedWriteHalf>,
) -> Result<(), Failed> {
    let mut worker = workers.recv().await.ok_or("no worker came")?;
    let mut batch: Vec<Submitted> = Vec::new();
    let (mut log, mut forward) = (Vec::new(), Vec::new());
    let mut written = 0;
    while inbox.recv_many(&mut batch, 4096).await > 0 {
        log.clear();
        forward.clear();
        for (_, frame) in &batch {
            put(&mut log, frame);
            put(&mut forward, frame);
        }
        if written + log.len() as u64 > FILE_BYTES {
            file.seek(SeekFrom::Start(0))?;
            written = 0;
        }
        file.write_all(&log)?;
        written += log.len() as u64;
        file.sync_data()?;
        worker.write_all(&forward).await?;
        let mut answers: Vec<(Arc<Mutex<OwnedWriteHalf>>, Vec<u8>)> = Vec::new();
        for (producer, frame) in batch.drain(..) {
            match answers.last_mut() {
                Some((last, out)) if Arc::ptr_eq(last, &producer) => put(out, &frame[..8]),
                _ => {
                    let mut out = Vec::new();
                    put(&mut out, &frame[..8]);
                    answers.push((producer, out));
                }
            }
        }
        for (producer, out) in answers {
            producer.lock().await.write_all(&out).await?;
        }
    }
    Ok(())
}
