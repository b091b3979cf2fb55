//! The bare server as a system: what reading, appending, syncing and forwarding cost by themselves.

use clap::ValueEnum as _;

use bytes::BytesMut;

use crate::Failed;
use crate::drivers::frames;
use crate::drivers::server::{Server, Spec};
use crate::drivers::{Dialect, Nth, Place, Producer, Role, Step, Worker};
use crate::floor::{Framing, ID_BYTES};

pub(crate) async fn start(place: &Place, framing: Framing, sync: bool) -> Result<Server, Failed> {
    let spec = Spec::new(std::env::current_exe()?, "floor", &place.dir)?;
    let file = spec.directory.join("log");
    let address = spec.address.to_string();
    let framing = framing.to_possible_value().ok_or("every framing has a name")?.get_name().to_owned();
    let spec = spec
        .args(["floor-server", "--listen", &address, "--framing", &framing])
        .args(["--credit", &place.credit.to_string(), "--file"])
        .arg(file);
    Server::start(if sync { spec.arg("--sync") } else { spec }).await
}

pub(crate) struct Floor {
    pub(crate) framing: Framing,
}

impl Dialect for Floor {
    fn open(&self, role: Role, _: Nth) -> Vec<Step> {
        let kind = if role == Role::Worker { frames::WORKER } else { frames::PRODUCER };
        vec![match self.framing {
            Framing::Tcp => Step::say([kind]),
            Framing::Websocket => {
                let request = frames::upgrade_request(&format!("/{}", char::from(kind)));
                Step::new(request, |input| Ok(frames::head(input)))
            }
        }]
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Side { framing: self.framing })
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Side { framing: self.framing })
    }
}

struct Side {
    framing: Framing,
}

impl Side {
    fn put(&self, out: &mut Vec<u8>, body: &[u8]) {
        match self.framing {
            Framing::Tcp => frames::put(out, body),
            Framing::Websocket => frames::put_masked(out, body),
        }
    }

    fn take(&self, input: &mut BytesMut, body: &mut impl FnMut(&[u8])) -> Result<(), Failed> {
        match self.framing {
            Framing::Tcp => frames::take(input, body),
            Framing::Websocket => frames::take_websocket(input, body)?,
        }
        Ok(())
    }
}

impl Producer for Side {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.put(out, payload);
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let mut confirmed = 0;
        self.take(input, &mut |_| confirmed += 1)?;
        Ok(confirmed)
    }
}

impl Worker for Side {
    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let mut settled = 0;
        let mut failed = Ok(());
        self.take(input, &mut |body| {
            settled += 1;
            self.put(out, &body[..body.len().min(ID_BYTES)]);
            if let Err(error) = task(body) {
                failed = Err(error);
            }
        })?;
        failed.map(|()| settled)
    }
}
