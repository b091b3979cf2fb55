//! From a socket's messages to commands.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use taskyard_proto::codec::{ClientFrame, decode_client_body};
use taskyard_proto::message::UNCONFIRMED_MAX;
use taskyard_proto::{
    AnySubmit, ClientMessage, CloseCode, Done, Encoding, Error, ErrorCode, Every, FrameBody, Hello, Observe,
    Pong, Rejection, Request, RequestId, Response, RoomName, Secret, ServerMessage, Subscribe,
};
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Sleep;

use super::Context;
use super::caller::{Admission, Caller, Kind, ending};
use super::frames::{Assembly, Broken, Incoming, Take};
use super::handshake::{Implied, Opening};
use super::inbound::{Arrived, Inbound};
use super::observe::{Observation, Wish};
use super::raw::{Said, Target};
use super::text;
use crate::auth::Denied;
use crate::broker::{Gone, Item, made_up_name, submit_command};
use crate::core::{Action, Command, Open, Origin, SessionId};
use crate::metrics::Refused;
use crate::outbox::{Closing, Outbox};
use crate::standstill;

/// Frames that are not JSON or MessagePack, or too deep, that a socket may send in a minute.
const UNDECODABLE_PER_MINUTE: u32 = 10;
/// So much of what came at once is handed over before the rest is looked at: a few bytes on the wire can be
/// many messages, and compressed ones long.
const GATHER_ITEMS: usize = 1024;
const GATHER_BYTES: usize = 256 << 10;
/// How often an overview comes where that is not said, in milliseconds.
const OBSERVE_MS: u64 = 1000;
/// How long a peer may take to answer our close frame, and to end the connection.
pub(super) const CLOSE_ANSWER: Duration = Duration::from_secs(2);

/// Reads one socket.
pub struct Reader {
    session: SessionId,
    outbox: Arc<Outbox>,
    context: Arc<Context>,
    opening: Opening,
    caller: Caller,
    /// A hello was said or implied.
    introduced: bool,
    /// The URL said it: text words settle.
    wordy: bool,
    /// The URL said that frames are payloads alone: where they go.
    raw: Option<Target>,
    /// The first frame has set the encoding of answers.
    encoding_set: bool,
    /// What it is told of the broker.
    observation: Option<Observation>,
    items: Vec<Item>,
    bytes: usize,
    undecodable: (Instant, u32),
    heard: Instant,
    silence: Silence,
    /// Its time to say hello was found to be over.
    hello_overdue: bool,
}

/// What was made of the peer's silence since it was heard.
#[derive(Clone, Copy)]
enum Silence {
    Unnoticed,
    /// It was pinged then.
    Pinged(Instant),
    /// Its time to answer was found to be over: until then it may turn out that an answer had come.
    Overdue(Instant),
}

impl Take<End> for Reader {
    fn take(&mut self, incoming: Incoming<'_>) -> Result<(), End> {
        match incoming {
            Incoming::Message(body) => self.message(body),
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

    fn has_enough(&self) -> bool {
        self.items.len() >= GATHER_ITEMS
            || self.bytes >= GATHER_BYTES
            || self.outbox.room_for_submits().is_some_and(|room| room.available_permits() == 0)
    }
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
        context: Arc<Context>,
        opening: Opening,
        caller: Caller,
    ) -> Reader {
        let encoding_set = opening.encoding.is_some();
        Reader {
            session,
            outbox,
            context,
            opening,
            caller,
            introduced: false,
            wordy: false,
            raw: None,
            encoding_set,
            observation: None,
            items: Vec::new(),
            bytes: 0,
            undecodable: (Instant::now(), 0),
            heard: Instant::now(),
            silence: Silence::Unnoticed,
            hello_overdue: false,
        }
    }

    /// Reads until the socket ends. `early` is what came before the upgrade was answered.
    pub async fn run<R: AsyncRead + Unpin>(&mut self, read: R, early: Bytes) {
        let assembly = Assembly::new(self.context.settings.message_bytes, self.opening.compression.is_some());
        let mut inbound = Inbound::new(read, assembly, &early);
        drop(early);
        if let Some(implied) = self.opening.implied.take() {
            let Implied { hello, subscribe, join, raw } = *implied;
            self.wordy = true;
            if raw.is_some() {
                // Before anything is said to it.
                self.outbox.set_raw(UNCONFIRMED_MAX as usize);
            }
            self.raw = raw;
            self.introduce(Box::new(hello), None, subscribe, join);
        }
        self.note_identity();
        let end = self.read_all(&mut inbound).await;
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
            if let Some(room) = self.outbox.room_for_submits()
                && room.available_permits() == 0
            {
                // Boxed as elsewhere: few ever wait. It is never closed.
                let _ = Box::pin(room.acquire()).await;
            }
            let read = poll_fn(|context| {
                if let Poll::Ready(read) = inbound.poll_read(context, self) {
                    return Poll::Ready(Some(read));
                }
                alarm.as_mut().poll(context).map(|()| None)
            });
            match read.await {
                Some(Ok(Arrived::Bytes(count))) => {
                    self.was_heard();
                    if !self.caller.came(count) {
                        return too_much();
                    }
                }
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
        (self.heard, self.silence) = (Instant::now(), Silence::Unnoticed);
        if self.outbox.was_listening() {
            // Before what came with it: a worker that is heard again may be given tasks again.
            self.items.insert(0, Item::Command(Command::Heard { session: self.session }));
        }
    }

    /// When to look next whether the peer still lives. The alarm is not moved at each byte: when it
    /// goes off too early it is only set again.
    fn alarm_at(&self) -> Instant {
        let limit = self.context.live.load().hello_timeout;
        self.caller.deadline(limit).map_or(self.silent_at(), |deadline| deadline.min(self.silent_at()))
    }

    fn silent_at(&self) -> Instant {
        match self.silence {
            Silence::Unnoticed => {
                // A tenth of jitter, from the session's number, so that connections made together do
                // not ping together.
                let jitter = self.context.settings.ping.mul_f64((self.session.0 % 100) as f64 / 1000.0);
                self.heard + self.context.settings.ping - jitter
            }
            Silence::Pinged(at) => at + self.context.settings.ping_timeout,
            Silence::Overdue(until) => until,
        }
    }

    /// Pings a peer that is silent, and gives up on it in the end. Nobody is given up on at the first look: the process
    /// may have stood still.
    fn alarm(&mut self, alarm: Pin<&mut Sleep>) -> Result<(), End> {
        let now = Instant::now();
        let limit = self.context.live.load().hello_timeout;
        if self.caller.deadline(limit).is_some_and(|deadline| deadline <= now) {
            if self.hello_overdue {
                return Err(say(CloseCode::HELLO_TIMEOUT, "no hello with a token came in time"));
            }
            self.hello_overdue = true;
            alarm.reset((now + standstill::GRACE).into());
            return Ok(());
        }
        if self.silent_at() <= now {
            self.silence = match self.silence {
                Silence::Unnoticed => {
                    self.outbox.ping();
                    Silence::Pinged(now)
                }
                Silence::Pinged(_) => Silence::Overdue(now + standstill::GRACE),
                Silence::Overdue(_) => {
                    let reason = "nothing was heard from the client, not even a pong";
                    return Err(say(CloseCode::PING_TIMEOUT, reason));
                }
            };
        }
        // Heard meanwhile, the peer is to be pinged again before its time to answer would have ended.
        alarm.reset(self.alarm_at().min(now + self.context.settings.ping).into());
        Ok(())
    }

    async fn hand_over(&mut self) -> Result<(), Gone> {
        let bytes = std::mem::take(&mut self.bytes);
        self.context.broker.send(&mut self.items, bytes).await
    }

    fn message(&mut self, body: FrameBody<'_>) -> Result<(), End> {
        let (encoding, message) = (body.encoding(), body.bytes());
        if let Some(target) = &self.raw {
            let said = target.say(encoding, message);
            return self.payload(said, message.len());
        }
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
            match self.caller.admit(Kind::Settle) {
                Admission::Taken => self.items.push(Item::Command(command)),
                refused => self.refuse(None, refused)?,
            }
            return Ok(());
        }
        if !self.caller.said(message.len()) {
            return Err(too_much());
        }
        self.bytes += message.len();
        match decode_client_body(body) {
            Ok(ClientFrame::One(item)) => self.item(item)?,
            Ok(ClientFrame::Many(items)) => {
                for item in items {
                    self.item(item)?;
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

    /// Takes a frame that is a payload alone.
    fn payload(&mut self, said: Said, bytes: usize) -> Result<(), End> {
        match self.caller.admit(Kind::Other) {
            Admission::Taken => {}
            refused => return self.refuse(None, refused),
        }
        self.bytes += bytes;
        match said {
            Said::Submit(submit) => {
                // Its answer gives the room back.
                if let Some(Ok(place)) = self.outbox.room_for_submits().map(Semaphore::try_acquire) {
                    place.forget();
                }
                self.submit(Some(RequestId::Integer(0)), AnySubmit::Plain(submit));
            }
            Said::Publish(publish) => {
                let origin = Origin::Session(self.session, None);
                self.items.push(Item::Command(Command::Message { origin, message: publish.into() }));
            }
        }
        Ok(())
    }

    fn submit(&mut self, id: Option<RequestId>, submit: AnySubmit) {
        let clock = self.context.broker.clock();
        match submit_command(submit, self.caller.access(), clock, clock.at(self.heard)) {
            Ok((_, command)) => self.items.push(Item::Command(command(Origin::Session(self.session, id)))),
            Err(refused) => self.relay(id, refused.0),
        }
    }

    fn item(&mut self, item: Result<Request, Rejection>) -> Result<(), End> {
        let Request { id, message } = match item {
            Ok(request) => request,
            Err(Rejection { id, error, of_hello }) => {
                // A hello that was refused is no other message: what it should have been may follow.
                if self.caller.identity().is_some() && !of_hello {
                    self.imply_hello();
                }
                return match self.caller.admit(Kind::Other) {
                    Admission::Taken => {
                        self.relay(id, error);
                        Ok(())
                    }
                    refused => self.refuse(id, refused),
                };
            }
        };
        // Refused, it would have no session, or another than it asked for.
        let first = !self.introduced && matches!(message, ClientMessage::Hello(_));
        match if first { Admission::Taken } else { self.caller.admit(Kind::of(&message)) } {
            Admission::Taken => {}
            refused => {
                if self.caller.identity().is_some() {
                    self.imply_hello();
                }
                return self.refuse(id, refused);
            }
        }
        match message {
            ClientMessage::Ping(_) => {
                // Answered here, so that a slow disk does not look like a dead broker.
                if id.is_some() {
                    self.outbox.push_one(Response { reference: id, message: Pong {}.into() });
                }
            }
            ClientMessage::Hello(hello) if !self.introduced => {
                self.let_in(&id, hello.token.as_ref())?;
                self.introduce(hello, id, None, None);
            }
            message => {
                self.let_in(&id, None)?;
                self.imply_hello();
                match message {
                    ClientMessage::Submit(submit) => self.submit(id, submit),
                    ClientMessage::Observe(observe) => self.observe(id, observe),
                    message => {
                        let origin = Origin::Session(self.session, id);
                        self.items.push(Item::Command(Command::Message { origin, message }));
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks are not the core's business: they are taken where nobody waits for them.
    fn observe(&mut self, id: Option<RequestId>, observe: Observe) {
        let Some(identity) = self.caller.identity() else { return };
        if !identity.grants.may_any(Action::Observe) {
            self.context.metrics.refused(Refused::Forbidden);
            let text = format!(
                "the token of {} may not observe: that takes the permission observe:QUEUE or observe:*",
                identity.account
            );
            return self.relay(id, Error::new(ErrorCode::Forbidden, text));
        }
        let grants = identity.grants.clone();
        self.observation = None;
        if id.is_some() {
            self.relay(id.clone(), Done::PLAIN);
        }
        let every_ms = observe.every_ms.map_or(OBSERVE_MS, Every::get);
        if every_ms == 0 {
            return;
        }
        let (mark, reached) = oneshot::channel();
        self.items.push(Item::Mark(mark));
        let wish = Wish {
            reference: id,
            every: Duration::from_millis(every_ms),
            queues: observe.queues,
            grants,
            outbox: self.outbox.clone(),
        };
        self.observation = Some(Observation::begin(self.context.overviews.clone(), wish, reached));
    }

    /// Answers what is one too many, or ends a socket that does not listen.
    fn refuse(&mut self, id: Option<RequestId>, admission: Admission) -> Result<(), End> {
        match admission {
            Admission::Taken => Ok(()),
            Admission::Refused(error) => {
                self.context.metrics.refused(Refused::Messages);
                self.relay(id, error);
                Ok(())
            }
            Admission::Flood => {
                Err(say(CloseCode::RATE, "a thousand messages in a minute were sent beyond the rate"))
            }
        }
    }

    /// Whoever is not known yet must show a token now.
    fn let_in(&mut self, id: &Option<RequestId>, token: Option<&Secret>) -> Result<(), End> {
        if self.caller.identity().is_some() {
            return Ok(());
        }
        let authority = &self.context.authority;
        let identity = match token {
            None => Err(Denied::Unknown),
            Some(token) => authority.authenticate(token.expose(), crate::clock::wall()),
        };
        let refuse = |reader: &Reader, error: Error, code| {
            let reason = error.code.as_str();
            reader.outbox.push_one(Response { reference: id.clone(), message: error.into() });
            Err(say(code, reason))
        };
        match identity {
            Ok(identity) => {
                if let Err(error) = self.caller.identify(identity) {
                    self.context.metrics.refused(Refused::Connections);
                    let error = Error::new(ErrorCode::RateLimited, error.to_string());
                    return refuse(self, error, CloseCode::RATE);
                }
                self.note_identity();
                Ok(())
            }
            Err(denied) => {
                self.context.metrics.refused(Refused::Unauthorized);
                tracing::debug!(session = self.session.0, "a client was not let in: {denied}");
                if denied.is_temporary() {
                    let text = "tokens cannot be checked at the moment: connect again later";
                    let error = Error::new(ErrorCode::Unavailable, text);
                    return refuse(self, error, CloseCode::OVERLOADED);
                }
                let text = match token {
                    Some(_) => "the token is not known, or has ended",
                    None => {
                        "say who you are first: {\"type\":\"hello\",\"token\":\"…\"}, or send the token with the upgrade"
                    }
                };
                refuse(self, Error::new(ErrorCode::Unauthorized, text), CloseCode::UNAUTHORIZED)
            }
        }
    }

    /// Enters whose the socket is where those whose token ends are looked for.
    fn note_identity(&self) {
        let Some(identity) = self.caller.identity() else { return };
        self.context.broker.connections().identify(self.session, identity.clone());
        // It may have ended since it was checked: from here on that is seen by whoever looks after all.
        let standing = self.context.authority.standing(identity, crate::clock::wall());
        if let Some((code, reason)) = ending(standing) {
            self.outbox.close(code, reason);
        }
    }

    fn relay(&mut self, reference: Option<RequestId>, message: impl Into<ServerMessage>) {
        let response = Response { reference, message: message.into() };
        if self.introduced {
            self.items.push(Item::Relay(self.session, Box::new(response)));
        } else {
            // Nothing is behind it in the dispatcher, and who is not known has no business there.
            self.outbox.push_one(response);
        }
    }

    fn imply_hello(&mut self) {
        if !self.introduced {
            self.introduce(Box::new(Hello::empty()), None, None, None);
        }
    }

    fn introduce(
        &mut self,
        hello: Box<Hello>,
        reference: Option<RequestId>,
        subscribe: Option<Subscribe>,
        join: Option<RoomName>,
    ) {
        self.introduced = true;
        if self.outbox.is_closing() {
            // Its session was ended, if it had one; none begins in the time that it has to say goodbye.
            return;
        }
        if hello.batch {
            self.outbox.take_arrays();
        }
        let access = self.caller.access();
        let open = Command::Open(Box::new(Open {
            session: self.session,
            access,
            hello,
            reference,
            made_up_name: made_up_name(self.session),
            resume_key: rand::random(),
            subscribe,
            join,
        }));
        self.items.push(Item::Command(open));
    }
}

fn too_much() -> End {
    say(CloseCode::UNAUTHORIZED, "too much was sent before a hello with a token")
}

fn say(code: CloseCode, reason: &str) -> End {
    End::Say(Closing { code: Some(code), reason: reason.into() })
}
