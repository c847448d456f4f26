//! What is shown, as snapshots.

use super::look::{Look, State};
use super::metrics::Counters;
use super::screen::Screen;
use super::text::{self, Seen};
use super::view::draw;
use super::watch::News;
use super::wish::{Reply, Wish};
use super::*;
use crate::top::keys::Action;
use clap::Parser;
use pipeshard::report::{Limits, MemoryHeld};
use ratatui::backend::TestBackend;
use ratatui::Terminal as Drawn;

const MIB: u64 = 1 << 20;

fn limits(resident: u64) -> Limits {
    let held = MemoryHeld {
        resident: resident * MIB,
        kv: 1024 * MIB,
        slots: 512 * MIB,
        scratch: 304 * MIB,
        vision: 0,
        other: 32 * MIB,
    };
    Limits {
        budget: 6144 * MIB,
        minimum: 1480 * MIB,
        everything_resident: Some(16_400 * MIB),
        held_total: held.total(),
        held,
        by_driver: held.total() + 20 * MIB,
    }
}

fn asleep_limits() -> Limits {
    let held = MemoryHeld {
        kv: 1024 * MIB,
        scratch: 304 * MIB,
        ..MemoryHeld::default()
    };
    Limits {
        held_total: held.total(),
        held,
        by_driver: held.total() + 20 * MIB,
        ..limits(0)
    }
}

/// After `half` half seconds of work.
fn at_work(half: u64) -> Look {
    let counters = Counters {
        prompt_tokens: Some(4096.0),
        answered_tokens: Some(1234.0),
        requests: Some(2.0),
        prompt_passes: 8,
        decode_passes: 1000 + 8 * half,
        streamed_bytes: 50 * 1024 * MIB + half * 3000 * MIB,
        uploaded_bytes: 4096 * MIB,
        stalls: 3,
        errors: 0,
        budget_changes: 1,
    };
    Look {
        state: State::Awake,
        reason: None,
        program: None,
        device: Some("CUDA0 (NVIDIA GeForce RTX 4070)".to_owned()),
        limits: Some(limits(4000 + 40 * (half % 5))),
        counters: Some(counters),
        remarks: Vec::new(),
    }
}

fn gone() -> Look {
    let why = "nothing listens at http://127.0.0.1:8081: start llama-server there, or name another with --url";
    Look::only(State::Unreachable, why.to_owned())
}

fn unflagged() -> Look {
    let remarks = [
        "add --pipeshard-control to the server's flags to see and change its budget",
        "add --metrics to the server's flags to see tokens, link and stalls",
    ];
    Look {
        reason: None,
        program: None,
        device: Some("SIM0 (simulated GPU)".to_owned()),
        remarks: remarks.map(str::to_owned).to_vec(),
        ..Look::only(State::Awake, String::new())
    }
}

/// A screen of as many servers as there are lists of looks, half a second apart.
fn screen(looks: Vec<Vec<Look>>) -> Screen {
    let url = |number: usize| {
        format!("http://127.0.0.1:{}", 8080 + number)
            .parse()
            .expect("a URL")
    };
    let urls: Vec<Url> = (0..looks.len()).map(url).collect();
    let start = Instant::now();
    let mut screen = Screen::new(&urls, start);
    for (number, looks) in looks.into_iter().enumerate() {
        for (at, look) in (0..).zip(looks) {
            let when = start + Duration::from_millis(500) * at;
            screen.hear(number, News::Look(when, Box::new(look)));
        }
    }
    screen
}

fn drawn(screen: &Screen, width: u16, height: u16) -> String {
    let mut terminal = Drawn::new(TestBackend::new(width, height)).expect("a backend in memory");
    terminal
        .draw(|frame| draw(frame, screen))
        .expect("it draws");
    terminal.backend().to_string()
}

#[test]
fn a_server_at_work() {
    let looks = (0..200).map(at_work).collect();
    insta::assert_snapshot!(drawn(&screen(vec![looks]), 80, 20));
}

#[test]
fn several_servers_and_a_refusal() {
    let asleep = Look {
        state: State::Asleep,
        reason: Some(
            "no device memory is held for weights; the next request takes it, or w".to_owned(),
        ),
        limits: Some(asleep_limits()),
        ..at_work(0)
    };
    let mut screen = screen(vec![
        (0..3).map(at_work).collect(),
        vec![gone()],
        vec![asleep],
        vec![],
        vec![unflagged()],
    ]);
    screen.act(Action::Next);
    screen.act(Action::Next);
    screen.act(Action::Ask(Wish::Smaller));
    let reply = Reply {
        text: "refused, the smallest budget is 1.45 GiB (m): a budget of 1.4 GiB is too small for what is loaded".to_owned(),
        ..Reply::default()
    };
    screen.hear(2, News::Reply(Box::new(reply)));
    insta::assert_snapshot!(drawn(&screen, 80, 26));
}

#[test]
fn what_is_missing_and_what_cannot_be_reached() {
    let mut two = screen(vec![vec![unflagged()], vec![gone()]]);
    let first = drawn(&two, 60, 12);
    two.act(Action::Next);
    insta::assert_snapshot!(format!("{first}\n{}", drawn(&two, 60, 12)));
}

#[test]
fn a_server_that_was_not_heard_yet_and_a_wish_that_was_not_answered() {
    let mut one = screen(vec![vec![]]);
    one.act(Action::Ask(Wish::Wake));
    let text = drawn(&one, 60, 5);
    assert!(
        text.contains("is asked") && text.contains("asked …"),
        "{text}"
    );
}

#[test]
fn no_size_of_the_terminal_is_too_small() {
    let two = screen(vec![(0..5).map(at_work).collect(), vec![gone()]]);
    for (width, height) in [(1, 1), (3, 2), (12, 5), (20, 40), (500, 3)] {
        drawn(&two, width, height);
    }
}

#[test]
fn the_selected_server_is_listed_however_many_there_are() {
    let mut many = screen(vec![vec![gone()]; 30]);
    for _ in 0..20 {
        many.act(Action::Next);
    }
    let text = drawn(&many, 80, 24);
    assert!(text.contains("> http://127.0.0.1:8100"), "{text}");
}

#[test]
fn one_look_as_text() {
    let looks = [at_work(3), gone(), unflagged()];
    let texts = (0..).zip(looks).map(|(number, look)| {
        let url = format!("127.0.0.1:{}", 8080 + number)
            .parse()
            .expect("a URL");
        text::of(&Seen { url, look })
    });
    insta::assert_snapshot!(texts.collect::<Vec<_>>().join("\n"));
}

#[test]
fn one_look_as_json_has_all_that_was_seen() {
    let servers = [Seen {
        url: "127.0.0.1:8080".parse().expect("a URL"),
        look: at_work(0),
    }];
    let json = serde_json::json!(AllSeen { servers: &servers });
    let server = &json["servers"][0];
    assert_eq!(server["url"], "http://127.0.0.1:8080");
    assert_eq!(server["state"], "awake");
    assert_eq!(server["limits"]["held"]["kv"], 1024 * MIB);
    assert_eq!(server["counters"]["decode_passes"], 1000);
    assert_eq!(server["remarks"], serde_json::json!([]));
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    top: TopArgs,
}

#[test]
fn several_addresses_are_a_list_and_none_is_the_default() {
    let of = |words: &[&str]| {
        Line::try_parse_from([&["top"], words].concat()).map(|line| line.top.url.len())
    };
    assert_eq!(of(&[]).ok(), Some(0));
    assert_eq!(of(&["--url", "http://a", "--url", "b:1"]).ok(), Some(2));
    for wrong in [
        &["--url", "https://a"][..],
        &["--interval", "1"],
        &["--once", "--json"],
    ] {
        assert!(of(wrong).is_err(), "{wrong:?}");
    }
}
