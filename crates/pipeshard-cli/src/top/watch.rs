//! Looks at a server again and again, in a thread of its own: one that answers late does not hold up the others.

use super::client::Client;
use super::look::Look;
use super::wish::{Reply, Wish};
use pipeshard::report::Limits;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a watcher tells.
#[derive(Debug)]
pub enum News {
    /// A look, and when it was over.
    Look(Instant, Box<Look>),
    /// What came of a wish.
    Reply(Box<Reply>),
}

/// What asks a server; tests have another than [`Client`].
pub trait Ask: Send + 'static {
    /// One look.
    fn look(&self) -> Look;
    /// What came of a wish. `limits`: the latest.
    fn wish(&self, wish: Wish, limits: Option<&Limits>) -> Reply;
}

impl Ask for Client {
    fn look(&self) -> Look {
        Client::look(self)
    }

    fn wish(&self, wish: Wish, limits: Option<&Limits>) -> Reply {
        match wish.request(limits) {
            Ok(request) => wish.reply(&self.post(&request)),
            Err(text) => Reply {
                text,
                ..Reply::default()
            },
        }
    }
}

/// Watches one server. The thread ends after its present request when this is dropped.
#[derive(Debug)]
pub struct Watcher {
    wishes: Sender<Wish>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Looks every `interval`, and tells `news` with the server's `number`.
    pub fn start(
        ask: impl Ask,
        interval: Duration,
        number: usize,
        news: Sender<(usize, News)>,
    ) -> Self {
        let (wishes, asked) = channel();
        let thread = std::thread::spawn(move || {
            watch(&ask, interval, &asked, |what| {
                news.send((number, what)).is_ok()
            })
        });
        Self { wishes, thread }
    }

    /// Asks for something; the answer comes as news. A thread that has ended is noticed by [`Self::has_ended`].
    pub fn wish(&self, wish: Wish) {
        let _ = self.wishes.send(wish);
    }

    /// It panicked: it does not end otherwise.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

fn watch(ask: &impl Ask, interval: Duration, wishes: &Receiver<Wish>, tell: impl Fn(News) -> bool) {
    loop {
        let look = ask.look();
        let mut limits = look.limits;
        if !tell(News::Look(Instant::now(), Box::new(look))) {
            return;
        }
        let mut wait = interval;
        // several keys at once are answered before the next look
        loop {
            match wishes.recv_timeout(wait) {
                Ok(wish) => {
                    let reply = ask.wish(wish, limits.as_ref());
                    limits = reply.limits.or(limits);
                    if !tell(News::Reply(Box::new(reply))) {
                        return;
                    }
                    wait = Duration::ZERO;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::look::State;
    use super::*;

    /// A server whose budget doubles with each wish.
    struct Doubling;

    fn limits(budget: u64) -> Limits {
        Limits {
            budget,
            ..Limits::default()
        }
    }

    impl Ask for Doubling {
        fn look(&self) -> Look {
            Look {
                limits: Some(limits(1)),
                ..Look::only(State::Awake, String::new())
            }
        }

        fn wish(&self, _: Wish, before: Option<&Limits>) -> Reply {
            Reply {
                limits: before.map(|before| limits(before.budget * 2)),
                ..Reply::default()
            }
        }
    }

    #[test]
    fn several_keys_go_on_from_each_others_answers() {
        let (wishes, asked) = channel();
        for _ in 0..3 {
            wishes.send(Wish::Larger).expect("a reader");
        }
        drop(wishes);
        let (told, news) = channel();
        watch(&Doubling, Duration::MAX, &asked, |what| {
            told.send(what).is_ok()
        });
        drop(told);
        let budgets: Vec<_> = news
            .iter()
            .filter_map(|what| match what {
                News::Reply(reply) => reply.limits.map(|limits| limits.budget),
                News::Look(..) => None,
            })
            .collect();
        assert_eq!(budgets, [2, 4, 8]);
    }

    #[test]
    fn it_looks_until_nothing_listens() {
        let (wishes, asked) = channel();
        let looks = std::cell::Cell::new(0);
        watch(&Doubling, Duration::ZERO, &asked, |_| {
            looks.set(looks.get() + 1);
            looks.get() < 3
        });
        assert_eq!(looks.get(), 3);
        drop(wishes);
    }

    #[test]
    fn one_that_panicked_has_ended() {
        struct Panicking;
        impl Ask for Panicking {
            fn look(&self) -> Look {
                panic!("on purpose");
            }
            fn wish(&self, _: Wish, _: Option<&Limits>) -> Reply {
                Reply::default()
            }
        }
        let (news, heard) = channel();
        let watcher = Watcher::start(Panicking, Duration::ZERO, 0, news);
        assert!(heard.recv().is_err(), "its sender goes with it");
        while !watcher.has_ended() {
            std::thread::yield_now();
        }
    }
}
