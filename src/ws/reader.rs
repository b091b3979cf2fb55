//! From a socket's messages to commands.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use taskyard_proto::codec::{ClientFrame, decode_client};
use taskyard_proto::{
    ClientMessage, CloseCode, Encoding, Hello, Pong, Rejection, Request, RequestId, Response, ServerMessage,
    Subscribe, WorkerName,
};
use tokio::io::AsyncRead;
use tokio::time::Sleep;

use super::Settings;
use super::frames::{Assembly, Broken, Incoming};
use super::handshake::{Implied, Opening};
use super::inbound::{Arrived, Inbound};
use super::text;
use crate::broker::{Broker, Item, submit_command};
use crate::core::{Command, Origin, SessionId};
use crate::outbox::{Closing, Outbox};

/// Frames that are not JSON or MessagePack, or too deep, that a socket may send in a minute.
const UNDECODABLE_PER_MINUTE: u32 = 10;
/// How long a peer may take to answer our close frame, and to end the connection.
pub(super) const CLOSE_ANSWER: Duration = Duration::from_secs(2);

/// Reads one socket.
pub struct Reader {
    session: SessionId,
    outbox: Arc<Outbox>,
    broker: Broker,
    settings: Arc<Settings>,
    opening: Opening,
    /// A hello was said or implied.
    introduced: bool,
    /// The URL said it: text words settle.
    wordy: bool,
    /// The first frame has set the encoding of answers.
    encoding_set: bool,
    items: Vec<Item>,
    bytes: usize,
    undecodable: (Instant, u32),
    heard: Instant,
    /// When it was pinged; none: it was heard since.
    pinged: Option<Instant>,
}

/// Why a socket is no longer read.
enum End {
    /// Say this, then wait a little for the peer's answer.
    Say(Closing),
    /// Nothing more to say.
    Quiet,
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        say(broken.code, broken.reason)
    }
}

impl Reader {
    /// A reader of a socket that has just been opened.
    pub fn new(
        session: SessionId,
        outbox: Arc<Outbox>,
        broker: Broker,
        settings: Arc<Settings>,
        opening: Opening,
    ) -> Reader {
        let encoding_set = opening.encoding.is_some();
        Reader {
            session,
            outbox,
            broker,
            settings,
            opening,
            introduced: false,
            wordy: false,
            encoding_set,
            items: Vec::new(),
            bytes: 0,
            undecodable: (Instant::now(), 0),
            heard: Instant::now(),
            pinged: None,
        }
    }

    /// Reads until the socket ends. `early` is what came before the upgrade was answered.
    pub async fn run<R: AsyncRead + Unpin>(&mut self, read: R, early: Bytes) {
        let assembly = Assembly::new(self.settings.message_bytes, self.opening.compression.is_some());
        let mut inbound = Inbound::new(read, assembly);
        if let Some(implied) = self.opening.implied.take() {
            let Implied { hello, subscribe } = *implied;
            self.wordy = true;
            self.introduce(Box::new(hello), None, subscribe);
        }
        let end = match inbound.feed(&early, &mut |incoming| self.incoming(incoming)) {
            Ok(()) => {
                drop(early);
                self.read_all(&mut inbound).await
            }
            Err(end) => end,
        };
        // What came before the end counts.
        let _ = self.hand_over().await;
        if let End::Say(closing) = end {
            self.outbox.close_as(closing);
            inbound.discard(CLOSE_ANSWER).await;
        }
        self.outbox.close_as(Closing { code: None, reason: String::new() });
    }

    async fn read_all<R: AsyncRead + Unpin>(&mut self, inbound: &mut Inbound<R>) -> End {
        let mut alarm = pin!(tokio::time::sleep_until(self.alarm_at().into()));
        loop {
            if self.hand_over().await.is_err() {
                return End::Quiet;
            }
            let read = poll_fn(|context| {
                if let Poll::Ready(read) = inbound.poll_read(context, &mut |incoming| self.incoming(incoming))
                {
                    return Poll::Ready(Some(read));
                }
                alarm.as_mut().poll(context).map(|()| None)
            });
            match read.await {
                Some(Ok(Arrived::Bytes)) => self.was_heard(),
                Some(Ok(Arrived::End)) => return End::Quiet,
                Some(Err(end)) => {
                    self.was_heard();
                    return end;
                }
                None => {
                    if let Err(end) = self.alarm(alarm.as_mut()) {
                        return end;
                    }
                }
            }
        }
    }

    /// Any byte is a sign of life, also one of a message that takes long to arrive.
    fn was_heard(&mut self) {
        self.heard = Instant::now();
        self.pinged = None;
        if self.outbox.was_listening() {
            // Before what came with it: a worker that is heard again may be given tasks again.
            self.items.insert(0, Item::Command(Command::Heard { session: self.session }));
        }
    }

    /// When to look next whether the peer still lives. The alarm is not moved at each byte: when it
    /// goes off too early it is only set again.
    fn alarm_at(&self) -> Instant {
        match self.pinged {
            Some(pinged) => pinged + self.settings.ping_timeout,
            None => {
                // A tenth of jitter, from the session's number, so that connections made together do
                // not ping together.
                let jitter = self.settings.ping.mul_f64((self.session.0 % 100) as f64 / 1000.0);
                self.heard + self.settings.ping - jitter
            }
        }
    }

    /// Pings a peer that is silent, and gives up on it in the end.
    fn alarm(&mut self, alarm: Pin<&mut Sleep>) -> Result<(), End> {
        let now = Instant::now();
        if self.alarm_at() <= now {
            if self.pinged.is_some() {
                let reason = "nothing was heard from the client, not even a pong";
                return Err(say(CloseCode::PING_TIMEOUT, reason));
            }
            self.outbox.ping();
            self.pinged = Some(now);
        }
        // Heard meanwhile, the peer is to be pinged again before its time to answer would have ended.
        alarm.reset(self.alarm_at().min(now + self.settings.ping).into());
        Ok(())
    }

    fn incoming(&mut self, incoming: Incoming<'_>) -> Result<(), End> {
        match incoming {
            Incoming::Message(encoding, message) => self.message(encoding, message),
            Incoming::Ping(body) => {
                self.outbox.pong(body);
                Ok(())
            }
            Incoming::Pong => Ok(()),
            Incoming::Close(code) => {
                Err(End::Say(Closing { code: code.map(CloseCode), reason: String::new() }))
            }
        }
    }

    async fn hand_over(&mut self) -> Result<(), crate::broker::Gone> {
        let bytes = std::mem::take(&mut self.bytes);
        self.broker.send(&mut self.items, bytes).await
    }

    fn message(&mut self, encoding: Encoding, message: &[u8]) -> Result<(), End> {
        match self.opening.encoding {
            Some(negotiated) if negotiated != encoding => {
                let reason = match negotiated {
                    Encoding::Json => "JSON was negotiated: send text frames",
                    Encoding::MessagePack => "MessagePack was negotiated: send binary frames",
                };
                return Err(say(CloseCode::UNSUPPORTED_DATA, reason));
            }
            None if !self.encoding_set => {
                self.encoding_set = true;
                self.outbox.set_encoding(encoding);
            }
            _ => {}
        }
        if self.wordy
            && encoding == Encoding::Json
            && let Some(command) = text::command(self.session, message)
        {
            self.items.push(Item::Command(command));
            return Ok(());
        }
        self.bytes += message.len();
        match decode_client(encoding, message) {
            Ok(ClientFrame::One(item)) => self.item(item),
            Ok(ClientFrame::Many(items)) => {
                for item in items {
                    self.item(item);
                }
            }
            Err(error) => {
                if self.undecodable.0.elapsed() > Duration::from_secs(60) {
                    self.undecodable = (Instant::now(), 0);
                }
                self.undecodable.1 += 1;
                if self.undecodable.1 >= UNDECODABLE_PER_MINUTE {
                    return Err(say(CloseCode::POLICY, "ten frames in a minute could not be read"));
                }
                self.relay(None, error.error());
            }
        }
        Ok(())
    }

    fn item(&mut self, item: Result<Request, Rejection>) {
        match item {
            Ok(Request { id, message: ClientMessage::Ping(_) }) => {
                // Answered here, so that a slow disk does not look like a dead broker.
                if id.is_some() {
                    self.outbox.push_one(Response { reference: id, message: Pong {}.into() });
                }
            }
            Ok(Request { id, message: ClientMessage::Hello(hello) }) if !self.introduced => {
                self.introduce(hello, id, None)
            }
            Ok(Request { id, message }) => {
                self.imply_hello();
                let origin = Origin::Session(self.session, id);
                match message {
                    ClientMessage::Submit(submit) => match submit_command(submit, self.broker.clock()) {
                        Ok((_, command)) => self.items.push(Item::Command(command(origin))),
                        Err(refused) => {
                            let Origin::Session(_, id) = origin else { return };
                            self.relay(id, refused.0);
                        }
                    },
                    message => self.items.push(Item::Command(Command::Message { origin, message })),
                }
            }
            Err(Rejection { id, error }) => {
                self.imply_hello();
                self.relay(id, error);
            }
        }
    }

    fn relay(&mut self, reference: Option<RequestId>, message: impl Into<ServerMessage>) {
        let response = Response { reference, message: message.into() };
        self.items.push(Item::Relay(self.session, response));
    }

    fn imply_hello(&mut self) {
        if !self.introduced {
            self.introduce(Box::new(Hello::empty()), None, None);
        }
    }

    fn introduce(&mut self, hello: Box<Hello>, reference: Option<RequestId>, subscribe: Option<Subscribe>) {
        self.introduced = true;
        if hello.batch {
            self.outbox.take_arrays();
        }
        let made_up_name =
            WorkerName::parse(&format!("w-{:08x}{:08x}", self.session.0, rand::random::<u32>()))
                .expect("hexadecimal digits behind a letter are a name");
        let open = Command::Open { session: self.session, hello, reference, made_up_name, subscribe };
        self.items.push(Item::Command(open));
    }
}

fn say(code: CloseCode, reason: &str) -> End {
    End::Say(Closing { code: Some(code), reason: reason.into() })
}
