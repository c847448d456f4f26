//! `pipeshard top`: what running processes hold, how fast they are, and keys to change it.

mod client;
mod history;
mod keys;
mod look;
mod metrics;
mod screen;
mod terminal;
mod text;
mod view;
mod watch;
mod wish;
mod words;

#[cfg(test)]
mod tests;

use clap::Args;
use client::{Client, Url};
use crossterm::event;
use look::State;
use pipeshard::share::visit;
use screen::{Next, Screen};
use std::io::{self, ErrorKind, Write};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use terminal::Terminal;
use text::{AllSeen, Seen};
use watch::Watcher;

/// Arguments of `pipeshard top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pipeshard top                 all processes of this user that run pipeshard
  pipeshard top --url http://127.0.0.1:8080 --url http://127.0.0.1:8081
  pipeshard top --once
  pipeshard top --json --api-key KEY

Tools of llama.cpp are found by themselves, unless PIPESHARD_SOCKET=off is set for
them. Servers of others, and of other machines, need --metrics and --pipeshard-control:
  llama-server -m model.gguf --pipeshard-vram 6G --pipeshard-control --metrics

Keys: + and - change the budget by 5 %, m makes it the smallest that works, s gives
the memory of weights back (sleep), w takes it again (wake), arrows select a server,
q ends. --once and --json end with an error where a server cannot be reached.")]
pub struct TopArgs {
    /// Address of a llama-server; several are a list [default: processes of this user, or else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    pub url: Vec<Url>,
    /// The API key, where the servers want one (their --api-key)
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Milliseconds from one look to the next
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub interval: u64,
    /// Print one look as text, and end
    #[arg(long)]
    pub once: bool,
    /// Print one look as JSON, and end
    #[arg(long, conflicts_with = "once")]
    pub json: bool,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Nothing to draw on.
    #[error("there is no terminal to draw on or to read keys from: pipeshard top --once prints one look as text, --json as JSON")]
    NoTerminal,
    /// The terminal failed.
    #[error("the terminal cannot be used ({0}): pipeshard top --once prints one look as text")]
    Terminal(#[source] io::Error),
    /// Nobody reads what is printed.
    #[error("cannot print what was seen: {0}")]
    Output(#[source] io::Error),
    /// Some servers cannot be reached.
    #[error("{0} of {1} servers cannot be reached; what is printed says why")]
    Unreachable(usize, usize),
    /// A thread panicked.
    #[error(
        "watching {0} ended with a fault of pipeshard, whose message is above: please report it"
    )]
    Fault(Url),
}

/// Runs the command.
///
/// # Errors
/// [`TopError`]
pub fn run(args: &TopArgs) -> Result<(), TopError> {
    match args.once || args.json {
        true => print_once(args),
        false if terminal::exists() => watch_until_end(args),
        false => Err(TopError::NoTerminal),
    }
}

/// Who is looked at.
fn asked(args: &TopArgs) -> Vec<Url> {
    if !args.url.is_empty() {
        return args.url.clone();
    }
    let found = visit::processes().into_iter().map(Url::Process);
    let found: Vec<Url> = found.collect();
    match found.is_empty() {
        true => vec![Url::Http("http://127.0.0.1:8080".to_owned())],
        false => found,
    }
}

fn client(args: &TopArgs, url: &Url) -> Client {
    Client::new(url.clone(), args.api_key.clone())
}

/// Looks at all servers at the same time: each may take seconds.
fn look_once(args: &TopArgs) -> Vec<Seen> {
    let urls = asked(args);
    std::thread::scope(|scope| {
        let look = |url| scope.spawn(move || client(args, url).look());
        let looks: Vec<_> = urls.iter().map(look).collect();
        let seen = urls.iter().zip(looks).map(|(url, look)| Seen {
            url: url.clone(),
            look: look
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        });
        seen.collect()
    })
}

fn print_once(args: &TopArgs) -> Result<(), TopError> {
    let servers = look_once(args);
    let text = match args.json {
        true => format!("{:#}\n", serde_json::json!(AllSeen { servers: &servers })),
        false => servers.iter().map(text::of).collect::<Vec<_>>().join("\n"),
    };
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(TopError::Output)?;
    let gone = servers
        .iter()
        .filter(|seen| seen.look.state == State::Unreachable);
    match gone.count() {
        0 => Ok(()),
        gone => Err(TopError::Unreachable(gone, servers.len())),
    }
}

/// How long a key waits for news of servers to be drawn.
const TICK: Duration = Duration::from_millis(50);

fn watch_until_end(args: &TopArgs) -> Result<(), TopError> {
    let urls = asked(args);
    let (tell, news) = channel();
    let mut terminal = Terminal::take().map_err(TopError::Terminal)?;
    let mut screen = Screen::new(&urls, Instant::now());
    let interval = Duration::from_millis(args.interval);
    let watcher = |(number, url)| Watcher::start(client(args, url), interval, number, tell.clone());
    let watchers: Vec<_> = urls.iter().enumerate().map(watcher).collect();
    let mut changed = true;
    while !terminal.has_ended() {
        for (number, what) in news.try_iter() {
            screen.hear(number, what);
            changed = true;
        }
        if let Some((_, url)) = watchers
            .iter()
            .zip(&urls)
            .find(|(watcher, _)| watcher.has_ended())
        {
            return Err(TopError::Fault(url.clone()));
        }
        if changed {
            terminal
                .draw(|frame| view::draw(frame, &screen))
                .map_err(TopError::Terminal)?;
            changed = false;
        }
        let Some(action) = pressed()? else {
            continue;
        };
        changed = true;
        match screen.act(action) {
            Next::Quit => break,
            Next::Ask(number, wish) => watchers[number].wish(wish),
            Next::Draw => {}
        }
    }
    Ok(())
}

/// What was pressed within a tick.
fn pressed() -> Result<Option<keys::Action>, TopError> {
    let read = || -> io::Result<_> {
        match event::poll(TICK)? {
            true => Ok(keys::action(&event::read()?)),
            false => Ok(None),
        }
    };
    match read() {
        // by a signal, which the caller looks for
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        other => other.map_err(TopError::Terminal),
    }
}
