//! A look as text, for `--once`, and as JSON.

use super::client::Url;
use super::look::Look;
use super::words::{classes, count, percent};
use pipeshard_model::size::ByteSize;
use serde::Serialize;
use std::fmt::Write;

/// A server and a look at it.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Its address.
    #[serde(serialize_with = "as_text")]
    pub url: Url,
    /// What it says.
    #[serde(flatten)]
    pub look: Look,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct AllSeen<'a> {
    /// In the order of the command line.
    pub servers: &'a [Seen],
}

fn as_text<S: serde::Serializer>(url: &Url, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(url)
}

/// A few lines.
pub fn of(seen: &Seen) -> String {
    let mut text = String::new();
    // a text in memory takes every line
    let _ = write(&mut text, seen);
    text
}

fn write(text: &mut String, Seen { url, look }: &Seen) -> std::fmt::Result {
    writeln!(text, "{url}  {}", look.state.word())?;
    let mut line = |name: &str, says: &str| writeln!(text, "  {name:<10}{says}");
    if let Some(reason) = &look.reason {
        line("why", reason)?;
    }
    if let Some(program) = &look.program {
        line("program", program)?;
    }
    if let Some(device) = &look.device {
        line("device", device)?;
    }
    if let Some(limits) = &look.limits {
        let all = limits
            .everything_resident
            .map_or_else(String::new, |bytes| {
                format!(", all weights resident at {}", ByteSize(bytes))
            });
        let budget = ByteSize(limits.budget);
        line(
            "budget",
            &format!("{budget}, minimum {}{all}", ByteSize(limits.minimum)),
        )?;
        let share = percent(limits.held_total, limits.budget)
            .map_or_else(String::new, |percent| format!(" ({percent} %)"));
        let held: Vec<_> = classes(&limits.held)
            .iter()
            .filter(|(_, _, bytes)| *bytes > 0)
            .map(|(name, _, bytes)| format!("{name} {}", ByteSize(*bytes)))
            .collect();
        let each = if held.is_empty() {
            String::new()
        } else {
            format!(": {}", held.join(", "))
        };
        line(
            "held",
            &format!("{}{share}{each}", ByteSize(limits.held_total)),
        )?;
        line(
            "driver",
            &format!("{} taken by the process", ByteSize(limits.by_driver)),
        )?;
    }
    if let Some(counters) = &look.counters {
        let known = (counters.prompt_tokens.zip(counters.answered_tokens)).zip(counters.requests);
        if let Some(((prompts, answers), requests)) = known {
            let tokens = format!(
                "{} of prompts, {} of answers that ended; {} requests in work",
                count(prompts as u64),
                count(answers as u64),
                count(requests as u64)
            );
            line("tokens", &tokens)?;
        }
        let passes = format!(
            "{} of prompts, {} of decode",
            count(counters.prompt_passes),
            count(counters.decode_passes)
        );
        line("passes", &passes)?;
        let link = format!(
            "{} streamed, {} uploaded to stay; {} stalls",
            ByteSize(counters.streamed_bytes),
            ByteSize(counters.uploaded_bytes),
            count(counters.stalls)
        );
        line("link", &link)?;
        if counters.errors > 0 {
            line(
                "errors",
                &format!("{}; the server's log has them", count(counters.errors)),
            )?;
        }
    }
    for remark in &look.remarks {
        line("!", remark)?;
    }
    Ok(())
}
