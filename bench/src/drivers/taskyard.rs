//! Taskyard itself, through the connection layer of its Rust client.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::drivers::server::{Server, Spec};
use crate::drivers::{Place, QUEUE};
use crate::{Failed, Wire, broker};

/// How it is set up, and spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) engine: &'static str,
    pub(crate) wire: Wire,
    /// Messages travel in arrays.
    pub(crate) batch: bool,
    /// Tasks are delivered before they are durable.
    pub(crate) early: bool,
}

pub(crate) async fn start(place: &Place, setting: Setting) -> Result<Server, Failed> {
    let spec = Spec::new(broker::program()?, "taskyard", &place.dir)?;
    let address = spec.address.to_string();
    let store = spec.directory.join("store");
    let spec =
        spec.args(["serve", "--listen", &address, "--engine", setting.engine, "--data-dir"]).arg(store);
    let server = Server::start(spec).await?;
    if setting.early {
        let body = r#"{"deliver":"early"}"#;
        http(server.address(), "PUT", &format!("/v1/queues/{QUEUE}"), body)?;
    }
    Ok(server)
}

pub(crate) fn version() -> Option<String> {
    super::server::version(broker::program().ok()?.as_ref() as &Path, "--version")
}

/// One request, and the body of its answer.
fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<String, Failed> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without an end of its head")?;
    if !head.starts_with("HTTP/1.1 2") {
        return Err(format!("{method} {path}: {} {body}", head.lines().next().unwrap_or_default()).into());
    }
    Ok(body.to_owned())
}
