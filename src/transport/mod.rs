//! What a connection goes over: TCP as it is, or TLS; behind proxies that say whose it is, or not.
//!
//! These are leaves: they know sockets, files and addresses, and nothing of the broker.

mod certificate;
mod material;
pub mod proxy;
pub mod tls;
pub mod trust;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

pub use proxy::ProxyError;
pub use tls::{AcceptError, ClientAuth, Tls, TlsConfig, TlsError};
pub use trust::{NetworkError, TrustedProxies};

/// An accepted connection. Options of the socket, `TCP_NODELAY` above all, are set before it becomes
/// one.
///
/// Over TLS a write may be taken before all of it is sent: who has written what there is to say must
/// flush.
#[derive(Debug)]
pub enum Stream {
    /// TCP as it is.
    Plain(TcpStream),
    /// TLS; in a box, for it is some forty times as large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The two halves, for a task each. Those of TCP share no lock; those of TLS share the session
    /// under one, which is held for one poll at a time.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Plain(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Plain(read), WriteHalf::Plain(write))
            }
            Stream::Tls(stream) => {
                // Out of its box: the halves put it into an allocation of their own.
                let (read, write) = tokio::io::split(*stream);
                (ReadHalf::Tls(read), WriteHalf::Tls(write))
            }
        }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// The name in the certificate that the client has proved to own, see [`tls::peer_name`].
    pub fn peer_name(&self) -> Option<String> {
        match self {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => tls::peer_name(stream),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        Stream::Plain(stream)
    }
}

impl From<Box<TlsStream<TcpStream>>> for Stream {
    fn from(stream: Box<TlsStream<TcpStream>>) -> Stream {
        Stream::Tls(stream)
    }
}

/// The half of a [`Stream`] that reads.
#[derive(Debug)]
pub enum ReadHalf {
    /// Of TCP as it is.
    Plain(OwnedReadHalf),
    /// Of TLS.
    Tls(tokio::io::ReadHalf<TlsStream<TcpStream>>),
}

/// The half of a [`Stream`] that writes. Dropped, that of TCP ends the direction; that of TLS ends
/// nothing until its other half is dropped too, and says no goodbye: shut it down.
#[derive(Debug)]
pub enum WriteHalf {
    /// Of TCP as it is.
    Plain(OwnedWriteHalf),
    /// Of TLS.
    Tls(tokio::io::WriteHalf<TlsStream<TcpStream>>),
}

/// Reads from whichever it is.
macro_rules! reads {
    ($kind:ident) => {
        impl AsyncRead for $kind {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
                    $kind::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
                }
            }
        }
    };
}

/// Writes to whichever it is.
macro_rules! writes {
    ($kind:ident) => {
        impl AsyncWrite for $kind {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $kind::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
                    $kind::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $kind::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
                    $kind::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $kind::Plain(stream) => stream.is_write_vectored(),
                    $kind::Tls(stream) => stream.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
                    $kind::Tls(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                    $kind::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

reads!(Stream);
reads!(ReadHalf);
writes!(Stream);
writes!(WriteHalf);

#[cfg(test)]
mod tests;
