//! What the host of the process asks for while it runs: how much memory there has to be, and another budget.
//!
//! llama-server hands requests below `/pipeshard` on (`--pipeshard-control`); a program that uses llama.h calls the same functions by
//! name, see [`super::library`]. All of them may be called from any thread, also while others compute.

use super::answers::budget::{self, BudgetError};
use super::answers::{encode, graph, loading, shape};
use super::gate::{Alone, Gate};
use super::log;
use super::runtime::Runtime;
use super::stopping::MemoryWanted;
use crate::report::{BudgetChanged, Limits};
use crate::share::shares::Shares;
use pipeshard_model::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Why a request is not granted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The budget cannot be that.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Passes that are under way did not end in time.
    #[error(
        "the budget was not changed: the batch that is being computed did not end within {0} ms; allow more time"
    )]
    Deadline(u128),
    /// A callback panicked before.
    #[error("pipeshard has failed in this process (the log says how); restart it")]
    Broken,
}

/// What is possible now. Waits for nothing.
///
/// # Errors
/// No model is loaded.
pub fn limits(gate: &Gate<Runtime>) -> Result<Limits, BudgetError> {
    let mut runtime = gate.plain();
    let Runtime {
        accounts, tenant, ..
    } = &mut *runtime;
    budget::limits(accounts, tenant)
}

/// Opens the device, which the first model would otherwise do.
///
/// # Errors
/// Why there is none, in a sentence.
pub fn open_device(gate: &Gate<Runtime>) -> Result<(), String> {
    let mut runtime = gate.alone();
    let Runtime {
        accounts,
        tenant,
        telemetry,
        ..
    } = &mut *runtime;
    loading::open(accounts, tenant, telemetry).map(|_| ())
}

/// Gives back all memory of weights: what is resident, what is streamed through, what encoders have. The next pass takes it again.
///
/// # Errors
/// Passes that are under way did not end within `patience`; nothing has changed then.
pub fn give_back(gate: &Gate<Runtime>, patience: Option<Duration>) -> Result<(), ControlError> {
    let mut runtime = alone(gate, patience, None)?;
    let (parts, proof) = runtime.parts();
    let Runtime {
        accounts,
        tenant,
        encoders,
        schedulers,
        ..
    } = parts;
    encode::close(accounts, encoders, proof);
    shape::release(accounts, tenant, proof);
    tenant.residency.release_fetcher(proof);
    if schedulers.is_empty() {
        // the backend's own memory goes with its contexts
        accounts.reserve.contexts_gone();
        tenant.planner.attempts.contexts_gone();
    }
    tenant.note_holdings(accounts);
    Ok(())
}

/// Another budget where everything was given back, however small it is: what wakes up finds out whether it is enough.
pub fn set_budget_asleep(gate: &Gate<Runtime>, bytes: u64) {
    let mut runtime = gate.alone();
    let Runtime {
        accounts,
        tenant,
        telemetry,
        ..
    } = &mut *runtime;
    accounts.set_budget(bytes);
    tenant.planner.replan();
    tenant.planner.decide_again();
    tenant.residency.void_graphs();
    telemetry.counters.budget_changes += 1;
}

/// Takes the memory of weights that was given back, ahead of the next pass, which would do so itself.
///
/// # Errors
/// There is no room for it, or it could not be done in time; nothing is held then.
pub fn take_back(gate: &Gate<Runtime>, patience: Option<Duration>) -> Result<(), ControlError> {
    let mut runtime = alone(gate, patience, None)?;
    if runtime.is_broken() {
        return Err(ControlError::Broken);
    }
    let (parts, proof) = runtime.parts();
    let Runtime {
        accounts,
        tenant,
        telemetry,
        ..
    } = parts;
    if tenant.planner.context().is_none() {
        return Ok(());
    }
    let taken = graph::prepare_run(accounts, tenant, telemetry, proof);
    taken.map_err(|why| BudgetError::Failed(why.text).into())
}

/// Share of the deadline in which passes may end by themselves; after it, those that may be repeated are ended.
const OF_PATIENCE: u32 = 2;

/// Waits until no pass is under way and no graph refers to the arena. `memory_is_wanted`: ends passes early.
fn alone<'g>(
    gate: &'g Gate<Runtime>,
    patience: Option<Duration>,
    memory_is_wanted: Option<&MemoryWanted>,
) -> Result<Alone<'g, Runtime>, ControlError> {
    let Some(patience) = patience else {
        return Ok(gate.alone());
    };
    let now = Instant::now();
    // a deadline beyond what the clock can say is none
    let Some(by) = now.checked_add(patience) else {
        return Ok(gate.alone());
    };
    let mut waiting = None;
    if let Some(memory) = memory_is_wanted {
        if let Some(alone) = gate.alone_by(now + patience / OF_PATIENCE) {
            return Ok(alone);
        }
        waiting = Some(memory.wait());
    }
    let alone = gate.alone_by(by);
    drop(waiting);
    alone.ok_or(ControlError::Deadline(patience.as_millis()))
}

/// Changes the budget. A larger one is so at once; a smaller one when passes that are under way are over, within `patience`, if there
/// is a limit to it. `memory_is_wanted`: ends those passes early which may be repeated, where time runs out.
///
/// # Errors
/// Nothing has changed then.
pub fn change_budget(
    gate: &Gate<Runtime>,
    bytes: u64,
    patience: Option<Duration>,
    memory_is_wanted: Option<&MemoryWanted>,
) -> Result<BudgetChanged, ControlError> {
    let asked = Instant::now();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut plain = gate.plain();
    if plain.is_broken() {
        return Err(ControlError::Broken);
    }
    let Runtime {
        accounts,
        tenant,
        telemetry,
        ..
    } = &mut *plain;
    if budget::raise(accounts, tenant, telemetry, bytes) {
        return Ok(BudgetChanged {
            now: budget::limits(accounts, tenant)?,
            waited_ms: 0.0,
            moved_ms: milliseconds(asked.elapsed()),
        });
    }
    drop(plain);
    let mut alone = alone(gate, patience, memory_is_wanted)?;
    if alone.is_broken() {
        return Err(ControlError::Broken);
    }
    let waited = asked.elapsed();
    let (parts, proof) = alone.parts();
    let Runtime {
        config,
        accounts,
        tenant,
        encoders,
        telemetry,
        ..
    } = parts;
    budget::change(
        config,
        accounts,
        tenant,
        encoders,
        telemetry,
        (bytes, proof),
    )?;
    let moved = asked.elapsed() - waited;
    let now = budget::limits(accounts, tenant)?;
    Ok(BudgetChanged {
        now,
        waited_ms: milliseconds(waited),
        moved_ms: milliseconds(moved),
    })
}

/// An answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's.
    pub status: i32,
    /// JSON.
    pub body: String,
}

impl Answer {
    fn of(status: i32, body: &impl Serialize) -> Self {
        match serde_json::to_string(body) {
            Ok(body) => Answer { status, body },
            Err(error) => Answer {
                status: 500,
                body: format!("{{\"error\":{{\"code\":500,\"message\":\"{error}\"}}}}"),
            },
        }
    }

    /// As llama-server writes errors.
    fn error(status: i32, kind: &str, message: &str, minimum: Option<u64>) -> Self {
        #[derive(Serialize)]
        struct Error<'a> {
            code: i32,
            message: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            minimum: Option<u64>,
        }
        #[derive(Serialize)]
        struct Body<'a> {
            error: Error<'a>,
        }
        let error = Error {
            code: status,
            message,
            kind,
            minimum,
        };
        Answer::of(status, &Body { error })
    }

    fn refused(why: &ControlError) -> Self {
        let (status, kind, minimum) = match why {
            ControlError::Budget(BudgetError::TooSmall { minimum, .. }) => {
                (409, "budget_too_small", Some(*minimum))
            }
            ControlError::Budget(BudgetError::NothingLoaded) => (409, "nothing_loaded", None),
            ControlError::Budget(BudgetError::Failed(_)) => (500, "server_error", None),
            ControlError::Deadline(_) => (409, "deadline", None),
            ControlError::Broken => (500, "server_error", None),
        };
        Answer::error(status, kind, &why.to_string(), minimum)
    }
}

/// What `GET /pipeshard` says.
#[derive(Serialize)]
struct Shown<'l> {
    #[serde(flatten)]
    limits: &'l Limits,
    /// Where the budget is one share of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Shares>,
}

impl<'l> Shown<'l> {
    fn of(gate: &Gate<Runtime>, limits: &'l Limits) -> Self {
        let share = gate.plain().accounts.share();
        Shown {
            limits,
            share: share.and_then(|share| share.shares()),
        }
    }
}

/// A size in bytes, or as on the command line.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

/// The body of `POST /pipeshard/budget`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetRequest {
    size: Size,
    #[serde(default)]
    deadline_ms: Option<u64>,
    /// Which child a router means; nothing to us.
    #[serde(default, rename = "model")]
    _model: Option<String>,
}

impl BudgetRequest {
    /// `minimum`: what the word stands for.
    fn bytes(&self, minimum: impl FnOnce() -> u64) -> Result<u64, String> {
        match &self.size {
            Size::Bytes(bytes) => Ok(*bytes),
            Size::Text(text) if text == "minimum" => Ok(minimum()),
            Size::Text(text) => match text.parse::<ByteSize>() {
                Ok(size) => Ok(size.0),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// The body of `POST /pipeshard/sleep` and `/pipeshard/wake`; it may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SleepRequest {
    #[serde(default)]
    deadline_ms: Option<u64>,
    /// Which child a router means; nothing to us.
    #[serde(default, rename = "model")]
    _model: Option<String>,
}

/// Gives memory back, or takes it again, and says what is held then.
fn sleep_or_wake(gate: &Gate<Runtime>, wakes: bool, body: &str) -> Answer {
    let request = match body.trim() {
        "" => Ok(SleepRequest::default()),
        body => serde_json::from_str(body),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            let usage = r#"the body is empty, or JSON such as {"deadline_ms": 100}"#;
            let message = format!("{usage}: {error}");
            return Answer::error(400, "invalid_request_error", &message, None);
        }
    };
    let patience = request.deadline_ms.map(Duration::from_millis);
    let done = match wakes {
        true => take_back(gate, patience),
        false => give_back(gate, patience),
    };
    match done.and_then(|()| Ok(limits(gate)?)) {
        Ok(limits) => Answer::of(200, &limits),
        Err(why) => Answer::refused(&why),
    }
}

/// The answer to a request for `path` with a body, which is empty for GET. `gate`: none where pipeshard is off.
pub fn answer(gate: Option<&Gate<Runtime>>, path: &str, body: &str) -> Answer {
    let Some(gate) = gate else {
        let off = "pipeshard is off: start the server with --pipeshard-vram";
        return Answer::error(501, "not_supported_error", off, None);
    };
    match (path, body) {
        ("/pipeshard", "") => match limits(gate) {
            Ok(limits) => Answer::of(200, &Shown::of(gate, &limits)),
            Err(why) => Answer::refused(&why.into()),
        },
        ("/pipeshard/sleep", body) => sleep_or_wake(gate, false, body),
        ("/pipeshard/wake", body) => sleep_or_wake(gate, true, body),
        ("/pipeshard/budget", body) => {
            let invalid = |why: &str| Answer::error(400, "invalid_request_error", why, None);
            let request = match serde_json::from_str::<BudgetRequest>(body) {
                Ok(request) => request,
                Err(error) => {
                    let usage = r#"the body is JSON such as {"size": "6G", "deadline_ms": 100}"#;
                    return invalid(&format!("{usage}: {error}"));
                }
            };
            // 0 where nothing is loaded, which is said then
            let minimum = || limits(gate).map_or(0, |limits| limits.minimum);
            let bytes = match request.bytes(minimum) {
                Ok(bytes) => bytes,
                Err(why) => return invalid(&why),
            };
            let patience = request.deadline_ms.map(Duration::from_millis);
            let (share, before) = {
                let runtime = gate.plain();
                (runtime.accounts.share(), runtime.accounts.budget())
            };
            let bytes = share
                .as_ref()
                .map_or(bytes, |share| share.allow(bytes, before));
            let changed = change_budget(gate, bytes, patience, None);
            let now = changed.as_ref().map_or(before, |c| c.now.budget);
            if let Some(Err(why)) = share.map(|share| share.has(now)) {
                log::warn(&why);
            }
            match changed {
                Ok(changed) => Answer::of(200, &changed),
                Err(why) => Answer::refused(&why),
            }
        }
        _ => Answer::error(404, "not_found_error", "there is no such request", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::config::Config;

    fn gate() -> Gate<Runtime> {
        Gate::new(Runtime::new(Config::default(), None), || ())
    }

    fn asked(path: &str, body: &str) -> (i32, serde_json::Value) {
        let gate = gate();
        let answer = answer(Some(&gate), path, body);
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    #[test]
    fn before_a_model_is_loaded_there_is_nothing_to_change() {
        for (path, body) in [
            ("/pipeshard", ""),
            ("/pipeshard/budget", "{\"size\": 1}"),
            ("/pipeshard/budget", "{\"size\": \"minimum\"}"),
        ] {
            let (status, says) = asked(path, body);
            assert_eq!(
                (status, &says["error"]["type"]),
                (409, &"nothing_loaded".into())
            );
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_told_how_to_be_made() {
        for body in [
            "",
            "6G",
            "{}",
            "{\"size\": \"6X\"}",
            "{\"size\": -1}",
            "{\"size\": \"6G\", \"when\": 3}",
            "{\"size\": \"6G\", \"deadline_ms\": \"soon\"}",
        ] {
            let (status, says) = asked("/pipeshard/budget", body);
            assert_eq!(status, 400, "{body} {says}");
            assert_eq!(says["error"]["code"], 400);
        }
        assert_eq!(asked("/pipeshard/else", "").0, 404);
        assert_eq!(asked("/pipeshard/sleep", "now").0, 400);
    }

    #[test]
    fn where_pipeshard_is_off_it_says_so() {
        let off = answer(None, "/pipeshard", "");
        assert_eq!(off.status, 501);
        assert!(off.body.contains("--pipeshard-vram"), "{}", off.body);
    }

    #[test]
    fn a_deadline_of_five_hundred_million_years_is_none() {
        let gate = gate();
        let forever = change_budget(&gate, 1, Some(Duration::MAX), None);
        assert!(matches!(
            forever,
            Err(ControlError::Budget(BudgetError::NothingLoaded))
        ));
    }
}
