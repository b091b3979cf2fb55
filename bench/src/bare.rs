//! The bare WebSocket server: what hyper and fastwebsockets take by themselves. It upgrades and echoes,
//! as the example of fastwebsockets does. No token, no session, no queue.

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocket, WebSocketError};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
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
    tokio::spawn(echo(upgraded));
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
