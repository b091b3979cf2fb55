//! What the machine allows: the disk's sync and its sequential write, the loopback's ping-pong, and an
//! echo over a bare WebSocket; what it takes back of its cores. Measured in the same run as the systems.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hdrhistogram::Histogram;

use crate::Failed;
use crate::compare::stalls::{self, Stalls};
use crate::compare::{Plan, cores, thousands, values};
use crate::drivers::frames;
use crate::record::{Promise, Record, Records};

/// The preallocated file.
const FILE_BYTES: usize = 64 << 20;
const PAGE_BYTES: usize = 4096;
/// How long each is measured.
const EACH: Duration = Duration::from_millis(700);
/// A mebibyte, and 64 of them a sync: as a log writes its segments.
const CHUNK_BYTES: usize = 1 << 20;

pub(crate) async fn run(plan: &Plan, records: &mut Records) -> Result<(), Failed> {
    for round in 1..=plan.rounds {
        let text = format!("limits · round {round}");
        plan.next(text.clone());
        plan.done(&text, tokio::task::block_in_place(|| measure(plan, round, records)));
    }
    Ok(())
}

fn measure(plan: &Plan, round: u32, records: &mut Records) -> Result<String, Failed> {
    let path = plan.place.dir.join(format!("taskyard-bench-{}-limits", std::process::id()));
    let disk = disk(&path);
    // It may not have been made.
    let _ = std::fs::remove_file(&path);
    let (sync, mb_per_s) = disk?;
    let ping = ping_pong(plan.load.payload_bytes)?;
    let echo = echo(plan.load.payload_bytes)?;
    let core_to_core = cores::round_trip_ns();
    let all_cores = std::thread::available_parallelism()?.get();
    let [one, all] = [1, all_cores].map(stalls::of_threads);
    let mut add = |setting: &str, figures| {
        records.add(Record {
            scenario: "limits".to_owned(),
            system: "this machine".to_owned(),
            setting: setting.to_owned(),
            promise: Promise::None,
            load: String::new(),
            round,
            values: figures,
        })
    };
    let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let both = |histogram: &Histogram<u64>| {
        values([("p50_us", at(histogram, 0.5)), ("p99_us", at(histogram, 0.99))])
    };
    add("fdatasync of 4 KiB into a preallocated, zeroed file", both(&sync))?;
    add("sequential write, synced every 64 MiB", values([("mb_per_s", mb_per_s)]))?;
    add("ping-pong over TCP loopback", both(&ping))?;
    add("echo over a bare WebSocket", both(&echo))?;
    if let Some(ns) = core_to_core {
        add("a cache line from core to core and back", values([("ns", ns)]))?;
    }
    let lost = |lost: Stalls| values([("percent", lost.percent), ("longest_ms", lost.longest_ms)]);
    add("stalls over 1 ms of a thread, alone", lost(one))?;
    add("stalls over 1 ms of threads, one for each core", lost(all))?;
    let cores = core_to_core.map_or("one core".to_owned(), |ns| format!("core to core and back {ns:.0} ns"));
    Ok(format!(
        "fdatasync p50 {:.0} p99 {:.0} µs, write {} MB/s, ping-pong {:.0} µs, echo {:.0} µs, {cores}, \
         stalls of a busy core alone {:.1} % up to {:.1} ms, of all {:.1} % up to {:.1} ms",
        at(&sync, 0.5),
        at(&sync, 0.99),
        thousands(mb_per_s),
        at(&ping, 0.5),
        at(&echo, 0.5),
        one.percent,
        one.longest_ms,
        all.percent,
        all.longest_ms
    ))
}

/// Sync latency, and sequential MB/s.
fn disk(path: &Path) -> Result<(Histogram<u64>, f64), Failed> {
    let mut file = std::fs::File::create(path)?;
    let chunk = vec![0; CHUNK_BYTES];
    for _ in 0..FILE_BYTES / CHUNK_BYTES {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let page = vec![0x5A; PAGE_BYTES];
    let mut nth = 0;
    let histogram = repeat(|| {
        file.write_all_at(&page, (nth * PAGE_BYTES % FILE_BYTES) as u64)?;
        nth += 1;
        Ok(file.sync_data()?)
    })?;
    let (began, mut written) = (Instant::now(), 0);
    while began.elapsed() < EACH {
        file.seek(SeekFrom::Start(0))?;
        for _ in 0..FILE_BYTES / CHUNK_BYTES {
            file.write_all(&chunk)?;
        }
        file.sync_data()?;
        written += FILE_BYTES;
    }
    Ok((histogram, written as f64 / 1e6 / began.elapsed().as_secs_f64()))
}

/// Does it again and again; how long it took, in nanoseconds.
fn repeat(mut once: impl FnMut() -> Result<(), Failed>) -> Result<Histogram<u64>, Failed> {
    let mut histogram = Histogram::new(3)?;
    let began = Instant::now();
    while began.elapsed() < EACH {
        let since = Instant::now();
        once()?;
        histogram.record(since.elapsed().as_nanos() as u64)?;
    }
    Ok(histogram)
}

/// Between two threads.
fn ping_pong(bytes: usize) -> Result<Histogram<u64>, Failed> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let other = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; bytes];
        // Until the other side has gone.
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; bytes];
    let histogram = repeat(|| {
        stream.write_all(&buffer)?;
        Ok(stream.read_exact(&mut buffer)?)
    });
    drop(stream);
    other.join().map_err(|_| "the other end of the ping-pong failed")??;
    histogram
}

/// With the bare server, a process of its own.
fn echo(bytes: usize) -> Result<Histogram<u64>, Failed> {
    let mut child =
        Command::new(std::env::current_exe()?).arg("bare-server").stdout(Stdio::piped()).spawn()?;
    let histogram = child.stdout.take().ok_or("its output was not piped".into()).and_then(|output| {
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        echoes(address.trim(), bytes)
    });
    // It may have ended already.
    let _ = child.kill();
    child.wait()?;
    histogram
}

fn echoes(address: &str, bytes: usize) -> Result<Histogram<u64>, Failed> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(frames::upgrade_request("/").as_bytes())?;
    let mut input = BytesMut::new();
    while !frames::head(&mut input) {
        read(&mut stream, &mut input)?;
    }
    let (body, mut out) = (vec![b'x'; bytes], Vec::new());
    repeat(|| {
        out.clear();
        frames::put_masked(&mut out, &body);
        stream.write_all(&out)?;
        let mut heard = false;
        while !heard {
            read(&mut stream, &mut input)?;
            frames::take_websocket(&mut input, &mut |_| heard = true)?;
        }
        Ok(())
    })
}

fn read(stream: &mut TcpStream, input: &mut BytesMut) -> Result<(), Failed> {
    let mut buffer = [0; PAGE_BYTES];
    match stream.read(&mut buffer)? {
        0 => Err("the server closed the connection".into()),
        length => {
            input.extend_from_slice(&buffer[..length]);
            Ok(())
        }
    }
}
