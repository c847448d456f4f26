//! What a key asks of a server: the request that it becomes, and what the answer says in a line.

use super::look::{message, plain, Answer, Heard};
use pipeshard::report::Limits;
use pipeshard_model::size::ByteSize;
use serde_json::{json, Value};

const MIB: u64 = 1 << 20;

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A budget larger by 5 %.
    Larger,
    /// One smaller by 5 %.
    Smaller,
    /// The smallest budget that works.
    Minimum,
    /// Give back the memory of weights.
    Sleep,
    /// Take it again.
    Wake,
}

/// Milliseconds that a batch may take to end before the server answers that nothing has changed.
pub const DEADLINE_MS: u64 = 10_000;

/// A `POST`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Where to.
    pub path: &'static str,
    /// JSON.
    pub body: Value,
}

/// What came of a wish.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// It was done.
    pub done: bool,
    /// In a line.
    pub text: String,
    /// What is so from now on, where the server said it.
    pub limits: Option<Limits>,
}

/// 5 % up or down, in whole mebibytes and by one at least.
fn stepped(budget: u64, larger: bool) -> u64 {
    let step = (budget / 20).max(MIB);
    match larger {
        true => budget.saturating_add(step) / MIB * MIB,
        false => budget.saturating_sub(step).div_ceil(MIB) * MIB,
    }
}

impl Wish {
    /// The request. `limits`: the latest that the server said.
    ///
    /// # Errors
    /// A sentence: the server does not say its budget.
    pub fn request(self, limits: Option<&Limits>) -> Result<Request, String> {
        let budget = |size: Value| Request {
            path: "/pipeshard/budget",
            body: json!({"size": size, "deadline_ms": DEADLINE_MS}),
        };
        let other = |path| Request {
            path,
            body: json!({ "deadline_ms": DEADLINE_MS }),
        };
        let known = || {
            limits.ok_or(
                "nothing was asked: the server does not say its budget, so there is none to change",
            )
        };
        Ok(match self {
            Wish::Larger => budget(stepped(known()?.budget, true).into()),
            Wish::Smaller => budget(stepped(known()?.budget, false).into()),
            Wish::Minimum => budget("minimum".into()),
            Wish::Sleep => other("/pipeshard/sleep"),
            Wish::Wake => other("/pipeshard/wake"),
        })
    }

    /// What was answered to it.
    pub fn reply(self, heard: &Heard) -> Reply {
        let refused = |text: String| Reply {
            text,
            ..Reply::default()
        };
        let answer = match heard {
            Ok(answer) => answer,
            Err(why) => return refused(plain(&format!("whether it was done is not known: {why}"))),
        };
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        match answer.status {
            200 => self.granted(&body),
            401 => {
                refused("refused: the server wants another API key; give --api-key KEY".to_owned())
            }
            404 => refused(self.unknown().to_owned()),
            _ => refused(self.refusal(answer, &body)),
        }
    }

    fn granted(self, body: &Value) -> Reply {
        let limits: Option<Limits> = serde_json::from_value(body.clone()).ok();
        let held = limits.map_or_else(String::new, |limits| {
            format!(", {} held", ByteSize(limits.held_total))
        });
        let text = match (self, limits) {
            (Wish::Sleep, _) => format!("asleep{held}"),
            (Wish::Wake, _) => format!("awake{held}"),
            (_, Some(limits)) => {
                let milliseconds = |name: &str| body[name].as_f64().unwrap_or_default();
                format!(
                    "budget {}{held}; waited {:.0} ms for the batch, moved weights in {:.0} ms",
                    ByteSize(limits.budget),
                    milliseconds("waited_ms"),
                    milliseconds("moved_ms")
                )
            }
            (_, None) => "done".to_owned(),
        };
        Reply {
            done: true,
            text,
            limits,
        }
    }

    fn refusal(self, answer: &Answer, body: &Value) -> String {
        let message = message(answer, answer.status);
        match body["error"]["minimum"].as_u64() {
            Some(minimum) => format!(
                "refused, the smallest budget is {} (m): {message}",
                ByteSize(minimum)
            ),
            None => format!("refused: {message}"),
        }
    }

    /// Where the server knows no such request.
    fn unknown(self) -> &'static str {
        match self {
            Wish::Sleep | Wish::Wake => {
                "the server knows no such request: it needs --pipeshard-control, and a pipeshard that can sleep on request"
            }
            _ => "the server knows no such request: start it with --pipeshard-control",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn limits(budget: u64) -> Limits {
        Limits {
            budget,
            held_total: budget / 2,
            ..Limits::default()
        }
    }

    fn said(status: u16, body: Value) -> Heard {
        let body = body.to_string();
        Ok(Answer { status, body })
    }

    #[test]
    fn a_step_is_five_percent_in_whole_mebibytes() {
        assert_eq!(stepped(4 * GIB, true), (4096 + 204) * MIB);
        assert_eq!(stepped(4 * GIB, false), (4096 - 204) * MIB);
        assert_eq!(
            (stepped(10 * MIB, true), stepped(10 * MIB, false)),
            (11 * MIB, 9 * MIB)
        );
        assert_eq!((stepped(0, false), stepped(MIB / 2, false)), (0, 0));
        assert!(stepped(u64::MAX, true) > u64::MAX - MIB);
    }

    #[test]
    fn steps_are_of_the_latest_budget() {
        let of = |wish: Wish| wish.request(Some(&limits(4 * GIB))).expect("a request");
        assert_eq!(of(Wish::Larger).body["size"], 4300 * MIB);
        assert_eq!(of(Wish::Smaller).body["size"], 3892 * MIB);
        assert_eq!(of(Wish::Minimum).body["size"], "minimum");
        assert_eq!(of(Wish::Sleep).path, "/pipeshard/sleep");
        assert_eq!(of(Wish::Wake).path, "/pipeshard/wake");
        assert!(Wish::Larger
            .request(None)
            .expect_err("nothing to step from")
            .contains("does not say"));
        assert!(Wish::Wake.request(None).is_ok());
    }

    #[test]
    fn what_was_granted_is_said() {
        let mut body = json!(limits(2 * GIB));
        body["waited_ms"] = json!(12.4);
        body["moved_ms"] = json!(3.6);
        let reply = Wish::Smaller.reply(&said(200, body.clone()));
        assert_eq!(reply.limits, Some(limits(2 * GIB)));
        assert_eq!(
            reply.text,
            "budget 2 GiB, 1 GiB held; waited 12 ms for the batch, moved weights in 4 ms"
        );
        assert_eq!(
            Wish::Sleep.reply(&said(200, body)).text,
            "asleep, 1 GiB held"
        );
    }

    #[test]
    fn a_refusal_names_the_smallest_budget() {
        let error =
            json!({"error": {"message": "too small", "type": "budget_too_small", "minimum": GIB}});
        let reply = Wish::Smaller.reply(&said(409, error));
        assert!(!reply.done);
        assert_eq!(
            reply.text,
            "refused, the smallest budget is 1 GiB (m): too small"
        );
        let error = json!({"error": {"message": "not in time", "type": "deadline"}});
        assert_eq!(
            Wish::Smaller.reply(&said(409, error)).text,
            "refused: not in time"
        );
        assert_eq!(
            Wish::Smaller.reply(&said(500, Value::Null)).text,
            "refused: status 500"
        );
    }

    #[test]
    fn what_the_server_does_not_know_names_what_it_needs() {
        let unknown = |wish: Wish| wish.reply(&said(404, Value::Null)).text;
        assert!(unknown(Wish::Larger).contains("--pipeshard-control"));
        assert!(unknown(Wish::Wake).contains("sleep on request"));
        assert!(Wish::Wake
            .reply(&said(401, Value::Null))
            .text
            .contains("--api-key"));
        let lost = Wish::Wake.reply(&Err("no answer".to_owned()));
        assert!(lost.text.contains("not known: no answer"));
    }
}
