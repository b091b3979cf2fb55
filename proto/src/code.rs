//! Error codes and close codes: one table each, for the broker, its clients and their tests.

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $http:literal, $retryable:literal;)*) => {
        /// Why a message was refused. Wire text, HTTP status and whether trying again may help.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code, in the order of the table in `PROTOCOL.md`.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code as it stands on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// The HTTP status that carries this code.
            pub fn http_status(self) -> u16 {
                match self { $(ErrorCode::$name => $http,)* }
            }

            /// Whether the same message may succeed later.
            pub fn retryable(self) -> bool {
                match self { $(ErrorCode::$name => $retryable,)* }
            }

            /// The code with this wire text.
            pub fn parse(text: &str) -> Option<ErrorCode> {
                match text { $($text => Some(ErrorCode::$name),)* _ => None }
            }
        }
    };
}

error_codes! {
    /// The message is not what the protocol allows; names the field where one is at fault.
    BadRequest = "bad_request", 400, false;
    /// No message has this type.
    UnknownType = "unknown_type", 400, false;
    /// No token, or a wrong one.
    Unauthorized = "unauthorized", 401, false;
    /// The token does not allow this.
    Forbidden = "forbidden", 403, false;
    /// A named task, queue, worker or schedule does not exist.
    NotFound = "not_found", 404, false;
    /// The thing is in a state that does not allow this.
    Conflict = "conflict", 409, false;
    /// The lease is old, foreign, unknown or garbled.
    LeaseLost = "lease_lost", 409, false;
    /// Too many messages or unanswered submits.
    RateLimited = "rate_limited", 429, true;
    /// The queue, or the number of queues, is at its limit.
    QueueFull = "queue_full", 429, true;
    /// The disk is full.
    StorageFull = "storage_full", 507, true;
    /// The broker cannot do this now.
    Unavailable = "unavailable", 503, true;
    /// The broker is shutting down.
    Draining = "draining", 503, true;
    /// A fault of the broker.
    Internal = "internal", 500, true;
    /// The message is over the limit told in `welcome`.
    TooLarge = "too_large", 413, false;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A WebSocket close code that the broker sends. Ranges tell a client what to do next:
/// 40xx do not reconnect, 41xx back off, 42xx reconnect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// A clean end, after `bye` or a close of the client's.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// Broken WebSocket framing.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// A frame of the other kind where an encoding was negotiated.
    pub const UNSUPPORTED_DATA: CloseCode = CloseCode(1003);
    /// Text that is not UTF-8.
    pub const INVALID_TEXT: CloseCode = CloseCode(1007);
    /// Against a rule; reconnecting would not help.
    pub const POLICY: CloseCode = CloseCode(1008);
    /// A frame or message over the limit.
    pub const TOO_BIG: CloseCode = CloseCode(1009);
    /// A fault of the broker.
    pub const INTERNAL: CloseCode = CloseCode(1011);
    /// The broker restarts: back off, then reconnect.
    pub const RESTART: CloseCode = CloseCode(1012);
    /// The broker is overloaded: back off.
    pub const OVERLOADED: CloseCode = CloseCode(1013);
    /// No token, or a wrong one.
    pub const UNAUTHORIZED: CloseCode = CloseCode(4001);
    /// The token does not allow this.
    pub const FORBIDDEN: CloseCode = CloseCode(4003);
    /// Another session took this worker's name or session.
    pub const REPLACED: CloseCode = CloseCode(4009);
    /// An operator disconnected this worker.
    pub const REMOVED: CloseCode = CloseCode(4010);
    /// No `hello` in time.
    pub const HELLO_TIMEOUT: CloseCode = CloseCode(4108);
    /// Too many messages.
    pub const RATE: CloseCode = CloseCode(4129);
    /// The client does not read what it is sent.
    pub const SLOW: CloseCode = CloseCode(4130);
    /// Nothing was heard within the ping timeout.
    pub const PING_TIMEOUT: CloseCode = CloseCode(4201);
    /// The token expired: reconnect with a new one.
    pub const TOKEN_EXPIRED: CloseCode = CloseCode(4203);

    /// What a client should do after this code.
    pub fn advice(self) -> Advice {
        match self.0 {
            1008 | 4000..=4099 => Advice::Stop,
            4200..=4299 => Advice::ReconnectNow,
            _ => Advice::BackOff,
        }
    }
}

/// What a client should do after its socket was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Reconnecting would meet the same end.
    Stop,
    /// Wait, with jitter, then reconnect.
    BackOff,
    /// Reconnect at once.
    ReconnectNow,
}
