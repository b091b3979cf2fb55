//! Server-sent events, as far as a stream of the broker's needs them: fields `id`, `event` and `data`.

use super::Failed;

/// The longest event that is read, in bytes: as long as the longest message, and some.
const EVENT_BYTES_MAX: usize = 20 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// What to ask for the next ones with.
    pub(super) id: Option<String>,
    /// What kind it is; `message` where nothing is said.
    pub(super) event: String,
    /// The lines of its data.
    pub(super) data: String,
}

/// Takes bytes in and gives events out.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// What is here of a line that has not ended.
    line: Vec<u8>,
    /// Whether the last byte was a CR: a LF behind it ends no other line.
    after_cr: bool,
    id: Option<String>,
    event: String,
    data: String,
    has_data: bool,
}

impl Reader {
    /// Takes the next bytes in; gives the events that are whole now.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Failed> {
        let mut events = Vec::new();
        for &byte in bytes {
            let behind_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if behind_cr => {}
                b'\n' | b'\r' => events.extend(self.end_of_line()),
                byte => {
                    if self.line.len() + self.data.len() >= EVENT_BYTES_MAX {
                        return Err(Failed::other(format!(
                            "the broker sent an event of more than {EVENT_BYTES_MAX} bytes"
                        )));
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then(|| Event {
                id: self.id.clone(),
                event: if event.is_empty() { "message".into() } else { event },
                data,
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            // Comments, which keep the connection alive, and what later versions add.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, event: &str, data: &str) -> Event {
        Event { id: Some(id.into()), event: event.into(), data: data.into() }
    }

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = ": hello\n\nid: 1\nevent: event\ndata: {\"a\":1}\n\nid:2\r\ndata:x\r\ndata: y\r\n\r\n\
                      retry: 5\nevent: nothing\n\ndata\r\rid: 3\ndata: lost";
        let expected =
            [event("1", "event", "{\"a\":1}"), event("2", "message", "x\ny"), event("2", "message", "")];
        for size in 1..=stream.len() {
            let mut reader = Reader::default();
            let events: Vec<Event> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|part| reader.take(part).expect("it is short"))
                .collect();
            assert_eq!(events, expected, "in parts of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut reader = Reader::default();
        let part = vec![b'x'; 1 << 20];
        let refused = (0..=EVENT_BYTES_MAX >> 20).any(|_| reader.take(&part).is_err());
        assert!(refused && reader.line.len() <= EVENT_BYTES_MAX);
    }
}
