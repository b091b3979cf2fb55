//! `taskyard top`: [`model`] computes, [`state`] is what keys act on, [`view`] draws; here are the connection and the
//! terminal.

mod model;
mod state;
mod view;

use std::io::{self, IsTerminal as _};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use serde_json::Value;
use taskyard_client::{Client, ClientEvent, RequestError};
use taskyard_proto::{ErrorCode, Every, Observe, Overview, QueueList, QueueName, ServerMessage, TaskId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use self::model::Samples;
use self::state::{Ask, Confirm, Detail, Link, Page, State};
use self::view::Theme;
use super::api::{Api, Path};
use super::output::{complain, print_line, terminal_width};
use super::{Failed, Remote, interrupted, span};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Press ? for the keys. It takes the permission `observe` on at least one queue; latencies, the log \
and the process take observe:*, pausing takes `manage`. Without a terminal it prints one sample, as with --once."
)]
pub(super) struct Args {
    /// Tell of these queues, at most 100 [default: the 50 with most tasks]
    #[arg(value_name = "QUEUE", num_args = 0..=100)]
    queues: Vec<QueueName>,

    /// How often: 250ms to 60s
    #[arg(long, default_value = "1s", value_parser = interval, value_name = "TIME")]
    every: Every,

    /// Print one sample, of so long a time, and end
    #[arg(long)]
    once: bool,

    /// For programs: a line of JSON for each sample
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

fn interval(text: &str) -> Result<Every, String> {
    match span::parse(text)? {
        0 => None,
        ms => Every::new(ms),
    }
    .ok_or_else(|| "expected 250ms to 60s".to_owned())
}

/// What may wait to be looked at: samples that are not are dropped, the next says more.
const EVENTS_MAX: usize = 64;
const KEYS_MAX: usize = 64;
/// So often the screen is drawn at least: what was heard last becomes older.
const TICK: Duration = Duration::from_secs(1);
/// So often what does not come by itself is asked for, while it is shown.
const REFRESH: Duration = Duration::from_secs(2);
/// How long a sample may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(10);
/// The width of a line where there is no terminal.
const PLAIN_WIDTH: u16 = 120;
/// So many dead letters are shown.
const DEAD_SHOWN: usize = 20;

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let mut watch = Watch::begin(&args).await?;
    let on_screen = io::stdout().is_terminal() && io::stdin().is_terminal();
    if args.json {
        lines(&args, &mut watch).await?;
    } else if args.once || !on_screen {
        let mut state = State::new(&args.remote.url, args.every.get());
        state.samples = once(&args, &mut watch).await?;
        print_line(&view::plain(&state, terminal_width().unwrap_or(PLAIN_WIDTH)))?;
    } else {
        screen(&args, &mut watch).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the connection brings.
#[derive(Debug)]
enum News {
    Sample(Box<Overview>),
    Up,
    Down(String),
    Ended(String),
}

/// A connection over which a broker is observed.
struct Watch {
    client: Client,
    wish: Observe,
    news: mpsc::Receiver<News>,
}

impl Watch {
    async fn begin(args: &Args) -> Result<Watch, Failed> {
        let (tell, news) = mpsc::channel(EVENTS_MAX);
        let options = args.remote.options()?.on_event(move |event| {
            let news = match event {
                ClientEvent::Connected { .. } => News::Up,
                ClientEvent::Disconnected { closed, .. } => News::Down(closed.to_string()),
                ClientEvent::ConnectFailed { error } => News::Down(error),
                ClientEvent::Message { message: ServerMessage::Overview(sample), .. } => News::Sample(sample),
                ClientEvent::Ended { closed } => News::Ended(closed.to_string()),
                _ => return,
            };
            // Whoever does not look misses some.
            let _ = tell.try_send(news);
        });
        let client = Client::connect(options).await.map_err(|error| args.remote.unreachable(&error))?;
        let queues = (!args.queues.is_empty()).then(|| args.queues.clone());
        let wish = Observe { every_ms: Some(args.every), queues: queues.and_then(QueueList::new) };
        let watch = Watch { client, wish, news };
        watch.observe().await?;
        Ok(watch)
    }

    /// Asks for samples: on each connection anew.
    fn observe(&self) -> impl Future<Output = Result<(), Failed>> + Send + use<> {
        let (client, wish) = (self.client.clone(), self.wish.clone());
        async move {
            match client.request(wish).await {
                Ok(_) => Ok(()),
                Err(RequestError::Refused(error)) if error.code == ErrorCode::UnknownType => {
                    Err(Failed::other(
                        "the broker is too old to be observed: `taskyard status` shows what it tells",
                    ))
                }
                // The next connection asks again.
                Err(RequestError::Disconnected(_)) => Ok(()),
                Err(error) => Err(Failed::other(error)),
            }
        }
    }

    async fn next(&mut self) -> Result<News, Failed> {
        match self.news.recv().await {
            Some(News::Ended(why)) => Err(Failed::other(format!("the connection ended for good: {why}"))),
            Some(news) => Ok(news),
            None => Err(Failed::other("the connection ended")),
        }
    }
}

/// Two samples, and so the rates of the time between them.
async fn once(args: &Args, watch: &mut Watch) -> Result<Samples, Failed> {
    let mut samples = Samples::default();
    let two = async {
        while samples.rates().is_none() {
            match watch.next().await? {
                News::Sample(sample) => samples.push(*sample),
                News::Down(why) => return Err(Failed::other(format!("the connection was lost: {why}"))),
                News::Up | News::Ended(_) => {}
            }
        }
        Ok(())
    };
    let limit = Duration::from_millis(args.every.get()) + PATIENCE;
    match tokio::time::timeout(limit, two).await {
        Ok(done) => done.map(|()| samples),
        Err(_) => Err(Failed::other(format!("the broker sent no sample within {} s", limit.as_secs()))),
    }
}

/// A line for each sample, until somebody ends it.
async fn lines(args: &Args, watch: &mut Watch) -> Result<(), Failed> {
    if args.once {
        return print_line(&once(args, watch).await?.json().to_string());
    }
    let mut samples = Samples::default();
    let mut stop = pin!(interrupted());
    loop {
        let news = tokio::select! {
            () = &mut stop => return Ok(()),
            news = watch.next() => news?,
        };
        match news {
            News::Sample(sample) => {
                samples.push(*sample);
                // The first has no rates.
                if samples.rates().is_some() {
                    print_line(&samples.json().to_string())?;
                }
            }
            News::Up => watch.observe().await?,
            News::Down(why) => complain(&format!("the connection was lost: {why}")),
            News::Ended(_) => {}
        }
    }
}

/// The terminal, given back as it was: at every end, of a panic too.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Screen, Failed> {
        ratatui::try_init().map(Screen).map_err(|error| {
            // Half of it may be done: keys that are not shown, most likely.
            ratatui::restore();
            Failed::other(format!("cannot use this terminal: {error}; see --once"))
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What a request brought.
enum Answer {
    Queue(String, Result<Box<Detail>, Failed>),
    Workers(Result<Vec<Value>, Failed>),
    Paused(Confirm, Result<(), Failed>),
}

async fn screen(args: &Args, watch: &mut Watch) -> Result<(), Failed> {
    let mut screen = Screen::open()?;
    let mut keys = keys();
    let (answer, mut answers) = mpsc::channel::<Answer>(EVENTS_MAX);
    let (refused, mut refusals) = mpsc::channel::<Failed>(1);
    let mut state = State::new(&args.remote.url, args.every.get());
    let theme = Theme { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut asked) = (Instant::now(), 0);
    let mut stop = pin!(interrupted());
    loop {
        state.silent_ms = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
        screen
            .0
            .draw(|frame| view::draw(frame, &state, theme))
            .map_err(|error| Failed::other(format!("cannot draw on this terminal: {error}")))?;
        let ask = tokio::select! {
            () = &mut stop => return Ok(()),
            input = keys.recv() => match input {
                Some(Ok(event::Event::Key(key))) => state.key(key),
                // Another size: the next turn draws for it.
                Some(Ok(_)) => None,
                Some(Err(error)) => return Err(Failed::other(format!("cannot read keys: {error}"))),
                None => return Err(Failed::other("the terminal is gone")),
            },
            news = watch.next() => {
                match news? {
                    News::Sample(sample) => {
                        heard = Instant::now();
                        state.link = Link::Up;
                        state.samples.push(*sample);
                    }
                    News::Up => {
                        heard = Instant::now();
                        state.link = Link::Up;
                        // Keys are read meanwhile: the broker may hang.
                        let (observe, refused) = (watch.observe(), refused.clone());
                        tokio::spawn(async move {
                            if let Err(failed) = observe.await {
                                let _ = refused.send(failed).await;
                            }
                        });
                    }
                    News::Down(why) => state.link = Link::Down { why },
                    News::Ended(_) => {}
                }
                None
            }
            Some(answered) = answers.recv() => {
                asked -= usize::from(!matches!(answered, Answer::Paused(..)));
                show(&mut state, answered)
            }
            Some(failed) = refusals.recv() => return Err(failed),
            _ = tick.tick() => None,
        };
        match ask {
            Some(Ask::Quit) => return Ok(()),
            Some(Ask::Pause(confirm)) => {
                let (remote, answer) = (args.remote.clone(), answer.clone());
                tokio::spawn(async move {
                    let done = pause(&remote, &confirm).await;
                    let _ = answer.send(Answer::Paused(confirm, done)).await;
                });
            }
            Some(Ask::Refresh) => asked += refresh(Duration::ZERO, args, &state, &answer),
            // One at a time, and some time after the last.
            None if asked == 0 => asked += refresh(REFRESH, args, &state, &answer),
            None => {}
        }
    }
}

/// Asks for what the page shows and does not come by itself; how many answers there will be.
fn refresh(wait: Duration, args: &Args, state: &State, answer: &mpsc::Sender<Answer>) -> usize {
    let (remote, answer) = (args.remote.clone(), answer.clone());
    let now_ms = state.samples.latest().map_or(0, |now| now.at_ms);
    let queue = match &state.page {
        Page::Queue { name, .. } => Some(name.clone()),
        Page::Workers(_) => None,
        Page::Queues => return 0,
    };
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        let answered = match queue {
            Some(name) => {
                let found = detail(&remote, &name, now_ms).await;
                Answer::Queue(name, found.map(Box::new))
            }
            None => Answer::Workers(workers(&remote).await),
        };
        // The screen may be gone.
        let _ = answer.send(answered).await;
    });
    1
}

/// Takes an answer, if what it is about is still shown.
fn show(state: &mut State, answered: Answer) -> Option<Ask> {
    match (answered, &mut state.page) {
        (Answer::Queue(of, Ok(found)), Page::Queue { name, detail }) if of == *name => *detail = Some(found),
        (Answer::Workers(Ok(found)), Page::Workers(workers)) => *workers = Some(found),
        (Answer::Queue(_, Err(failed)), Page::Queue { .. })
        | (Answer::Workers(Err(failed)), Page::Workers(_))
        | (Answer::Paused(_, Err(failed)), _) => state.say(failed.message, true),
        (Answer::Paused(Confirm { queue, pause: true }, Ok(())), _) => {
            state.say(format!("{queue} is paused"), false);
            return (state.page != Page::Queues).then_some(Ask::Refresh);
        }
        (Answer::Paused(Confirm { queue, pause: false }, Ok(())), _) => {
            state.say(format!("{queue} delivers again"), false);
            return (state.page != Page::Queues).then_some(Ask::Refresh);
        }
        (Answer::Queue(..) | Answer::Workers(_), _) => {}
    }
    None
}

async fn pause(remote: &Remote, confirm: &Confirm) -> Result<(), Failed> {
    let verb = if confirm.pause { "pause" } else { "unpause" };
    Api::at(remote)?.post(&format!("/v1/queues/{}/{verb}", confirm.queue), "{}").await.map(|_| ())
}

async fn workers(remote: &Remote) -> Result<Vec<Value>, Failed> {
    Ok(Api::at(remote)?.get("/v1/workers").await?.list("workers").to_vec())
}

async fn detail(remote: &Remote, queue: &str, now_ms: u64) -> Result<Detail, Failed> {
    let api = Api::at(remote)?;
    let queue_path = format!("/v1/queues/{queue}");
    let known = api.get(&queue_path).await?.value;
    let mut dead = Vec::new();
    if known["counts"]["dead"].as_u64().unwrap_or(0) > 0 {
        // They are listed from the oldest on, by ids that begin with the time: so first those of the last minute, and
        // further back until there are enough.
        for back_ms in [60_000, 3_600_000, 86_400_000, 30 * 86_400_000, now_ms] {
            let after = first_id_of(now_ms.saturating_sub(back_ms));
            let path =
                Path::new(format!("{queue_path}/dead")).with("limit", 100).with("after", after).build();
            dead = api.get(&path).await?.list("tasks").to_vec();
            if dead.len() >= DEAD_SHOWN {
                break;
            }
        }
        dead.reverse();
        dead.truncate(DEAD_SHOWN);
    }
    Ok(Detail { queue: known, dead })
}

/// An id before all that are made from that moment on.
fn first_id_of(ms: u64) -> TaskId {
    TaskId((u128::from(ms) & ((1 << 48) - 1)) << 80 | 7 << 76 | 2 << 62)
}

/// Reads keys on a thread of its own, since that waits. It ends soon after nobody listens.
fn keys() -> mpsc::Receiver<io::Result<event::Event>> {
    let (tell, keys) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !tell.is_closed() {
            let input = match event::poll(Duration::from_millis(200)) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            let failed = input.is_err();
            if tell.blocking_send(input).is_err() || failed {
                return;
            }
        }
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_that_a_broker_takes() {
        assert_eq!(interval("250ms").map(Every::get), Ok(250));
        assert_eq!(interval("1m").map(Every::get), Ok(60_000));
        for wrong in ["0s", "249ms", "61s", "1"] {
            assert!(interval(wrong).unwrap_err().contains("expected"), "{wrong}");
        }
    }

    #[test]
    fn ids_are_in_order_of_their_time() {
        let before = first_id_of(1_798_761_600_000);
        assert_eq!(TaskId::parse(&before.to_string()), Some(before), "it can be asked with");
        let made = TaskId::generate();
        assert!(first_id_of(0) < before && before < first_id_of(1_798_761_600_001) && first_id_of(0) < made);
    }

    #[test]
    fn an_answer_is_shown_where_it_was_asked_for() {
        let mut state = State::new("http://127.0.0.1:7070", 1000);
        let found = || Ok(Box::new(Detail { queue: Value::Null, dead: Vec::new() }));
        assert_eq!(show(&mut state, Answer::Queue("a".into(), found())), None);
        assert_eq!(state.page, Page::Queues, "it was left meanwhile");
        state.page = Page::Queue { name: "b".into(), detail: None };
        show(&mut state, Answer::Queue("a".into(), found()));
        assert_eq!(state.page, Page::Queue { name: "b".into(), detail: None }, "another");
        let pause = Confirm { queue: "b".into(), pause: true };
        assert_eq!(show(&mut state, Answer::Paused(pause, Ok(()))), Some(Ask::Refresh));
        assert_eq!(state.notice.as_ref().map(|notice| notice.text.as_str()), Some("b is paused"));
        show(&mut state, Answer::Queue("b".into(), Err(Failed::other("no"))));
        assert!(state.notice.is_some_and(|notice| notice.bad));
    }
}
