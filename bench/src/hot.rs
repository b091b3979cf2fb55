//! What the broker does for one task, apart from sockets, threads and the disk: each part in a loop of its own, on
//! one core. In nanoseconds here; `bench/instructions` counts the instructions of the same loops.

use std::hint::black_box;
use std::time::Instant;

use clap::ValueEnum;
use fastwebsockets::OpCode;
use taskyard::core::{Command, Config, Effects, Open, Origin, Output, SessionId, Shard, StoreOp, Time};
use taskyard::engine::records;
use taskyard::log::RecordBatch;
use taskyard::ws::frames::{self, Assembly, Broken, Incoming};
use taskyard_proto::codec::{decode_client_body, encode_client, encode_server};
use taskyard_proto::message::Credit;
use taskyard_proto::{
    Accepted, Ack, ClientMessage, Encoding, GivenLease, Hello, LeaseId, LeaseList, Payload, QueueName,
    Request, RequestId, Response, ServerMessage, Submit, Subscribe, Task, TaskId, WorkerName,
};

use crate::{Failed, Wire, median, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The part to measure; all if none is named
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Tasks in a round
    #[arg(long, default_value_t = 400_000)]
    tasks: u64,
    /// Rounds; the median is quoted
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, value_enum, default_value_t = Wire::Json)]
    encoding: Wire,
    /// Queues that the tasks are spread over
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Workers of each queue, with credit 64
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Tasks that wait in each queue all the while, behind a worker that does not come
    #[arg(long, default_value_t = 0)]
    waiting: u64,
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
}

/// A part of a task's way through the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A submit and an ack, from a frame's bytes to messages
    Read,
    /// Shard::apply: the submit, its being stored, the delivery, the ack
    Core,
    /// What the core wants stored, to the log's records
    Log,
    /// The confirmation and the delivery, from messages to frames
    Write,
}

/// So many submits are applied in a turn, and stored with one sync.
const TURN: u64 = 64;
/// As the default of the load generator.
const CREDIT: u64 = 64;

pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let parts = args.part.map_or(Part::value_variants().to_vec(), |part| vec![part]);
    print(&format!(
        "{} tasks a round, {} rounds; {} queues of {} workers, {} tasks waiting in each; {} B payload, {}",
        args.tasks,
        args.rounds,
        args.queues,
        args.workers,
        args.waiting,
        args.payload_bytes,
        args.encoding.name()
    ));
    print("part     ns a task (min … max)       tasks/s of one core");
    for part in parts {
        let mut figures = Vec::new();
        for _ in 0..args.rounds {
            figures.push(round(part, args)? / args.tasks as f64);
        }
        let (min, max) = figures.iter().fold((f64::MAX, 0f64), |(a, b), f| (a.min(*f), b.max(*f)));
        let middle = median(&figures);
        let name = part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        print(&format!("{name:<8} {middle:>6.0} ({min:.0} … {max:.0}) {:>18.0}", 1e9 / middle));
    }
    Ok(())
}

/// One round; its nanoseconds.
fn round(part: Part, args: &Args) -> Result<f64, Failed> {
    match part {
        Part::Read => read(args),
        Part::Core => core(args, &mut |_| {}),
        Part::Log => log(args),
        Part::Write => write(args),
    }
}

fn payload(args: &Args) -> Result<Payload, Failed> {
    let text = "x".repeat(args.payload_bytes);
    Ok(match args.encoding {
        Wire::Json => Payload::json(&text)?,
        Wire::Msgpack => Payload::binary(text.into_bytes()),
    })
}

fn queue(nth: usize) -> Result<QueueName, Failed> {
    Ok(QueueName::parse(&format!("bench{nth}"))?)
}

/// A client's frame, masked with nothing.
fn masked(encoding: Encoding, message: ClientMessage) -> Vec<u8> {
    let mut body = Vec::new();
    encode_client(encoding, &Request { id: Some(RequestId::Integer(123_456)), message }, &mut body);
    let mut frame = Vec::new();
    let opcode = if encoding == Encoding::Json { OpCode::Text } else { OpCode::Binary };
    frames::write(&mut frame, opcode, false, &body);
    // The header's second byte says whether there is a mask, which stands behind the header.
    frame[1] |= 0x80;
    let header = frame.len() - body.len();
    frame.splice(header..header, [0; 4]);
    frame
}

fn read(args: &Args) -> Result<f64, Failed> {
    let encoding = args.encoding.encoding();
    let lease = LeaseId { number: 123_456, slot: 17, recipient: 0 };
    let ack = Ack { leases: LeaseList::One(GivenLease::Lease(lease)), result: Payload::NULL };
    let mut both = masked(encoding, Submit::new(queue(0)?, payload(args)?).into());
    both.extend(masked(encoding, ack.into()));
    let mut assembly = Assembly::new(1 << 20, false);
    let began = Instant::now();
    for _ in 0..args.tasks {
        assembly
            .feed(&mut both, &mut |incoming| -> Result<(), Broken> {
                if let Incoming::Message(body) = incoming {
                    black_box(decode_client_body(body).expect("it was encoded here"));
                }
                Ok(())
            })
            .map_err(|broken| broken.reason)?;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

/// A shard with workers that take all they are given, and what comes of it.
struct Stage {
    shard: Shard,
    fx: Effects,
    now: Time,
}

impl Stage {
    fn apply(&mut self, command: Command) {
        self.shard.apply(self.now, command, &mut self.fx);
    }

    fn say(&mut self, session: u64, message: ClientMessage) {
        self.apply(Command::Message { origin: Origin::Session(SessionId(session), None), message });
    }

    fn open(&mut self, session: u64) -> Result<(), Failed> {
        self.apply(Command::Open(Box::new(Open {
            session: SessionId(session),
            access: None,
            hello: Box::new(Hello::empty()),
            reference: None,
            made_up_name: WorkerName::parse(&format!("w{session}"))?,
            resume_key: 0,
            subscribe: None,
            join: None,
        })));
        Ok(())
    }

    fn stored(&mut self, operations: &mut impl FnMut(&mut Vec<StoreOp>)) {
        operations(&mut self.fx.store);
        self.fx.store.clear();
        let through = self.shard.operations();
        self.apply(Command::Stored { through });
    }
}

/// `operations` is given what is to be stored, which is not timed apart.
fn core(args: &Args, operations: &mut impl FnMut(&mut Vec<StoreOp>)) -> Result<f64, Failed> {
    let config = Config { queues_max: args.queues + 1, weight_max: u64::MAX, ..Config::default() };
    let mut stage = Stage { shard: Shard::new(config), fx: Effects::default(), now: Time(1) };
    stage.open(1)?;
    let queues: Vec<QueueName> = (0..args.queues).map(queue).collect::<Result<_, _>>()?;
    let payload = payload(args)?;
    let mut next = 0u128;
    let mut submit = |stage: &mut Stage, queue: &QueueName| {
        next += 1;
        let origin = Origin::Session(SessionId(1), Some(RequestId::Integer(next as i64)));
        let submit = Submit::new(queue.clone(), payload.clone()).into();
        // A task a microsecond, as at a million a second.
        let task = TaskId::of_time(1_800_000_000_000_000 + next as u64, next);
        stage.apply(Command::Submit { origin, access: None, task, submit });
    };
    for queue in &queues {
        for nth in 0..args.waiting {
            submit(&mut stage, queue);
            if nth % TURN == 0 {
                stage.stored(&mut |_| {});
                stage.fx.clear();
            }
        }
        stage.stored(&mut |_| {});
        stage.fx.clear();
    }
    let mut session = 1;
    for queue in &queues {
        for _ in 0..args.workers {
            session += 1;
            stage.open(session)?;
            let credit = Credit::new(CREDIT);
            let subscribe = Subscribe { queue: queue.clone(), credit, mode: None, explicit_start: false };
            stage.say(session, subscribe.into());
        }
    }
    let mut given: Vec<(u64, LeaseId)> = Vec::new();
    let take = |stage: &mut Stage, given: &mut Vec<(u64, LeaseId)>| {
        for output in stage.fx.outputs.drain(..) {
            if let Output::Send {
                session,
                message: ServerMessage::Task(Task { lease: Some(lease), .. }),
                ..
            } = black_box(output)
            {
                given.push((session.0, lease));
            }
        }
        stage.fx.hops.clear();
    };
    take(&mut stage, &mut given);
    let began = Instant::now();
    let mut done = 0;
    while done < args.tasks {
        stage.now = Time(stage.now.0 + 100);
        let turn = TURN.min(args.tasks - done);
        for nth in done..done + turn {
            submit(&mut stage, &queues[nth as usize % queues.len()]);
        }
        stage.stored(operations);
        take(&mut stage, &mut given);
        for (session, lease) in given.drain(..given.len().min(turn as usize)) {
            stage.say(session, Ack { leases: lease.into(), result: Payload::NULL }.into());
        }
        stage.stored(operations);
        take(&mut stage, &mut given);
        let now = stage.now;
        stage.shard.expire(now, &mut stage.fx);
        done += turn;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

fn log(args: &Args) -> Result<f64, Failed> {
    // The operations of some turns, again and again.
    let mut turns: Vec<Vec<StoreOp>> = Vec::new();
    let few = Args { tasks: TURN * 16, rounds: 1, part: None, ..*args };
    core(&few, &mut |operations| turns.push(std::mem::take(operations)))?;
    let mut batch = RecordBatch::new();
    let began = Instant::now();
    let mut done = 0;
    // A turn's submits are a batch, and its acks are one.
    for operations in turns.iter().cycle() {
        if done >= args.tasks * 2 {
            break;
        }
        for operation in operations {
            black_box(records::encode(operation, &mut batch));
        }
        done += TURN;
        batch.clear();
    }
    Ok(began.elapsed().as_nanos() as f64)
}

fn write(args: &Args) -> Result<f64, Failed> {
    let task = TaskId::generate();
    let accepted = Response {
        reference: Some(RequestId::Integer(123_456)),
        message: Accepted { task, duplicate: false }.into(),
    };
    let delivery = Response {
        reference: None,
        message: Task {
            task,
            lease: Some(LeaseId { number: 123_456, slot: 17, recipient: 0 }),
            queue: queue(0)?,
            attempt: 1,
            max_attempts: 5,
            redelivered: false,
            ack_timeout_ms: 30_000,
            age_ms: 0,
            priority: 4,
            headers: taskyard_proto::Headers::default(),
            payload: payload(args)?,
        }
        .into(),
    };
    let encoding = args.encoding.encoding();
    let mut out = Vec::new();
    let began = Instant::now();
    for _ in 0..args.tasks {
        for response in [&accepted, &delivery] {
            let start = frames::begin(&mut out);
            encode_server(encoding, response, &mut out);
            frames::end(&mut out, start, OpCode::Text);
        }
        if out.len() > 256 << 10 {
            black_box(&out);
            out.clear();
        }
    }
    Ok(began.elapsed().as_nanos() as f64)
}
