//! Echoes every WebSocket message up to 16 MiB, on the broker's own handshake and frame layer: what
//! the Autobahn suite is run against (`tests/autobahn/run`).
//!
//! ```text
//! cargo run --release --example ws_echo -- --listen 127.0.0.1:9001 [--compression]
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use fastwebsockets::OpCode;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use taskyard::http::guard::{Ambiguous, Guarded};
use taskyard::http::server::take_over;
use taskyard::transport::Stream;
use taskyard::ws::deflate::{self, Agreed};
use taskyard::ws::frames::{self, Assembly, Broken, Incoming};
use taskyard::ws::handshake::{self, Terms};
use taskyard::ws::inbound::{Arrived, Inbound};
use taskyard_proto::{CloseCode, Encoding};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

const MESSAGE_BYTES: usize = 16 << 20;
/// How long the peer may take to end the connection after the close frame.
const GOODBYE: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Args {
    /// Address to listen on; port 0 takes any that is free
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Agree to permessage-deflate
    #[arg(long)]
    compression: bool,
}

/// Why no more is read.
enum End {
    /// The peer closed, with this code if any.
    Closed(Option<u16>),
    Broken(Broken),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(args.listen).await?;
    #[expect(clippy::print_stdout, reason = "where it listens is what its caller waits for")]
    {
        println!("listening on {}", listener.local_addr()?);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let answer =
                service_fn(
                    move |request| async move { Ok::<_, Infallible>(upgrade(request, args.compression)) },
                );
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(
                    TokioIo::new(Guarded::new(Stream::from(stream), None, &Ambiguous::default())),
                    answer,
                )
                .with_upgrades()
                .await;
        });
    }
}

fn upgrade(mut request: Request<Body>, compression: bool) -> Response<Full<Bytes>> {
    match handshake::accept(&request, Terms { compression, query_token: false }) {
        Ok((answer, opening)) => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgraded.await else { return };
                if let Some((read, write, early, _)) = take_over(upgraded) {
                    echo(read, write, &early, opening.compression).await;
                }
            });
            answer.map(|()| Full::default())
        }
        Err(refusal) => {
            let body = format!("{}\n", refusal.error.message.as_str());
            let mut answer = Response::new(Full::from(body));
            *answer.status_mut() = refusal.status;
            if let Some((name, value)) = refusal.header {
                answer.headers_mut().insert(name, value);
            }
            answer
        }
    }
}

async fn echo(
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    early: &[u8],
    compression: Option<Agreed>,
) {
    let mut inbound = Inbound::new(read, Assembly::new(MESSAGE_BYTES, compression.is_some()), early);
    let (mut out, mut squeezed) = (Vec::new(), Vec::new());
    let mut take = |out: &mut Vec<u8>, incoming: Incoming<'_>| {
        match incoming {
            Incoming::Message(body) => {
                let opcode = if body.encoding() == Encoding::Json { OpCode::Text } else { OpCode::Binary };
                let body = body.bytes();
                match compression {
                    Some(agreed) if deflate::compress(body, agreed.window_bits, &mut squeezed) => {
                        frames::write(out, opcode, true, &squeezed);
                    }
                    _ => frames::write(out, opcode, false, body),
                }
            }
            Incoming::Ping(body) => frames::write(out, OpCode::Pong, false, body),
            Incoming::Pong => {}
            Incoming::Close(code) => return Err(End::Closed(code)),
        }
        Ok(())
    };
    let mut arrived = Ok(Arrived::Bytes(0));
    loop {
        // What came before the end is answered, whatever the end is.
        if !out.is_empty() {
            if write.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
        let close = match arrived {
            Ok(Arrived::Bytes(_)) => {
                arrived = inbound.read(|incoming: Incoming<'_>| take(&mut out, incoming)).await;
                continue;
            }
            Ok(Arrived::End) => return,
            Err(End::Closed(code)) => code.map(|code| (CloseCode(code), "")),
            Err(End::Broken(Broken { code, reason })) => Some((code, reason)),
        };
        let mut body = Vec::new();
        if let Some((code, reason)) = close {
            body.extend_from_slice(&code.0.to_be_bytes());
            body.extend_from_slice(reason.as_bytes());
        }
        frames::write(&mut out, OpCode::Close, false, &body);
        if write.write_all(&out).await.is_ok() && write.shutdown().await.is_ok() {
            inbound.discard(GOODBYE).await;
        }
        return;
    }
}
