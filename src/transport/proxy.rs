//! The PROXY protocol, versions 1 and 2: the line or the block with which a load balancer that passes
//! bytes on says whose they are, before anything else.
//!
//! It is read where it is turned on and the peer is trusted, and is required there: a connection
//! without it is refused, since a header that may be missing is one that a client may write itself.
//!
//! The parser is our own: the format is a line of text or a fixed block, and what matters here is that
//! not one byte is read past it, for what follows is a TLS handshake or a request.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::standstill;

/// How long the header may take: a proxy sends it with the connection.
pub const HEADER_TIME: Duration = Duration::from_secs(5);

/// The longest header of version 1, its line end included; the specification's number.
const V1_BYTES_MAX: usize = 107;
/// What a header of version 1 begins with.
const V1_START: &[u8] = b"PROXY ";
/// What a header of version 2 begins with.
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const V2_FIXED_BYTES: usize = 16;
/// How much may follow: addresses of either family (36 bytes) and the extensions of known proxies,
/// which are far shorter. Longer ones are refused; the specification has proxies keep the header below
/// one small segment of TCP.
const V2_REST_BYTES_MAX: usize = 520;

/// Why a connection has no PROXY header.
#[derive(Debug)]
pub enum ProxyError {
    /// It took longer than [`HEADER_TIME`].
    Late,
    /// What came is none.
    Malformed(&'static str),
    /// The connection failed, or ended first.
    Io(io::Error),
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::Late => {
                write!(f, "no PROXY header came within {HEADER_TIME:?}: does the proxy send one?")
            }
            ProxyError::Malformed(problem) => write!(
                f,
                "the connection does not begin with a PROXY header ({problem}): have the proxy send one, version 1 \
                 or 2, or turn the PROXY protocol off here"
            ),
            ProxyError::Io(error) => write!(f, "the connection ended within its PROXY header: {error}"),
        }
    }
}

impl std::error::Error for ProxyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ProxyError::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> ProxyError {
        ProxyError::Io(error)
    }
}

/// Reads the header, exactly its bytes, and gives the client's address in it. `None` where the proxy
/// speaks for itself, as in a health check, or names none that is one of TCP: then the socket's own
/// address counts.
pub async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyError> {
    match standstill::timeout(HEADER_TIME, read(stream)).await {
        Ok(result) => result,
        Err(_) => Err(ProxyError::Late),
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyError> {
    let mut start = [0; V2_START.len()];
    let mut filled = 0;
    // No header of either version is shorter than this, so that much may be asked for at once. What
    // cannot become one is refused at its first wrong byte: the peer may wait for an answer before it
    // says more.
    while filled < start.len() {
        match stream.read(&mut start[filled..]).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => filled += count,
        }
        let came = &start[..filled];
        let v1 = &V1_START[..filled.min(V1_START.len())];
        if !came.starts_with(v1) && !V2_START.starts_with(came) {
            return Err(ProxyError::Malformed("other bytes came first"));
        }
    }
    if start == *V2_START { read_v2(stream).await } else { read_v1(stream, &start).await }
}

async fn read_v1<S: AsyncRead + Unpin>(
    stream: &mut S,
    start: &[u8],
) -> Result<Option<SocketAddr>, ProxyError> {
    let mut line = [0; V1_BYTES_MAX];
    line[..start.len()].copy_from_slice(start);
    let mut length = start.len();
    // Byte by byte: the line's end is known only when it is there, and what follows is not ours. It is
    // once a connection, and most proxies can send version 2.
    while !line[..length].ends_with(b"\r\n") {
        if length == line.len() {
            return Err(ProxyError::Malformed("its line is longer than 107 bytes"));
        }
        line[length] = stream.read_u8().await?;
        length += 1;
    }
    let line = std::str::from_utf8(&line[V1_START.len()..length - 2])
        .map_err(|_| ProxyError::Malformed("its line is no text"))?;
    // What follows UNKNOWN is to be ignored.
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(None);
    }
    let wrong = || ProxyError::Malformed("its line is none like `PROXY TCP4 192.0.2.1 192.0.2.2 40000 443`");
    let mut words = line.split(' ');
    let (Some(family), Some(source), Some(destination), Some(source_port), Some(destination_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong());
    };
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let port = |text: &str| -> Option<u16> {
        // The number as it is printed: no sign, no leading zero.
        let number: u16 = text.parse().ok()?;
        (number.to_string() == text).then_some(number)
    };
    let parsed = (address(source), port(source_port), address(destination), port(destination_port));
    match parsed {
        (Some(address), Some(port), Some(_), Some(_)) => {
            Ok(Some(SocketAddr::new(address.to_canonical(), port)))
        }
        _ => Err(wrong()),
    }
}

async fn read_v2<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyError> {
    let mut fixed = [0; V2_FIXED_BYTES - V2_START.len()];
    stream.read_exact(&mut fixed).await?;
    let [version_command, family, length @ ..] = fixed;
    let length = usize::from(u16::from_be_bytes(length));
    if version_command >> 4 != 2 {
        return Err(ProxyError::Malformed("its version is not 2"));
    }
    let is_local = match version_command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(ProxyError::Malformed("its command is neither LOCAL nor PROXY")),
    };
    if length > V2_REST_BYTES_MAX {
        return Err(ProxyError::Malformed("it is longer than 536 bytes"));
    }
    let mut rest = [0; V2_REST_BYTES_MAX];
    let rest = &mut rest[..length];
    stream.read_exact(rest).await?;
    if is_local {
        return Ok(None);
    }
    // The family above, the protocol below: 1 is a stream.
    let client = match family {
        0x11 => rest.first_chunk::<12>().map(|addresses| {
            let [a, b, c, d, .., high, low, _, _] = *addresses;
            SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
        }),
        0x21 => rest.first_chunk::<36>().map(|addresses| {
            let (source, others) = addresses.split_first_chunk::<16>().expect("16 of 36 bytes");
            let source = IpAddr::from(Ipv6Addr::from(*source));
            SocketAddr::new(source.to_canonical(), u16::from_be_bytes([others[16], others[17]]))
        }),
        // Unknown to the proxy, a datagram, or a Unix socket: there is no address of TCP in it.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => return Ok(None),
        _ => return Err(ProxyError::Malformed("its family or protocol is not one of the specification")),
    };
    match client {
        Some(client) => Ok(Some(client)),
        None => Err(ProxyError::Malformed("it is too short for its addresses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt as _, duplex};

    /// What a header gives, and what is left unread of `bytes`.
    async fn header(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, Vec<u8>) {
        let mut stream = bytes;
        let result = read_header(&mut stream).await;
        (result, stream.to_vec())
    }

    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_START.to_vec();
        bytes.extend([version_command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4_addresses() -> Vec<u8> {
        [&[203, 0, 113, 5, 10, 0, 0, 1][..], &40_000_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    fn v6_addresses(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &40_000_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_after_them() {
        let extension = [&v4_addresses()[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        let padded = [v4_addresses(), vec![0; V2_REST_BYTES_MAX - 12]].concat();
        for (header_bytes, address) in [
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\n".to_vec(), Some("203.0.113.5:40000")),
            (b"PROXY TCP6 2001:db8::5 ::1 40000 443\r\n".to_vec(), Some("[2001:db8::5]:40000")),
            (b"PROXY TCP6 ::ffff:203.0.113.5 ::1 1 2\r\n".to_vec(), Some("203.0.113.5:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4_addresses()), Some("203.0.113.5:40000")),
            (v2(0x21, 0x11, &extension), Some("203.0.113.5:40000")),
            (v2(0x21, 0x11, &padded), Some("203.0.113.5:40000")),
            (v2(0x21, 0x21, &v6_addresses("2001:db8::5")), Some("[2001:db8::5]:40000")),
            (v2(0x21, 0x21, &v6_addresses("::ffff:203.0.113.5")), Some("203.0.113.5:40000")),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, &v4_addresses()), None),
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let address = address.map(|text| text.parse::<SocketAddr>().unwrap());
            for after in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
                let (result, left) = header(&[&header_bytes, after].concat()).await;
                assert_eq!(result.unwrap(), address, "{header_bytes:?}");
                assert_eq!(left, after, "{header_bytes:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX));
        for (bytes, problem) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "other bytes"),
            (b"\x16\x03\x01\x02\0\x01".to_vec(), "other bytes"),
            (b"PROXX TCP4 ".to_vec(), "other bytes"),
            (b"\r\n\r\n\0\r\nQUIX\n".to_vec(), "other bytes"),
            (long.into_bytes(), "107"),
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 40000\r\n".to_vec(), "none like"),
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443 1\r\n".to_vec(), "none like"),
            (b"PROXY TCP4  203.0.113.5 10.0.0.1 40000 443\r\n".to_vec(), "none like"),
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 65536 443\r\n".to_vec(), "none like"),
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 +1 443\r\n".to_vec(), "none like"),
            (b"PROXY TCP4 203.0.113.5 10.0.0.1 01 443\r\n".to_vec(), "none like"),
            (b"PROXY TCP4 2001:db8::5 ::1 40000 443\r\n".to_vec(), "none like"),
            (b"PROXY TCP6 203.0.113.5 10.0.0.1 40000 443\r\n".to_vec(), "none like"),
            (b"PROXY UDP4 203.0.113.5 10.0.0.1 40000 443\r\n".to_vec(), "none like"),
            (b"PROXY UNKNOWNS\r\n".to_vec(), "none like"),
            (b"PROXY \xff\xff\xff\xff\xff\xff\xff\r\n".to_vec(), "no text"),
            (v2(0x11, 0x11, &v4_addresses()), "version"),
            (v2(0x22, 0x11, &v4_addresses()), "command"),
            (v2(0x21, 0x41, &v4_addresses()), "family"),
            (v2(0x21, 0x11, &v4_addresses()[..11]), "too short"),
            (v2(0x21, 0x21, &v6_addresses("::1")[..35]), "too short"),
            (v2(0x21, 0x11, &[0; V2_REST_BYTES_MAX + 1]), "536"),
            (b"PROXY TCP4 203.0.".to_vec(), "ended within"),
            (v2(0x21, 0x11, &v4_addresses())[..20].to_vec(), "ended within"),
            (Vec::new(), "ended within"),
        ] {
            let error = header(&bytes).await.0.unwrap_err().to_string();
            assert!(error.contains(problem), "{:?}: {error}", String::from_utf8_lossy(&bytes));
        }
    }

    #[tokio::test]
    async fn a_header_may_come_in_pieces_and_a_wrong_one_is_refused_at_once() {
        let (mut ours, mut theirs) = duplex(1);
        let bytes = v2(0x21, 0x11, &v4_addresses());
        let (result, written) = tokio::join!(read_header(&mut ours), theirs.write_all(&bytes));
        written.unwrap();
        assert_eq!(result.unwrap(), Some("203.0.113.5:40000".parse().unwrap()));
        // The peer stays silent after this, and is not waited for.
        theirs.write_all(b"E").await.unwrap();
        assert!(matches!(read_header(&mut ours).await, Err(ProxyError::Malformed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_does_not_come_is_not_waited_for() {
        let (mut ours, mut theirs) = duplex(64);
        theirs.write_all(b"PROXY TCP4").await.unwrap();
        let error = read_header(&mut ours).await.unwrap_err();
        assert!(matches!(error, ProxyError::Late), "{error}");
    }
}
