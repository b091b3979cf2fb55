//! A network that blinks, a broker that restarts: what runs goes on, and runs once.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::support::{Broker, Child, until};

/// A command that says when it began, and waits until it may end.
fn script(begun: &Path, go: &Path) -> String {
    format!(
        "echo run >> '{}'; while [ ! -e '{}' ]; do sleep 0.02; done; echo result",
        begun.display(),
        go.display()
    )
}

fn runs(begun: &Path) -> usize {
    std::fs::read_to_string(begun).map_or(0, |text| text.lines().count())
}

#[test]
fn a_command_goes_on_while_the_broker_is_killed_and_started_again() {
    let mut broker = Broker::start();
    let (begun, go) = (broker.scratch().join("begun"), broker.scratch().join("go"));
    let arguments = ["work", "q", "--name", "steady", "--", "sh", "-c", &script(&begun, &go)];
    let worker = Child::of(&mut broker.command(&arguments));
    let id = broker.submit("q", &json!({"payload": 1}));
    until("the command has begun", || (runs(&begun) == 1).then_some(()));
    // Its lease is in the log once something that was said later is.
    broker.submit("idle", &json!({}));
    broker.kill();
    broker.start_again_at_its_port();
    let mut other = broker.worker("other");
    other.subscribe("q", 10);
    until("its worker is back", || {
        let workers = broker.get("/v1/workers").json()["workers"].clone();
        let back =
            |w: &serde_json::Value| w["worker"] == "steady" && w["away"] == false && w["in_flight"] == 1;
        workers.as_array().unwrap().iter().any(back).then_some(())
    });
    std::fs::write(&go, "").unwrap();
    until("it is done", || (broker.task(&id)["state"] == "done").then_some(()));
    let task = broker.task(&id);
    assert_eq!((&task["attempt"], &task["worker"]), (&json!(1), &json!("steady")), "{task}");
    assert_eq!(runs(&begun), 1, "it ran once");
    assert!(other.so_far().is_empty(), "nobody else was given it");
    worker.signal("TERM");
    let output = worker.output();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.err.contains("go on"), "its user was told: {output:?}");
}

/// Passes bytes on to a broker, until it is told to drop all connections.
struct Wire {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(broker: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire { address: listener.local_addr().unwrap(), open: Arc::default() };
        let open = wire.open.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(broker)) else { continue };
                open.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (from, to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())] {
                    let (from, to) = (from.unwrap(), to.unwrap());
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        wire
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // One that has ended by itself is cut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_command_goes_on_while_its_connection_is_cut() {
    let broker = Broker::in_memory();
    let wire = Wire::to(broker.address);
    let (begun, go) = (broker.scratch().join("begun"), broker.scratch().join("go"));
    let mut command =
        broker.command(&["work", "q", "--name", "steady", "--", "sh", "-c", &script(&begun, &go)]);
    command.env("TASKYARD_URL", format!("http://{}", wire.address));
    let worker = Child::of(&mut command);
    let id = broker.submit("q", &json!({"payload": 1}));
    until("the command has begun", || (runs(&begun) == 1).then_some(()));
    let mut other = broker.worker("other");
    other.subscribe("q", 10);
    for _ in 0..3 {
        let session = || {
            let workers = broker.get("/v1/workers").json()["workers"].clone();
            let steady = workers.as_array().unwrap().iter().find(|w| w["worker"] == "steady").cloned()?;
            (steady["away"] == false).then(|| steady["session"].clone())
        };
        let before = until("it is connected", session);
        wire.cut();
        until("it is back", || session().filter(|session| *session != before));
    }
    std::fs::write(&go, "").unwrap();
    until("it is done", || (broker.task(&id)["state"] == "done").then_some(()));
    assert_eq!((runs(&begun), &broker.task(&id)["attempt"]), (1, &json!(1)));
    assert!(other.so_far().is_empty(), "nobody else was given it");
    worker.signal("TERM");
    assert_eq!(worker.output().code, Some(0));
}
