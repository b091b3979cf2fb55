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

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// A WebSocket close code that the broker sends. Ranges tell a client what to do next:
        /// 40xx do not reconnect, 41xx back off, 42xx reconnect now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct CloseCode(pub u16);

        impl CloseCode {
            $($(#[$doc])* pub const $name: CloseCode = CloseCode($number);)*

            /// Every code the broker sends, in the order of the table in `PROTOCOL.md`.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$name,)*];
        }
    };
}

close_codes! {
    /// A clean end, after `bye` or a close of the client's.
    NORMAL = 1000;
    /// Broken WebSocket framing.
    PROTOCOL_ERROR = 1002;
    /// A frame of the other kind where an encoding was negotiated.
    UNSUPPORTED_DATA = 1003;
    /// Text that is not UTF-8.
    INVALID_TEXT = 1007;
    /// Against a rule; reconnecting would not help.
    POLICY = 1008;
    /// A frame or message over the limit.
    TOO_BIG = 1009;
    /// A fault of the broker.
    INTERNAL = 1011;
    /// The broker restarts: back off, then reconnect.
    RESTART = 1012;
    /// The broker is overloaded: back off.
    OVERLOADED = 1013;
    /// No token, or a wrong one.
    UNAUTHORIZED = 4001;
    /// The token does not allow this.
    FORBIDDEN = 4003;
    /// Another session took this worker's name or session.
    REPLACED = 4009;
    /// An operator disconnected this worker.
    REMOVED = 4010;
    /// No `hello` in time.
    HELLO_TIMEOUT = 4108;
    /// Too many messages.
    RATE = 4129;
    /// The client does not read what it is sent.
    SLOW = 4130;
    /// Nothing was heard within the ping timeout.
    PING_TIMEOUT = 4201;
    /// The token expired: reconnect with a new one.
    TOKEN_EXPIRED = 4203;
}

impl CloseCode {
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
