//! What answers of servers say.

use super::*;
use pipeshard::report::MemoryHeld;
use serde_json::json;

fn ok(body: &impl ToString) -> Heard {
    said(200, body)
}

fn said(status: u16, body: &impl ToString) -> Heard {
    let body = body.to_string();
    Ok(Answer { status, body })
}

fn error(status: u16, message: &str) -> Heard {
    said(
        status,
        &json!({"error": {"code": status, "message": message}}),
    )
}

fn limits(resident: u64) -> Limits {
    Limits {
        budget: 100,
        held: MemoryHeld {
            resident,
            kv: 5,
            ..MemoryHeld::default()
        },
        ..Limits::default()
    }
}

fn usual() -> Answers {
    let report = pipeshard::report::Report::default();
    Answers {
        health: ok(&json!({"status": "ok"})),
        props: ok(&json!({"is_sleeping": false, "pipeshard": {"engaged": true, "device": "SIM0"}})),
        limits: ok(&json!(limits(50))),
        metrics: ok(&report.to_prometheus()),
    }
}

#[test]
fn a_server_with_all_flags_is_awake_and_nothing_is_missing() {
    let look = Look::of(&usual());
    assert_eq!((look.state, look.reason), (State::Awake, None));
    assert_eq!(look.device.as_deref(), Some("SIM0"));
    assert_eq!(look.limits, Some(limits(50)));
    assert!(look.counters.is_some());
    assert!(look.remarks.is_empty(), "{:?}", look.remarks);
}

#[test]
fn health_says_whether_there_is_more_to_ask() {
    let health = |health| Look::of(&Answers { health, ..usual() });
    assert_eq!(health(error(503, "Loading model")).state, State::Loading);
    let gone = health(Err("nothing listens there".to_owned()));
    assert_eq!(gone.state, State::Unreachable);
    assert_eq!(gone.reason.as_deref(), Some("nothing listens there"));
    let other = health(said(404, &"<html>"));
    assert_eq!(other.state, State::Unreachable);
    assert!(other.reason.expect("a reason").contains("404"));
}

#[test]
fn a_missing_flag_is_named() {
    let missing = |answers: Answers| Look::of(&answers).remarks.join("\n");
    let closed = missing(Answers {
        limits: error(404, "File Not Found"),
        ..usual()
    });
    assert!(
        closed.contains("--pipeshard-control") && !closed.contains("--pipeshard-vram"),
        "{closed}"
    );
    let unmeasured = missing(Answers {
        metrics: error(501, "no metrics"),
        ..usual()
    });
    assert!(unmeasured.contains("--metrics"), "{unmeasured}");
    for limits in [error(404, "File Not Found"), error(501, "pipeshard is off")] {
        let stock = Answers {
            limits,
            props: ok(&json!({})),
            ..usual()
        };
        let stock = missing(stock);
        assert!(stock.contains("--pipeshard-vram SIZE"), "{stock}");
    }
    let off = json!({"pipeshard": {"engaged": false, "reason": "there is no GPU"}});
    let off = missing(Answers {
        props: ok(&off),
        ..usual()
    });
    assert!(off.contains("because there is no GPU"), "{off}");
    let locked = Look::of(&Answers {
        limits: error(401, "Invalid API Key"),
        ..usual()
    });
    assert_eq!(locked.state, State::Locked);
    assert!(locked.reason.expect("a reason").contains("--api-key"));
}

#[test]
fn it_is_asleep_where_no_weights_are_held_or_llama_cpp_sleeps() {
    let given_back = Answers {
        limits: ok(&json!(limits(0))),
        ..usual()
    };
    assert_eq!(Look::of(&given_back).state, State::Asleep);
    let idle = Answers {
        props: ok(&json!({"is_sleeping": true, "pipeshard": {"engaged": true}})),
        limits: error(409, "no model is loaded"),
        ..usual()
    };
    let idle = Look::of(&idle);
    assert_eq!(idle.state, State::Asleep);
    assert!(idle.remarks.is_empty(), "{:?}", idle.remarks);
}

#[test]
fn a_sleeping_server_that_was_given_its_memory_is_awake() {
    let sleeping = json!({"is_sleeping": true, "pipeshard": {"engaged": true}});
    let woken = Look::of(&Answers {
        props: ok(&sleeping),
        ..usual()
    });
    assert_eq!(woken.state, State::Awake);
    let asleep = Look::of(&Answers {
        props: ok(&sleeping),
        limits: ok(&json!(limits(0))),
        ..usual()
    });
    assert!(asleep
        .reason
        .expect("a reason")
        .contains("the next request wakes it"));
}

#[test]
fn a_router_is_not_asked_for_a_budget() {
    let look = Look::of(&Answers {
        props: ok(&json!({"role": "router"})),
        ..usual()
    });
    assert!(look.reason.expect("a reason").contains("router"));
}

#[test]
fn what_a_terminal_would_obey_is_left_out() {
    let props = json!({"pipeshard": {"engaged": true, "device": "a\u{1b}[2Jb\nc"}});
    let look = Look::of(&Answers {
        props: ok(&props),
        ..usual()
    });
    assert_eq!(look.device.as_deref(), Some("a [2Jb c"));
    assert_eq!(
        message(&error(409, "\u{7}no").expect("an answer"), 409),
        " no"
    );
}
