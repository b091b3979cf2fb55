//! The bare WebSocket server: what hyper and fastwebsockets take by themselves. It upgrades and echoes,
//! as the example of fastwebsockets does; what is said at `/broadcast` it says to all others there. No token,
//! no session, no queue.

use std::convert::Infallible;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastwebsockets::{
    FragmentCollector, FragmentCollectorRead, Frame, OpCode, Payload, Role, WebSocket, WebSocketError,
};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Failed, descriptors};

/// The environment variables that name a certificate and its key: with them it speaks TLS.
pub(crate) const CERT_FILE: &str = "TASKYARD_BENCH_BARE_CERT";
pub(crate) const KEY_FILE: &str = "TASKYARD_BENCH_BARE_KEY";

/// Runs the bare server, on as many threads as there are cores.
pub(crate) fn serve() -> Result<(), Failed> {
    descriptors::raise();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(listen())
}

async fn listen() -> Result<(), Failed> {
    let tls = acceptor()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    crate::print(&listener.local_addr()?.to_string());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match tls.clone() {
            None => drop(tokio::spawn(connection(stream))),
            Some(tls) => drop(tokio::spawn(async move {
                // Boxed, as the broker has it: the handshake's room is not kept.
                if let Ok(stream) = Box::pin(tls.accept(stream)).await {
                    connection(Box::new(stream)).await;
                }
            })),
        }
    }
}

/// TLS on the broker's terms: sessions are resumed by one ticket, and nothing of them is kept.
fn acceptor() -> Result<Option<TlsAcceptor>, Failed> {
    let (Some(cert), Some(key)) = (std::env::var_os(CERT_FILE), std::env::var_os(KEY_FILE)) else {
        return Ok(None);
    };
    let chain = vec![CertificateDer::from_pem_file(cert)?];
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    // A connection that fails is over, and nobody here wants to know why.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(upgrade))
        .with_upgrades()
        .await;
}

async fn upgrade(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    if let Ok(accept) = STANDARD.encode(hash.finalize()).parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let upgraded = hyper::upgrade::on(&mut request);
    match request.uri().path() {
        // From before the answer on: whoever has it hears all that is said.
        "/broadcast" => drop(tokio::spawn(broadcaster(upgraded, SAID.subscribe()))),
        _ => drop(tokio::spawn(echo(upgraded))),
    }
    Ok(response)
}

async fn echo(upgraded: OnUpgrade) -> Result<(), WebSocketError> {
    let Ok(upgraded) = upgraded.await else { return Ok(()) };
    let socket = WebSocket::after_handshake(TokioIo::<Upgraded>::new(upgraded), Role::Server);
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

/// Messages that a socket may be behind, a power of two: more than are ever under way.
const BEHIND_MAX: usize = 4096;
/// Frames of one write: as many as one `writev` takes with little ado.
const FRAMES_PER_WRITE: usize = 64;

/// A frame for all but its speaker.
#[derive(Clone)]
struct Said {
    speaker: u64,
    frame: Bytes,
}

static SAID: LazyLock<broadcast::Sender<Said>> = LazyLock::new(|| broadcast::channel(BEHIND_MAX).0);
static SPEAKERS: AtomicU64 = AtomicU64::new(0);

/// Encodes each frame once, and hands it to all. Each socket writes by itself what has come meanwhile, at
/// once and without another copy.
async fn broadcaster(upgraded: OnUpgrade, mut said: broadcast::Receiver<Said>) -> Result<(), WebSocketError> {
    let Ok(upgraded) = upgraded.await else { return Ok(()) };
    // Over TLS it has another type, and is not measured.
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return Ok(()) };
    let (read, mut write) = parts.io.into_inner().into_split();
    let me = SPEAKERS.fetch_add(1, Ordering::Relaxed);
    let writer = tokio::spawn(async move {
        let mut frames = Vec::new();
        loop {
            match said.recv().await {
                Ok(one) => frames.push(one),
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return Ok::<_, std::io::Error>(()),
            }
            while frames.len() < FRAMES_PER_WRITE
                && let Ok(one) = said.try_recv()
            {
                frames.push(one);
            }
            frames.retain(|one| one.speaker != me);
            write_frames(&mut write, &frames).await?;
            frames.clear();
        }
    });
    // What is never written is closed by its reader's end.
    let (read, _) = fastwebsockets::after_handshake_split(read, tokio::io::sink(), Role::Server);
    let mut read = FragmentCollectorRead::new(read);
    let mut nothing = async |_: Frame<'_>| Ok::<_, WebSocketError>(());
    while let Ok(frame) = read.read_frame(&mut nothing).await {
        if !matches!(frame.opcode, OpCode::Text | OpCode::Binary) {
            break;
        }
        let frame = Frame::new(true, frame.opcode, None, Payload::Borrowed(&frame.payload));
        // Nobody may be there.
        let _ = SAID.send(Said { speaker: me, frame: encoded(frame) });
    }
    writer.abort();
    Ok(())
}

fn encoded(mut frame: Frame<'_>) -> Bytes {
    let mut bytes = Vec::with_capacity(frame.payload.len() + 14);
    frame.write(&mut bytes);
    bytes.into()
}

async fn write_frames(write: &mut (impl AsyncWrite + Unpin), frames: &[Said]) -> std::io::Result<()> {
    let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
    for (slice, one) in slices.iter_mut().zip(frames) {
        *slice = IoSlice::new(&one.frame);
    }
    let mut left = &mut slices[..frames.len()];
    while !left.is_empty() {
        let written = write.write_vectored(left).await?;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}
