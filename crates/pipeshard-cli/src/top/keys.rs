//! What keys mean.

use super::wish::Wish;
use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

/// What an event of the terminal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Select the server before this one.
    Previous,
    /// Select the one after it.
    Next,
    /// Ask the selected server.
    Ask(Wish),
    /// Draw again.
    Draw,
}

/// None where an event means nothing.
pub fn action(event: &Event) -> Option<Action> {
    let key = match event {
        Event::Resize(..) => return Some(Action::Draw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        // in raw mode the terminal makes no signal of it
        KeyCode::Char('c' | 'd') if control => Action::Quit,
        _ if control => return None,
        KeyCode::Char('q') | KeyCode::Esc => Action::Quit,
        KeyCode::Up | KeyCode::Left => Action::Previous,
        KeyCode::Down | KeyCode::Right => Action::Next,
        // the key of + without shift
        KeyCode::Char('+' | '=') => Action::Ask(Wish::Larger),
        KeyCode::Char('-') => Action::Ask(Wish::Smaller),
        KeyCode::Char('m') => Action::Ask(Wish::Minimum),
        KeyCode::Char('s') => Action::Ask(Wish::Sleep),
        KeyCode::Char('w') => Action::Ask(Wish::Wake),
        _ => return None,
    })
}

/// What the last line shows.
pub const HELP: [(&str, &str); 6] = [
    ("q", "quit"),
    ("+ -", "budget by 5 %"),
    ("m", "minimum"),
    ("s", "sleep"),
    ("w", "wake"),
    ("\u{2191}\u{2193}", "server"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crossterm::event::KeyEvent;

    fn pressed(code: KeyCode, modifiers: KeyModifiers) -> Option<Action> {
        action(&Event::Key(KeyEvent::new(code, modifiers)))
    }

    #[test]
    fn each_key_means_what_the_last_line_says() {
        let of = |c: char| pressed(KeyCode::Char(c), KeyModifiers::NONE);
        let expected = [
            ('+', Action::Ask(Wish::Larger)),
            ('=', Action::Ask(Wish::Larger)),
            ('-', Action::Ask(Wish::Smaller)),
            ('m', Action::Ask(Wish::Minimum)),
            ('s', Action::Ask(Wish::Sleep)),
            ('w', Action::Ask(Wish::Wake)),
            ('q', Action::Quit),
        ];
        for (key, action) in expected {
            assert_eq!(of(key), Some(action), "{key}");
        }
        assert_eq!(of('x'), None);
        assert_eq!(
            pressed(KeyCode::Up, KeyModifiers::NONE),
            Some(Action::Previous)
        );
        assert_eq!(
            pressed(KeyCode::Down, KeyModifiers::NONE),
            Some(Action::Next)
        );
        assert_eq!(
            pressed(KeyCode::Char('+'), KeyModifiers::SHIFT),
            Some(Action::Ask(Wish::Larger))
        );
    }

    #[test]
    fn control_c_ends_and_control_s_does_not_put_a_server_to_sleep() {
        assert_eq!(
            pressed(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Action::Quit)
        );
        assert_eq!(pressed(KeyCode::Char('s'), KeyModifiers::CONTROL), None);
    }

    #[test]
    fn a_key_counts_once() {
        let mut key = KeyEvent::new(KeyCode::Char('+'), KeyModifiers::NONE);
        key.kind = KeyEventKind::Release;
        assert_eq!(action(&Event::Key(key)), None);
        assert_eq!(action(&Event::Resize(1, 1)), Some(Action::Draw));
    }
}
