//! What the screen shows: servers, the one that is selected, and the last answer of each.

use super::client::Url;
use super::history::History;
use super::keys::Action;
use super::watch::News;
use super::wish::{Reply, Wish};
use std::time::Instant;

/// A server on the screen.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub url: Url,
    /// What was seen of it.
    pub history: History,
    /// What came of the latest wish.
    pub reply: Option<Reply>,
    /// Wishes that were not answered yet.
    pub waiting: usize,
}

/// All that is shown.
#[derive(Debug)]
pub struct Screen {
    /// In the order of the command line; never empty.
    pub servers: Vec<Server>,
    /// Which one keys are for.
    pub selected: usize,
    start: Instant,
}

/// What is to be done after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing more than to draw.
    Draw,
    /// Ask this server.
    Ask(usize, Wish),
    /// End.
    Quit,
}

impl Screen {
    /// Of these servers, of which nothing is known yet.
    pub fn new(urls: &[Url], start: Instant) -> Self {
        let server = |url: &Url| Server {
            url: url.clone(),
            history: History::default(),
            reply: None,
            waiting: 0,
        };
        Self {
            servers: urls.iter().map(server).collect(),
            selected: 0,
            start,
        }
    }

    /// What a watcher told of the server with this number.
    pub fn hear(&mut self, number: usize, news: News) {
        let at = self.start;
        let Some(server) = self.servers.get_mut(number) else {
            return;
        };
        match news {
            News::Look(when, look) => server
                .history
                .add(when.saturating_duration_since(at), *look),
            News::Reply(reply) => {
                server.waiting = server.waiting.saturating_sub(1);
                server.reply = Some(*reply);
            }
        }
    }

    /// A key was pressed.
    pub fn act(&mut self, action: Action) -> Next {
        let last = self.servers.len().saturating_sub(1);
        match action {
            Action::Quit => return Next::Quit,
            Action::Previous => self.selected = self.selected.saturating_sub(1),
            Action::Next => self.selected = (self.selected + 1).min(last),
            Action::Ask(wish) => {
                self.servers[self.selected].waiting += 1;
                return Next::Ask(self.selected, wish);
            }
            Action::Draw => {}
        }
        Next::Draw
    }
}

#[cfg(test)]
mod tests {
    use super::super::look::{Look, State};
    use super::*;

    fn screen() -> Screen {
        let urls = ["http://a:1", "http://b:2"].map(|url| url.parse().expect("a URL"));
        Screen::new(&urls, Instant::now())
    }

    #[test]
    fn arrows_select_the_server_that_keys_are_for() {
        let mut screen = screen();
        assert_eq!(screen.act(Action::Previous), Next::Draw);
        assert_eq!(
            screen.act(Action::Ask(Wish::Sleep)),
            Next::Ask(0, Wish::Sleep)
        );
        for _ in 0..3 {
            screen.act(Action::Next);
        }
        assert_eq!(
            screen.act(Action::Ask(Wish::Wake)),
            Next::Ask(1, Wish::Wake)
        );
        screen.act(Action::Previous);
        assert_eq!(
            screen.act(Action::Ask(Wish::Larger)),
            Next::Ask(0, Wish::Larger)
        );
        assert_eq!(screen.act(Action::Quit), Next::Quit);
    }

    #[test]
    fn news_are_of_the_server_that_they_come_from() {
        let mut screen = screen();
        screen.act(Action::Next);
        screen.act(Action::Ask(Wish::Sleep));
        let look = Look::only(State::Loading, "wait".to_owned());
        screen.hear(1, News::Look(Instant::now(), Box::new(look.clone())));
        screen.hear(7, News::Reply(Box::default()));
        assert_eq!(
            (screen.servers[1].history.look(), screen.servers[1].waiting),
            (Some(&look), 1)
        );
        screen.hear(1, News::Reply(Box::default()));
        assert_eq!(
            (screen.servers[1].waiting, screen.servers[1].reply.is_some()),
            (0, true)
        );
        assert!(screen.servers[0].history.look().is_none() && screen.servers[0].reply.is_none());
    }
}
