//! Names of threads that are about to be started, for libraries whose host wants to know them when they start.

use std::sync::OnceLock;
use std::thread::Builder;

static ANNOUNCE: OnceLock<fn(&str)> = OnceLock::new();

/// From here on `announce` gets the name of each thread that is started with [`named`], on the thread that starts it. The first
/// caller's stays.
pub fn announce_to(announce: fn(&str)) {
    ANNOUNCE.get_or_init(|| announce);
}

/// A thread of that name, to be started at once. Systems show the first 15 bytes.
pub fn named(name: &str) -> Builder {
    if let Some(announce) = ANNOUNCE.get() {
        announce(name);
    }
    Builder::new().name(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn names_are_announced_and_given() {
        announce_to(|name| HEARD.lock().expect("no panic").push(name.to_owned()));
        let named = named("of-a-test").spawn(|| std::thread::current().name().map(str::to_owned));
        let name = named.expect("a thread").join().expect("no panic");
        assert_eq!(name.as_deref(), Some("of-a-test"));
        assert_eq!(*HEARD.lock().expect("no panic"), ["of-a-test"]);
    }
}
