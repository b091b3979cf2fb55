//! What waits to be written to one socket, in three lanes: bounded, in bytes.
//!
//! * *control*: answers, and what the broker says of the session. Never behind data.
//! * *tasks*: deliveries, and what must stay behind them. Never dropped: credit bounds them.
//! * *events*: what is told of tasks and said in rooms. The oldest make room for the latest, but the end
//!   of a task is always told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use taskyard_proto::{
    CloseCode, Encoding, Error, Lagged, LeaseId, Response, RoomMessage, RoomName, ServerMessage,
};
use tokio::sync::{Notify, Semaphore};

/// More than this, and the socket must take something within a second; of what is neither a task nor
/// may be dropped, more than this closes it at once.
pub const OUTBOX_BYTES_MAX: usize = 4 << 20;
/// More than this, without progress for ten seconds, and it is closed too.
pub const OUTBOX_BYTES_STUCK: usize = 1 << 20;
/// Events and room messages that may wait; beyond it the oldest are dropped. As much as may wait for ever,
/// so that what may be dropped closes no socket that takes anything; some seconds of a slow line.
pub const LOSSY_BYTES_MAX: usize = OUTBOX_BYTES_STUCK;

/// What an error takes beside its text and the rest.
const ERROR_BYTES: usize = 256;
/// What an overview takes, and each queue in it.
const OVERVIEW_BYTES: usize = 2048;
const QUEUE_BYTES: usize = 384;
/// Pongs that may wait: as many as pings are allowed in a second.
const PONGS_MAX: usize = 100;
/// Rooms whose losses are counted at a time: as many as a session may be in. Of those that it has left
/// meanwhile the first are forgotten; `seq` still shows the gap.
const MISSED_ROOMS_MAX: usize = 256;

/// One message on its way out.
#[derive(Debug)]
pub struct Outbound {
    /// What to write.
    pub response: Response,
    /// The lease to acknowledge once it is written.
    pub on_write: Option<LeaseId>,
    /// Whether it stays behind the deliveries that were pushed before it.
    pub barrier: bool,
    /// Of a delivery, where its queue is counted, and when it was assigned: the lower half of the microseconds. Both
    /// have room beside `barrier` that nothing else uses.
    pub row: u8,
    /// See there.
    pub since: u32,
}

impl From<Response> for Outbound {
    fn from(response: Response) -> Self {
        Outbound { response, on_write: None, barrier: false, row: 0, since: 0 }
    }
}

/// How much was dropped for readers that are too slow.
#[derive(Debug, Default)]
pub struct Losses {
    events: AtomicU64,
    room_messages: AtomicU64,
    overviews: AtomicU64,
}

impl Losses {
    /// What is counted, by its words.
    pub const KINDS: [&'static str; 3] = ["event", "room_message", "overview"];

    /// How often, in that order.
    pub fn counts(&self) -> [u64; 3] {
        [&self.events, &self.room_messages, &self.overviews].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Something said in a room: one for all who hear it.
#[derive(Debug)]
pub struct Shared {
    response: Response,
    room: RoomName,
    /// As it is written, by [`Form`].
    bodies: [OnceLock<Bytes>; 3],
}

/// How a message is spelled in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As JSON.
    Json,
    /// As MessagePack.
    MessagePack,
    /// Its payload alone.
    Raw,
}

impl Shared {
    /// Of a message.
    pub fn new(message: RoomMessage) -> Shared {
        let room = message.room.clone();
        let response = Response { reference: None, message: message.into() };
        Shared { response, room, bodies: Default::default() }
    }

    /// The message.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// A frame's body: `write` spells it for the first who asks.
    pub fn body(&self, form: Form, write: impl FnOnce(&Response) -> Bytes) -> &[u8] {
        self.bodies[form as usize].get_or_init(|| write(&self.response))
    }
}

/// What leaves the lane of events.
#[derive(Debug)]
pub enum Item {
    /// For this socket alone.
    Own(Box<Outbound>),
    /// For all in a room.
    Shared(Arc<Shared>),
}

/// A message to be written, wherever it waited.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    /// For this socket alone.
    Own(&'a Outbound),
    /// For all in a room.
    Shared(&'a Shared),
}

impl<'a> From<&'a Outbound> for View<'a> {
    fn from(own: &'a Outbound) -> Self {
        View::Own(own)
    }
}

impl<'a> From<&'a Item> for View<'a> {
    fn from(item: &'a Item) -> Self {
        match item {
            Item::Own(own) => View::Own(own),
            Item::Shared(shared) => View::Shared(shared),
        }
    }
}

impl<'a> View<'a> {
    /// The message.
    pub fn response(self) -> &'a Response {
        match self {
            View::Own(own) => &own.response,
            View::Shared(shared) => &shared.response,
        }
    }
}

/// A socket's outbox. Filled by the dispatcher and the socket's reader, emptied by its writer.
#[derive(Debug)]
pub struct Outbox {
    /// A plain lock: it is held for the time of a push or a take, never across an await.
    state: Mutex<State>,
    wake: Notify,
    /// Told when it is to end.
    closing: Notify,
    /// The peer is to be heard: its reader says so at the next byte.
    listening: AtomicBool,
    encoding: AtomicU8,
    /// The client said `batch:true`.
    arrays: AtomicBool,
    /// Frames are payloads alone: how many more may be submitted before one of them is accepted.
    raw: OnceLock<Box<Semaphore>>,
}

#[derive(Debug, Default)]
struct State {
    control: VecDeque<Outbound>,
    tasks: VecDeque<Outbound>,
    /// What most sockets never have, or not while they are idle.
    rest: Option<Box<Rest>>,
    /// Tasks that were ever pushed.
    delivered: u64,
    /// What is not written yet, also of what the writer has taken.
    bytes: usize,
    /// The same without tasks, and without what may be dropped.
    firm_bytes: usize,
    ping: bool,
    close: Option<Box<Closing>>,
    losses: Arc<Losses>,
}

#[derive(Debug, Default)]
struct Rest {
    events: Events,
    pongs: Vec<Vec<u8>>,
}

/// The lane of events.
#[derive(Debug, Default)]
struct Events {
    /// Counts what came: what is in two lists leaves in its order.
    came: u64,
    /// What may be dropped.
    lossy: VecDeque<(u64, Lossy)>,
    lossy_bytes: usize,
    /// What may not: the ends of tasks.
    firm: VecDeque<(u64, Box<Outbound>)>,
    /// What was dropped and not told yet.
    missed: VecDeque<(RoomName, u64)>,
    /// How the broker is: only the latest is of use.
    overview: Option<Box<Outbound>>,
}

#[derive(Debug)]
enum Lossy {
    /// An `event`: a gap in its `seq` tells that one was dropped, `watch` asks for it.
    Event(Box<Outbound>),
    Room(Arc<Shared>),
}

/// How a socket is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The close frame's code; none answers a close frame that had none.
    pub code: Option<CloseCode>,
    /// In words, at most 123 bytes.
    pub reason: String,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub struct Drained {
    /// The lanes, in the order of writing.
    pub control: VecDeque<Outbound>,
    /// The second.
    pub tasks: VecDeque<Outbound>,
    /// The third.
    pub events: Vec<Item>,
    /// What all take, and what those do that are neither tasks nor may be dropped.
    bytes: usize,
    firm_bytes: usize,
    /// The bodies of pongs to send.
    pub pongs: Vec<Vec<u8>>,
    /// Whether to ping.
    pub ping: bool,
    /// Whether, and how, to close after that.
    pub close: Option<Closing>,
}

/// Where a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Control,
    Tasks,
    /// Of the events, what may be dropped.
    Lossy,
    /// What may not.
    Firm,
    /// What is replaced by the next of its kind.
    Latest,
}

fn lane(outbound: &Outbound) -> Lane {
    match outbound.response.message {
        // The lease that they are about may still be on its way.
        ServerMessage::Task(_) | ServerMessage::Revoked(_) | ServerMessage::Stop(_) => Lane::Tasks,
        _ if outbound.barrier => Lane::Tasks,
        ServerMessage::Event(_) | ServerMessage::RoomMessage(_) | ServerMessage::Lagged(_) => Lane::Lossy,
        ServerMessage::Finished(_) => Lane::Firm,
        ServerMessage::Overview(_) => Lane::Latest,
        _ => Lane::Control,
    }
}

/// What counts towards the bound of what is neither a task nor may be dropped.
fn firm_weight(outbound: &Outbound) -> usize {
    match outbound.response.message {
        ServerMessage::Task(_) => 0,
        _ => weight(&outbound.response),
    }
}

impl Lossy {
    fn weight(&self) -> usize {
        match self {
            Lossy::Event(event) => weight(&event.response),
            Lossy::Room(shared) => weight(shared.response()),
        }
    }
}

impl Events {
    fn number(&mut self) -> u64 {
        self.came += 1;
        self.came
    }

    /// Adds what may be dropped, and drops what is too much; gives the bytes that were dropped. The latest
    /// stays, however long it is.
    fn add(&mut self, lossy: Lossy, losses: &Losses) -> usize {
        let number = self.number();
        self.lossy_bytes += lossy.weight();
        self.lossy.push_back((number, lossy));
        let before = self.lossy_bytes;
        while self.lossy_bytes > LOSSY_BYTES_MAX && self.lossy.len() > 1 {
            let Some((_, oldest)) = self.lossy.pop_front() else { break };
            self.lossy_bytes -= oldest.weight();
            match oldest {
                Lossy::Event(_) => losses.events.fetch_add(1, Ordering::Relaxed),
                Lossy::Room(shared) => {
                    self.miss(&shared.room);
                    losses.room_messages.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        before - self.lossy_bytes
    }

    fn miss(&mut self, room: &RoomName) {
        // The same room was mostly the latest to miss something.
        if let Some((_, missed)) = self.missed.iter_mut().rev().find(|(name, _)| name == room) {
            *missed += 1;
            return;
        }
        if self.missed.len() >= MISSED_ROOMS_MAX {
            self.missed.pop_front();
        }
        self.missed.push_back((room.clone(), 1));
    }

    /// Takes in order, while `drained` has room.
    fn take(&mut self, drained: &mut Drained, budget: usize) {
        if drained.bytes < budget
            && let Some(overview) = self.overview.take()
        {
            drained.bytes += weight(&overview.response);
            drained.events.push(Item::Own(overview));
        }
        while drained.bytes < budget {
            let lossy_is_next = match (self.lossy.front(), self.firm.front()) {
                (Some((lossy, _)), Some((firm, _))) => lossy < firm,
                (lossy, _) => lossy.is_some(),
            };
            if lossy_is_next && let Some((_, lossy)) = self.lossy.pop_front() {
                let bytes = lossy.weight();
                self.lossy_bytes -= bytes;
                drained.bytes += bytes;
                match lossy {
                    Lossy::Event(event) => drained.events.push(Item::Own(event)),
                    Lossy::Room(shared) => {
                        if let Some(at) = self.missed.iter().position(|(room, _)| *room == shared.room) {
                            let missed = self.missed.remove(at);
                            drained.events.extend(missed.map(lagged));
                        }
                        drained.events.push(Item::Shared(shared));
                    }
                }
            } else if let Some((_, outbound)) = self.firm.pop_front() {
                drained.count(&outbound);
                drained.events.push(Item::Own(outbound));
            } else {
                // Nothing more may be said in those rooms for a long time.
                drained.events.extend(self.missed.drain(..).map(lagged));
                return;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.lossy.is_empty() && self.firm.is_empty() && self.missed.is_empty() && self.overview.is_none()
    }
}

fn lagged((room, missed): (RoomName, u64)) -> Item {
    let response = Response { reference: None, message: Lagged { room, missed }.into() };
    Item::Own(Box::new(response.into()))
}

impl Drained {
    /// Whether there is nothing to be written.
    fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.tasks.is_empty()
            && self.events.is_empty()
            && self.pongs.is_empty()
            && !self.ping
            && self.close.is_none()
    }

    fn count(&mut self, outbound: &Outbound) {
        self.bytes += weight(&outbound.response);
        self.firm_bytes += firm_weight(outbound);
    }

    /// Takes from a lane what there is room for: mostly all of it, and nothing is moved then.
    fn take(&mut self, lane: &mut VecDeque<Outbound>, budget: usize) -> VecDeque<Outbound> {
        let mut count = 0;
        while self.bytes < budget
            && let Some(outbound) = lane.get(count)
        {
            self.count(outbound);
            count += 1;
        }
        if count == lane.len() { std::mem::take(lane) } else { lane.drain(..count).collect() }
    }
}

impl State {
    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.tasks.is_empty()
            && self.rest.as_ref().is_none_or(|rest| rest.events.is_empty() && rest.pongs.is_empty())
    }

    /// Adds all. Mostly they are for one lane, in which nothing waits: then the list becomes the lane, nothing is
    /// moved, and the room that the lane had goes back with `messages`.
    fn add_all(&mut self, messages: &mut Vec<Outbound>) {
        let first = messages.first().map(lane);
        let waiting = match first {
            Some(Lane::Control) => Some(self.control.len()),
            Some(Lane::Tasks) => Some(self.tasks.len()),
            _ => None,
        };
        if waiting != Some(0) || !messages.iter().all(|message| Some(lane(message)) == first) {
            return messages.drain(..).for_each(|message| self.add(message));
        }
        messages.iter().for_each(|message| self.count(message));
        let lane = if first == Some(Lane::Tasks) { &mut self.tasks } else { &mut self.control };
        let room = std::mem::replace(lane, VecDeque::from(std::mem::take(messages)));
        *messages = Vec::from(room);
    }

    /// Counts what is not in the lossy lane.
    fn count(&mut self, outbound: &Outbound) {
        self.bytes += weight(&outbound.response);
        self.firm_bytes += firm_weight(outbound);
        self.delivered += u64::from(matches!(outbound.response.message, ServerMessage::Task(_)));
    }

    fn add(&mut self, outbound: Outbound) {
        let lane = lane(&outbound);
        if lane == Lane::Lossy {
            self.bytes += weight(&outbound.response);
            let events = &mut self.rest.get_or_insert_default().events;
            return self.bytes -= events.add(Lossy::Event(Box::new(outbound)), &self.losses);
        }
        if lane == Lane::Latest {
            self.bytes += weight(&outbound.response);
            if let Some(before) = self.rest().events.overview.replace(Box::new(outbound)) {
                self.bytes -= weight(&before.response);
                self.losses.overviews.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        self.count(&outbound);
        match lane {
            Lane::Control => self.control.push_back(outbound),
            Lane::Tasks => self.tasks.push_back(outbound),
            Lane::Lossy | Lane::Firm | Lane::Latest => {
                let events = &mut self.rest().events;
                let number = events.number();
                events.firm.push_back((number, Box::new(outbound)));
            }
        }
    }

    /// What a socket without a protocol is told of: payloads. Its only way to be told of an error is its end.
    /// True: of an error.
    fn add_raw(&mut self, outbound: Outbound, room: &Semaphore) -> bool {
        match &outbound.response.message {
            ServerMessage::Task(_) => self.add(outbound),
            ServerMessage::Accepted(_) => room.add_permits(1),
            ServerMessage::Error(error) => {
                self.close.get_or_insert_with(|| Box::new(refused(error)));
                return true;
            }
            _ => {}
        }
        false
    }

    /// Forgets all messages: they return by the session's end.
    fn clear(&mut self) {
        (self.control, self.tasks) = (VecDeque::new(), VecDeque::new());
        if let Some(rest) = &mut self.rest {
            rest.events = Events::default();
        }
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox {
            state: Mutex::default(),
            wake: Notify::new(),
            closing: Notify::new(),
            listening: AtomicBool::new(false),
            encoding: AtomicU8::new(0),
            arrays: AtomicBool::new(false),
            raw: OnceLock::new(),
        }
    }
}

impl Outbox {
    /// An empty one, whose losses are counted there.
    pub fn new(losses: Arc<Losses>) -> Outbox {
        Outbox { state: Mutex::new(State { losses, ..State::default() }), ..Outbox::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding it did so between two whole states: there is no half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The encoding that the broker answers in.
    pub fn encoding(&self) -> Encoding {
        if self.encoding.load(Ordering::Relaxed) == 1 { Encoding::MessagePack } else { Encoding::Json }
    }

    /// Sets the encoding that the broker answers in.
    pub fn set_encoding(&self, encoding: Encoding) {
        self.encoding.store(u8::from(encoding == Encoding::MessagePack), Ordering::Relaxed);
    }

    /// Whether the client takes arrays of messages.
    pub fn takes_arrays(&self) -> bool {
        self.arrays.load(Ordering::Relaxed)
    }

    /// Notes that the client takes arrays of messages.
    pub fn take_arrays(&self) {
        self.arrays.store(true, Ordering::Relaxed);
    }

    /// Whether frames are payloads alone.
    pub fn is_raw(&self) -> bool {
        self.raw.get().is_some()
    }

    /// Frames are payloads alone: nothing else is said, and an error ends the socket. So many submits may be
    /// without their answer.
    pub fn set_raw(&self, submits: usize) {
        self.raw.get_or_init(|| Box::new(Semaphore::new(submits)));
    }

    /// Of a raw socket: room for submits, which each answer gives back. Nobody sees the answers, so whoever
    /// sends is held up instead.
    pub fn room_for_submits(&self) -> Option<&Semaphore> {
        self.raw.get().map(|room| &**room)
    }

    /// Appends messages, each to its lane, leaving `messages` empty. Over the bound the socket is closed
    /// instead.
    pub fn push(&self, messages: &mut Vec<Outbound>) {
        let mut state = self.state();
        if state.close.is_some() {
            // It ends: what was not sent returns by its session's end.
            messages.clear();
            return;
        }
        // What waited before this push is what the peer has not read: one push alone may be large.
        if state.firm_bytes > OUTBOX_BYTES_MAX {
            messages.clear();
            state.clear();
            state.close = Some(Box::new(slow()));
            self.closing.notify_waiters();
        }
        if let Some(room) = self.raw.get() {
            if messages.drain(..).any(|message| state.add_raw(message, room)) {
                self.closing.notify_waiters();
            }
        } else {
            state.add_all(messages);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Adds what is said in rooms. It closes no socket: the oldest make room for it.
    pub fn publish(&self, said: &[Arc<Shared>]) {
        let mut state = self.state();
        if state.close.is_some() {
            return;
        }
        for shared in said {
            let State { rest, losses, .. } = &mut *state;
            let dropped = rest.get_or_insert_default().events.add(Lossy::Room(shared.clone()), losses);
            state.bytes = (state.bytes + weight(shared.response())).saturating_sub(dropped);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// How many tasks were ever pushed.
    pub fn delivered(&self) -> u64 {
        self.state().delivered
    }

    /// Appends one message.
    pub fn push_one(&self, response: Response) {
        self.push(&mut vec![Outbound::from(response)]);
    }

    /// Answers a ping. Of more than can wait the latest is enough (RFC 6455, section 5.5.3).
    pub fn pong(&self, body: &[u8]) {
        let mut state = self.state();
        let pongs = &mut state.rest().pongs;
        if pongs.len() >= PONGS_MAX {
            pongs.pop();
        }
        pongs.push(body.to_vec());
        drop(state);
        self.wake.notify_one();
    }

    /// Sends a ping.
    pub fn ping(&self) {
        self.state().ping = true;
        self.wake.notify_one();
    }

    /// Sends a ping, and wants to be told of the next byte.
    pub fn ask_for_life(&self) {
        self.listening.store(true, Ordering::Release);
        self.ping();
    }

    /// Whether a sign of life was wanted; not any more.
    pub fn was_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed) && self.listening.swap(false, Ordering::AcqRel)
    }

    /// Ends the socket after what is already here. The first reason given is the one sent.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_as(Closing { code: Some(code), reason: reason.into() });
    }

    /// As [`Outbox::close`], with or without a code.
    pub fn close_as(&self, closing: Closing) {
        self.state().close.get_or_insert_with(|| Box::new(closing));
        self.closing.notify_waiters();
        self.wake.notify_one();
    }

    /// Waits until it is to end.
    pub async fn closing(&self) {
        let mut told = std::pin::pin!(self.closing.notified());
        // Told between the look and the wait, it is not missed.
        told.as_mut().enable();
        if !self.is_closing() {
            told.await;
        }
    }

    /// The code that it ends with; none: it has none, or does not end.
    pub fn close_code(&self) -> Option<CloseCode> {
        self.state().close.as_ref().and_then(|closing| closing.code)
    }

    /// Whether it is to end, or has.
    pub fn is_closing(&self) -> bool {
        self.state().close.is_some()
    }

    /// The peer reads too slowly: ends the socket, drops what waits.
    pub fn give_up_on_slow_reader(&self) {
        let mut state = self.state();
        state.clear();
        state.close.get_or_insert_with(|| Box::new(slow()));
        self.closing.notify_waiters();
    }

    /// All that the writer has taken is written.
    pub fn written(&self, drained: &Drained) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(drained.bytes);
        state.firm_bytes = state.firm_bytes.saturating_sub(drained.firm_bytes);
    }

    /// Bytes that are not written yet.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Takes what is to be written next, about `budget` bytes of it, into `drained`, which was all written;
    /// false: there is nothing.
    pub fn take(&self, drained: &mut Drained, budget: usize) -> bool {
        drained.control.clear();
        drained.tasks.clear();
        drained.events.clear();
        (drained.bytes, drained.firm_bytes) = (0, 0);
        let mut state = self.state();
        let state = &mut *state;
        drained.ping = std::mem::take(&mut state.ping);
        // What was written leaves its room to what comes next.
        let spare = (std::mem::take(&mut drained.control), std::mem::take(&mut drained.tasks));
        drained.control = drained.take(&mut state.control, budget);
        drained.tasks = drained.take(&mut state.tasks, budget);
        if state.control.capacity() == 0 {
            state.control = spare.0;
        }
        if state.tasks.capacity() == 0 {
            state.tasks = spare.1;
        }
        if let Some(rest) = &mut state.rest {
            drained.pongs = std::mem::take(&mut rest.pongs);
            rest.events.take(drained, budget);
        } else {
            drained.pongs.clear();
        }
        // The end comes after all that is said.
        drained.close = state.close.as_deref().filter(|_| state.is_empty()).cloned();
        !drained.is_empty()
    }

    /// Gives back the room that an idle socket does not need.
    pub fn shrink(&self) {
        let mut state = self.state();
        if state.is_empty() {
            (state.control, state.tasks, state.rest) = (VecDeque::new(), VecDeque::new(), None);
        }
    }

    /// Waits until there may be something to write.
    pub async fn filled(&self) {
        self.wake.notified().await;
    }
}

fn slow() -> Closing {
    Closing {
        code: Some(CloseCode::SLOW),
        reason: "the client reads too slowly: too much waits to be written".into(),
    }
}

/// How an error ends a socket that can be told of it in no other way.
fn refused(error: &Error) -> Closing {
    let code = if error.retryable { CloseCode::OVERLOADED } else { CloseCode::POLICY };
    Closing { code: Some(code), reason: error.code.as_str().into() }
}

/// What a message takes in an outbox: its payload, and a round number for the rest.
pub(crate) fn weight(response: &Response) -> usize {
    const REST: usize = 160;
    REST + match &response.message {
        ServerMessage::Task(task) => task.payload.bytes().len(),
        ServerMessage::Finished(finished) => {
            let outcomes = finished.recipients.as_ref().map_or(&[][..], |list| &list.0);
            finished.result.bytes().len()
                + outcomes.iter().map(|o| 64 + o.result.bytes().len()).sum::<usize>()
        }
        ServerMessage::Overview(overview) => OVERVIEW_BYTES + QUEUE_BYTES * overview.queues.len(),
        ServerMessage::Event(event) => event.data.bytes().len(),
        ServerMessage::RoomMessage(message) => message.payload.bytes().len(),
        ServerMessage::Error(error) => error.message.as_str().len() + ERROR_BYTES,
        ServerMessage::Settled(settled) => settled.results.0.as_ref().map_or(0, |results| 48 * results.len()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::{
        Done, ErrorCode, Event, Finished, Frame, GoingAway, Overview, Payload, Pong, QueueOverview,
        RequestId, RevokeReason, Revoked, Standing, Task, TaskId, TaskState, WorkerName,
    };

    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const LEASE: LeaseId = LeaseId { number: 7, slot: 3, recipient: 0 };

    fn task(bytes: usize) -> Outbound {
        let message = Task {
            task: TaskId::generate(),
            lease: Some(LEASE),
            queue: taskyard_proto::QueueName::parse("q").unwrap(),
            attempt: 1,
            max_attempts: 5,
            redelivered: false,
            ack_timeout_ms: 30_000,
            age_ms: 0,
            priority: 4,
            headers: Default::default(),
            payload: Payload::binary(vec![0; bytes]),
        };
        own(message)
    }

    fn event(seq: u64, bytes: usize) -> Outbound {
        own(Event {
            task: TaskId::generate(),
            seq,
            state: TaskState::Leased,
            started: true,
            worker: None,
            attempt: 1,
            percent: None,
            data: Payload::binary(vec![0; bytes]),
            error: None,
        })
    }

    fn finished(seq: u64) -> Outbound {
        own(Finished {
            task: TaskId::generate(),
            seq,
            state: TaskState::Done,
            result: Payload::NULL,
            error: None,
            attempts: 1,
            recipients: None,
            delivered: None,
            acked: None,
            failed: None,
        })
    }

    fn own(message: impl Into<ServerMessage>) -> Outbound {
        Response { reference: None, message: message.into() }.into()
    }

    fn said(room: &str, seq: u64, bytes: usize) -> Arc<Shared> {
        Arc::new(Shared::new(RoomMessage {
            room: RoomName::parse(room).unwrap(),
            from: WorkerName::parse("w").unwrap(),
            seq,
            payload: Payload::binary(vec![0; bytes]),
        }))
    }

    /// Takes once, and writes what was taken: each in a word.
    fn take(outbox: &Outbox, budget: usize) -> Vec<String> {
        let mut drained = Drained::default();
        outbox.take(&mut drained, budget);
        outbox.written(&drained);
        let lanes = drained.control.iter().chain(&drained.tasks).map(View::from);
        let views = lanes.chain(drained.events.iter().map(View::from));
        let word = |view: View<'_>| match &view.response().message {
            ServerMessage::RoomMessage(m) => format!("{} {}", m.room, m.seq),
            ServerMessage::Lagged(m) => format!("{} lagged {}", m.room, m.missed),
            ServerMessage::Event(m) => format!("event {}", m.seq),
            ServerMessage::Finished(m) => format!("finished {}", m.seq),
            other => other.type_text().to_owned(),
        };
        views.map(word).collect()
    }

    #[test]
    fn control_comes_first_then_tasks_then_events_each_in_order() {
        let outbox = Outbox::default();
        outbox.publish(&[said("r", 1, 10)]);
        let barrier = Outbound { barrier: true, ..own(Done::PLAIN) };
        let revoked = own(Revoked { lease: LEASE, reason: RevokeReason::AckTimeout });
        let error = own(Error::new(ErrorCode::NotFound, "no"));
        outbox.push(&mut vec![event(1, 0), finished(2), task(5), revoked, barrier, own(Pong {}), error]);
        outbox.publish(&[said("r", 2, 10)]);
        let order = ["pong", "error", "task", "revoked", "ok", "r 1", "event 1", "finished 2", "r 2"];
        assert_eq!(take(&outbox, usize::MAX), order);
        assert_eq!((outbox.bytes(), outbox.delivered()), (0, 1));
        assert!(!outbox.take(&mut Drained::default(), 1));
    }

    #[test]
    fn what_comes_together_waits_as_if_it_came_one_by_one() {
        let taken = |outbox: &Outbox, budget| -> Vec<_> {
            let mut drained = Drained::default();
            outbox.take(&mut drained, budget);
            outbox.written(&drained);
            drained.control.iter().chain(&drained.tasks).map(|one| one.response.reference.clone()).collect()
        };
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (together, singly) = (Outbox::default(), Outbox::default());
            let mut number = 0;
            for _ in 0..6 {
                let kinds = rng.random_range(1..=2);
                let is_task: Vec<bool> =
                    (0..rng.random_range(0..5)).map(|_| rng.random_range(0..kinds) == 0).collect();
                let first = number;
                number += is_task.len() as i64;
                let batch = || {
                    (first..).zip(&is_task).map(|(reference, is_task)| {
                        let mut outbound = if *is_task { task(10) } else { own(Pong {}) };
                        outbound.response.reference = Some(RequestId::Integer(reference));
                        outbound
                    })
                };
                batch().for_each(|one| singly.push(&mut vec![one]));
                let mut all = batch().collect();
                together.push(&mut all);
                assert!(all.is_empty(), "seed {seed}");
                let budget = if rng.random_bool(0.5) { usize::MAX } else { rng.random_range(0..200) };
                let (some, same) = (taken(&together, budget), taken(&singly, budget));
                assert_eq!(some, same, "seed {seed}");
            }
            assert_eq!(taken(&together, usize::MAX), taken(&singly, usize::MAX));
            assert_eq!((together.bytes(), singly.bytes()), (0, 0), "seed {seed}");
            assert_eq!(together.delivered(), singly.delivered(), "seed {seed}");
        }
    }

    #[test]
    fn an_answer_overtakes_what_was_not_taken_yet() {
        let outbox = Outbox::default();
        outbox.push(&mut (0..3).map(|_| task(1000)).collect());
        outbox.publish(&[said("r", 1, 10)]);
        assert_eq!(take(&outbox, 1500), ["task", "task"]);
        outbox.push_one(own(Pong {}).response);
        assert_eq!(take(&outbox, 1), ["pong"]);
        assert_eq!(take(&outbox, 1), ["task"]);
        assert_eq!(take(&outbox, 1), ["r 1"]);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn of_rooms_the_oldest_is_dropped_and_that_is_told_before_the_next() {
        let outbox = Outbox::default();
        let half = LOSSY_BYTES_MAX / 2 - 1000;
        for seq in 1..=5 {
            outbox.publish(&[said("a", seq, half)]);
        }
        outbox.publish(&[said("b", 1, 10)]);
        assert!(outbox.bytes() <= LOSSY_BYTES_MAX);
        assert_eq!(take(&outbox, 1), ["a lagged 3", "a 4"]);
        // What is told is not told again, and new losses are.
        outbox.publish(&[said("a", 6, half)]);
        outbox.publish(&[said("a", 7, half)]);
        assert_eq!(take(&outbox, usize::MAX), ["b 1", "a lagged 1", "a 6", "a 7"]);
    }

    #[test]
    fn what_is_lost_of_a_room_where_nobody_speaks_any_more_is_told_in_the_end() {
        let outbox = Outbox::default();
        outbox.publish(&[said("quiet", 1, 10)]);
        outbox.publish(&[said("loud", 1, LOSSY_BYTES_MAX)]);
        assert_eq!(take(&outbox, usize::MAX), ["loud 1", "quiet lagged 1"]);
        // One that is longer than the bound comes all the same.
        assert_eq!(outbox.bytes(), 0);
        for nth in 0..2 * MISSED_ROOMS_MAX as u64 {
            outbox.publish(&[said(&format!("r{nth}"), 1, LOSSY_BYTES_MAX)]);
        }
        assert_eq!(take(&outbox, usize::MAX).len(), MISSED_ROOMS_MAX + 1);
    }

    #[test]
    fn events_are_dropped_and_ends_are_not() {
        let outbox = Outbox::default();
        for seq in 0..100 {
            outbox.push(&mut vec![event(2 * seq, LOSSY_BYTES_MAX / 10), finished(2 * seq + 1)]);
        }
        let got = take(&outbox, usize::MAX);
        let count = |word: &str| got.iter().filter(|one| one.starts_with(word)).count();
        assert_eq!(count("finished"), 100);
        assert!((5..10).contains(&count("event")), "{got:?}");
        assert_eq!(got[got.len() - 2..], ["event 198", "finished 199"]);
    }

    #[test]
    fn of_overviews_only_the_latest_waits() {
        let losses = Arc::new(Losses::default());
        let outbox = Outbox::new(losses.clone());
        let overview = |at_ms: u64, queues: usize| {
            let counts = Standing { scheduled: 0, queued: 0, leased: 0, retrying: 0, dead: 0 };
            let text = r#"{"type":"overview","at_ms":0,"uptime_ms":0,"version":"","engine":"","durable":true,
                "draining":false,"queues_total":0,"totals":{"counts":COUNTS,"workers":0,"in_flight":0,
                "credit_free":0,"events":{"accepted":0,"duplicate":0,"refused":0,"delivered":0,"redelivered":0,
                "acked":0,"nacked":0,"released":0,"timed_out":0,"worker_lost":0,"dead":0,"cancelled":0,
                "expired":0}},"queues":[],"workers":0,"connections":0,"schedules":0}"#;
            let text =
                text.replace("COUNTS", r#"{"scheduled":0,"queued":0,"leased":0,"retrying":0,"dead":0}"#);
            let frame = taskyard_proto::codec::decode_server(Encoding::Json, text.as_bytes()).unwrap();
            let Frame::One(Response { message: ServerMessage::Overview(plain), .. }) = frame else {
                panic!()
            };
            let queue = QueueOverview {
                queue: taskyard_proto::QueueName::parse("q").unwrap(),
                paused: false,
                counts,
                oldest_ms: None,
                workers: 0,
                in_flight: 0,
                credit_free: 0,
                events: plain.totals.events.clone(),
            };
            own(Overview { at_ms, queues: vec![queue; queues], ..*plain })
        };
        for nth in 1..=3 {
            outbox.push(&mut vec![overview(nth, 40 * nth as usize), event(nth, 0)]);
        }
        let mut drained = Drained::default();
        assert!(outbox.take(&mut drained, usize::MAX));
        let told: Vec<u64> = drained
            .events
            .iter()
            .map(|item| match &View::from(item).response().message {
                ServerMessage::Overview(overview) => overview.at_ms,
                ServerMessage::Event(event) => 100 + event.seq,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [3, 101, 102, 103]);
        outbox.written(&drained);
        assert_eq!((outbox.bytes(), losses.counts()), (0, [0, 0, 2]));
        assert!(!outbox.take(&mut drained, usize::MAX));
        // A socket that takes nothing is not closed for it.
        for nth in 0..10_000 {
            outbox.push_one(overview(nth, 100).response);
        }
        assert!(!outbox.is_closing() && outbox.bytes() < OUTBOX_BYTES_STUCK);
    }

    #[test]
    fn what_is_dropped_is_counted_for_all_sockets_together() {
        let losses = Arc::new(Losses::default());
        for _ in 0..2 {
            let outbox = Outbox::new(losses.clone());
            for seq in 1..=3 {
                outbox.publish(&[said("r", seq, LOSSY_BYTES_MAX)]);
                outbox.push(&mut vec![event(seq, LOSSY_BYTES_MAX)]);
            }
        }
        assert_eq!(losses.counts(), [4, 6, 0]);
    }

    #[test]
    fn rooms_close_nothing_and_other_things_do() {
        let outbox = Outbox::default();
        for seq in 0..10 {
            outbox.publish(&[said("r", seq, 1 << 20)]);
            outbox.push(&mut vec![event(seq, 1 << 20), task(1 << 20)]);
        }
        assert!(!outbox.is_closing());
        let mut text = String::new();
        while text.len() < 4000 {
            text.push_str("no ");
        }
        let error = Error::new(ErrorCode::BadRequest, text);
        for _ in 0..1100 {
            outbox.push_one(own(error.clone()).response);
        }
        assert_eq!(outbox.close_code(), Some(CloseCode::SLOW));
        assert_eq!(take(&outbox, usize::MAX), Vec::<String>::new());
    }

    #[test]
    fn a_raw_socket_is_told_payloads_and_of_an_error_by_its_end() {
        let outbox = Outbox::default();
        outbox.set_raw(1);
        let away =
            GoingAway { reason: taskyard_proto::AwayReason::Restart, grace_ms: 1, reconnect_after_ms: 1 };
        outbox.push(&mut vec![own(Done::PLAIN), task(1), own(away), finished(1)]);
        outbox.publish(&[said("r", 1, 1)]);
        assert_eq!(take(&outbox, usize::MAX), ["task", "r 1"]);
        outbox.push_one(own(Error::new(ErrorCode::QueueFull, "full")).response);
        let closing = Closing { code: Some(CloseCode::OVERLOADED), reason: "queue_full".into() };
        assert_eq!(take_closing(&outbox), Some(closing));
        let outbox = Outbox::default();
        outbox.set_raw(1);
        outbox.push_one(own(Error::new(ErrorCode::Forbidden, "no")).response);
        assert_eq!(outbox.close_code(), Some(CloseCode::POLICY));
    }

    #[test]
    fn the_end_comes_after_all_that_was_said() {
        let outbox = Outbox::default();
        outbox.push(&mut vec![task(1000), own(Pong {})]);
        outbox.publish(&[said("r", 1, 10)]);
        outbox.close(CloseCode::NORMAL, "bye");
        outbox.push(&mut vec![task(1)]);
        outbox.publish(&[said("r", 2, 10)]);
        let mut drained = Drained::default();
        let mut taken = 0;
        while outbox.take(&mut drained, 1) && drained.close.is_none() {
            taken += 1;
        }
        assert_eq!((taken, drained.events.len()), (2, 1));
    }

    #[test]
    fn a_message_to_a_room_is_spelled_once() {
        let shared = said("r", 1, 10);
        let first = shared.body(Form::Json, |_| Bytes::from_static(b"x")).as_ptr();
        let second = shared.body(Form::Json, |_| panic!("it was spelled")).as_ptr();
        assert_eq!(first, second);
        assert_eq!(shared.body(Form::MessagePack, |_| Bytes::from_static(b"y")), b"y");
    }

    fn take_closing(outbox: &Outbox) -> Option<Closing> {
        let mut drained = Drained::default();
        outbox.take(&mut drained, usize::MAX);
        drained.close
    }
}
