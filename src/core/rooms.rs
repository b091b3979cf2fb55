//! Rooms: who is in them, and what is said. Nothing of it is stored.

use std::collections::BTreeMap;

use taskyard_proto::{Done, Error, ErrorCode, Payload, QueueName, RoomMessage, RoomName, WorkerName};

use super::access::Access;
use super::command::{Origin, SessionId};
use super::effect::{Effects, Output};
use super::grants::Action;
use super::shard::{HashMap, Shard};

/// How many rooms a session may be in.
pub const ROOMS_PER_SESSION: usize = 256;
/// How many rooms there may be: each is a name, a list and a number.
pub const ROOMS_MAX: usize = 100_000;

/// A room that somebody is in.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// In order of joining.
    members: BTreeMap<u64, SessionId>,
    /// The number of the last message.
    seq: u64,
}

/// All rooms that somebody is in.
pub(super) type Rooms = HashMap<RoomName, Room>;

impl Shard {
    pub(super) fn join(&mut self, origin: Origin, id: SessionId, name: RoomName, fx: &mut Effects) {
        match self.enter(id, name) {
            Ok(()) => fx.answer(&origin, Done::PLAIN),
            Err(error) => fx.answer(&origin, error),
        }
    }

    fn enter(&mut self, id: SessionId, name: RoomName) -> Result<(), Error> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let access = session.access.clone();
        self.check_room(access.as_deref(), Action::Consume, &name)?;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        if session.rooms.iter().any(|(room, _)| *room == name) {
            return Ok(());
        }
        let full = |what: String| Err(Error::new(ErrorCode::QueueFull, what).field("room"));
        if session.rooms.len() >= ROOMS_PER_SESSION {
            return full(format!(
                "this session is in {ROOMS_PER_SESSION} rooms, the most that it may: leave one before joining another"
            ));
        }
        if !self.rooms.contains_key(&name) && self.rooms.len() >= ROOMS_MAX {
            return full(format!(
                "there are {ROOMS_MAX} rooms, the most that this broker allows: use one that exists"
            ));
        }
        let place = self.next_place;
        self.next_place += 1;
        session.rooms.push((name.clone(), place));
        self.rooms.entry(name).or_default().members.insert(place, id);
        Ok(())
    }

    pub(super) fn leave(&mut self, origin: Origin, id: SessionId, name: &RoomName, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(at) = session.rooms.iter().position(|(room, _)| room == name) {
            let (name, place) = session.rooms.swap_remove(at);
            self.vacate(&name, place);
        }
        fx.answer(&origin, Done::PLAIN);
    }

    /// Takes a session out of all its rooms.
    pub(super) fn leave_all(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        for (name, place) in std::mem::take(&mut session.rooms) {
            self.vacate(&name, place);
        }
    }

    fn vacate(&mut self, name: &RoomName, place: u64) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.members.remove(&place);
        // Names come and go without end: a room is there while somebody is in it.
        if room.members.is_empty() {
            self.rooms.remove(name);
        }
    }

    /// Says something in a room, to all who are in it, also from outside.
    pub(super) fn publish(
        &mut self,
        origin: Origin,
        message: taskyard_proto::Publish,
        from: WorkerName,
        fx: &mut Effects,
    ) {
        let session = match &origin {
            Origin::Session(session, _) | Origin::Implied(session) => Some(*session),
            Origin::Call(_) => None,
        };
        let access = session.and_then(|session| self.sessions.get(&session)?.access.clone());
        if let Err(error) = self.check_room(access.as_deref(), Action::Submit, &message.room) {
            return fx.answer(&origin, error);
        }
        self.tell_room(message.room, from, message.payload, session.filter(|_| message.exclude_self), fx);
        fx.answer(&origin, Done::PLAIN);
    }

    fn tell_room(
        &mut self,
        name: RoomName,
        from: WorkerName,
        payload: Payload,
        but: Option<SessionId>,
        fx: &mut Effects,
    ) {
        // Nobody hears what is said in an empty room, and it is not remembered.
        let Some(room) = self.rooms.get_mut(&name) else { return };
        room.seq += 1;
        let members: Vec<SessionId> = room.members.values().copied().filter(|id| Some(*id) != but).collect();
        let message = RoomMessage { room: name, from, seq: room.seq, payload };
        if !members.is_empty() {
            fx.outputs.push(Output::Publish { members, message });
        }
    }

    /// Rooms are named like queues in rules.
    fn check_room(&mut self, access: Option<&Access>, action: Action, name: &RoomName) -> Result<(), Error> {
        let Some(access) = access else { return Ok(()) };
        let named = QueueName::parse(name.as_str()).expect("names of rooms are of the form of queues'");
        self.check_grant(Some(access), action, &named)
    }
}
