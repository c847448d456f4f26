//! The outcome as a page for users, and what such a page says.

use super::cases::Group;
use super::run::Outcome;
use super::verdict::{CaseResult, Verdict};
use std::collections::BTreeMap;
use std::fmt::Write;

const HEAD: &str = "\
# Compatibility

Which features and models of llama.cpp were run with pipeshard, and whether the answers stayed the same. This page is
written by `pipeshard-lab matrix --full --write-doc docs/compatibility.md`; do not edit it.

Each case runs a scenario twice through llama.cpp's C API, on small models of random weights: with stock llama.cpp, and
with pipeshard on the simulated GPU, which refuses every byte over the budget, poisons memory that was not written, and
pauses at random. Tokens and the bits of all logits or embeddings have to be the same, and the report has to show that
pipeshard did the work. Budgets are the smallest that works (`min`), one at which some layers' KV cache is in host memory
(`kv-host`), one in the middle (`mid`), and one into which everything fits to the byte (`all`).

*same*: the same bits at all budgets that were tried. *refused*: pipeshard refuses at start, and says what to change.
*not in llama.cpp*: stock llama.cpp cannot do it with this kind of model either. *fault*: known to be wrong, see the
notes. In brackets: the number of cases, where a row has several verdicts.
";

/// The page.
pub fn page(groups: &[Group], outcome: &Outcome, commit: &str) -> String {
    let results: BTreeMap<&str, &CaseResult> = outcome
        .cases
        .iter()
        .map(|case| (case.name.as_str(), case))
        .collect();
    let mut notes = Vec::new();
    let mut page = format!(
        "{HEAD}\nThe latest run was of commit {commit}: {}.\n",
        outcome.told()
    );
    let mut section = |title: &str, what: &str, rows: &[(String, Vec<&Group>)]| {
        let _ = write!(
            page,
            "\n## {title}\n\n| {what} | verdict | budgets | cases |\n|---|---|---|---|\n"
        );
        for (name, groups) in rows {
            let cases: Vec<String> = groups.iter().flat_map(|g| g.cases()).collect();
            let mut budgets: Vec<_> = groups.iter().flat_map(|g| g.budgets.clone()).collect();
            budgets.sort();
            budgets.dedup();
            let budgets: Vec<&str> = budgets.iter().map(|b| b.name()).collect();
            let verdict = verdict(name, &cases, &results, &mut notes);
            let _ = writeln!(
                page,
                "| {name} | {verdict} | {} | {} |",
                budgets.join(", "),
                cases.len()
            );
        }
    };
    section(
        "Features",
        "feature",
        &rows(groups, |g| g.feature.title.to_string()),
    );
    section(
        "Models",
        "model",
        &rows(groups, |g| g.model.title.to_string()),
    );
    section(
        "Threads",
        "threads",
        &rows(groups, |g| g.threads.to_string()),
    );
    if !notes.is_empty() {
        page.push_str("\n## Notes\n\n");
        notes.sort();
        notes.dedup();
        for note in notes {
            let _ = writeln!(page, "* {note}");
        }
    }
    let _ = write!(page, "\n{}.\n", outcome.told());
    page
}

/// Groups by a name, in the order in which names come.
fn rows(groups: &[Group], name: impl Fn(&Group) -> String) -> Vec<(String, Vec<&Group>)> {
    let mut rows: Vec<(String, Vec<&Group>)> = Vec::new();
    for group in groups {
        let name = name(group);
        match rows.iter_mut().find(|(n, _)| *n == name) {
            Some((_, row)) => row.push(group),
            None => rows.push((name, vec![group])),
        }
    }
    rows
}

fn verdict(
    row: &str,
    cases: &[String],
    results: &BTreeMap<&str, &CaseResult>,
    notes: &mut Vec<String>,
) -> String {
    let (mut passed, mut refused, mut absent, mut faulty, mut failed) = (0, 0, 0, 0, 0);
    for case in cases {
        let model = case.split('/').next().unwrap_or_default();
        match results.get(case.as_str()).map(|r| &r.verdict) {
            Some(Verdict::Passed) => passed += 1,
            Some(Verdict::Refused(why)) => {
                refused += 1;
                notes.push(format!("{row}, {model}: refused at start: \"{why}\""));
            }
            Some(Verdict::NotInLlama(why)) => {
                absent += 1;
                let feature = case.split('/').nth(1).unwrap_or_default();
                notes.push(format!("`{feature}`, {model}: not in llama.cpp: {why}"));
            }
            Some(Verdict::KnownFault(why)) => {
                faulty += 1;
                let parts: Vec<&str> = case.split('/').collect();
                let (feature, budget) = (parts[1], parts[2]);
                notes.push(format!("`{feature}`, budget `{budget}`: fault: {why}"));
            }
            Some(Verdict::Failed(why)) => {
                failed += 1;
                notes.push(format!("**{case} fails**: {why}"));
            }
            None => failed += 1,
        }
    }
    let parts = [
        (passed, "same"),
        (refused, "refused"),
        (absent, "not in llama.cpp"),
        (faulty, "fault"),
        (failed, "**fails**"),
    ];
    let said: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| match *count == cases.len() {
            true => word.to_string(),
            false => format!("{word} ({count})"),
        })
        .collect();
    said.join(", ")
}

/// The rows of a page: name and number of cases.
pub fn listed(page: &str) -> Vec<(String, usize)> {
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        Some((cells.first()?.to_string(), cells.get(3)?.parse().ok()?))
    });
    rows.collect()
}

/// The rows that a page has to have.
pub fn expected(groups: &[Group]) -> Vec<(String, usize)> {
    listed(&page(groups, &Outcome::default(), ""))
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    #[test]
    fn a_page_lists_every_case_three_times() {
        let groups = cases::groups(true);
        let count: usize = groups.iter().map(|g| g.budgets.len()).sum();
        let rows = expected(&groups);
        assert_eq!(rows.iter().map(|r| r.1).sum::<usize>(), 3 * count);
        assert!(rows.iter().any(|r| r.0.contains("LoRA")));
    }

    #[test]
    fn a_case_that_did_not_run_fails() {
        let groups = cases::groups(false);
        assert!(page(&groups, &Outcome::default(), "").contains("**fails**"));
        let cases = groups.iter().flat_map(Group::cases);
        let passed = cases.map(|name| CaseResult {
            name,
            verdict: Verdict::Passed,
            budget: None,
            streamed: 0,
            passes: 1,
            growths: 0,
            seconds: 0.0,
        });
        let outcome = Outcome {
            cases: passed.collect(),
        };
        let page = page(&groups, &outcome, "0123abc");
        assert!(page.contains("of commit 0123abc: "), "{page}");
        assert!(!page.contains("fails"), "{page}");
        assert_eq!(listed(&page), expected(&groups));
    }
}
