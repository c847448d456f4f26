//! The cases that share a reference: stock's answers, the budgets, and pipeshard's answers at each.

use super::cases::{not_in_llama, refused, Budget, Group};
use super::search::Search;
use super::verdict::{CaseResult, Verdict};
use super::work::{known, Device, Stopped, Work, Workbench, ROOMY};
use std::time::Instant;

impl Group {
    /// Runs all cases. `tell` hears of each as soon as it is known.
    pub fn run(&self, bench: &Workbench, tell: &(dyn Fn(&CaseResult) + Sync)) -> Vec<CaseResult> {
        let start = Instant::now();
        let work = match Work::new(bench, self) {
            Ok(work) => work,
            Err(why) => return self.all(Verdict::Failed(why), start, tell),
        };
        let results = match bench.device {
            Device::Sim => work.on_sim(tell),
            Device::Gpu => work.on_gpu(tell),
        };
        // best effort: the folder lies in the bench's, which goes as a whole
        let _ = std::fs::remove_dir_all(&work.folder);
        results
    }

    fn all(
        &self,
        verdict: Verdict,
        start: Instant,
        tell: &(dyn Fn(&CaseResult) + Sync),
    ) -> Vec<CaseResult> {
        let verdict = known(self, verdict);
        let each = self.budgets.iter().map(|&budget| {
            let result = CaseResult {
                name: self.case(budget),
                verdict: verdict.clone(),
                budget: None,
                streamed: 0,
                passes: 0,
                growths: 0,
                seconds: start.elapsed().as_secs_f64(),
            };
            tell(&result);
            result
        });
        each.collect()
    }
}

impl Work<'_> {
    fn on_sim(&self, tell: &(dyn Fn(&CaseResult) + Sync)) -> Vec<CaseResult> {
        let start = Instant::now();
        let fail = |why: String| self.group.all(Verdict::Failed(why), start, tell);
        let (model, feature) = (self.group.model, self.group.feature);
        let stock = match (self.stock(), not_in_llama(model, feature)) {
            (Ok(stock), None) => stock,
            (Ok(_), Some(why)) => {
                return fail(format!("llama.cpp does it, though it is listed: {why}"))
            }
            (Err(_), Some(why)) => {
                return self
                    .group
                    .all(Verdict::NotInLlama(why.to_string()), start, tell)
            }
            (Err(why), _) => return fail(format!("stock llama.cpp: {}", why.why())),
        };
        let roomy = match (self.ours(ROOMY, true, 1), refused(model, feature)) {
            (Ok(roomy), None) => roomy,
            (Ok(_), Some(why)) => return fail(format!("not refused, though listed: {why}")),
            (Err(Stopped::Refused(said)), Some(why)) if said.contains(why) => {
                return self
                    .group
                    .all(Verdict::Refused(why.to_string()), start, tell)
            }
            (Err(why), _) => return fail(format!("with room for everything: {}", why.why())),
        };
        if feature.repeats == 1 {
            if let Err(why) = self.judge(&stock, &roomy.steps, None, ROOMY) {
                return fail(format!("with room for everything: {why}"));
            }
        }
        let mut search = Search::new(self, &stock, &roomy);
        let each = self.group.budgets.iter().map(|&budget| {
            let start = Instant::now();
            let mut result = search.case(budget);
            result.seconds = start.elapsed().as_secs_f64();
            tell(&result);
            result
        });
        each.collect()
    }

    /// On a real GPU each budget has a reference of its own: stock llama.cpp with the same tensors on the host. Cells of
    /// single layers cannot be put there by stock, so only budgets count at which all KV is in VRAM.
    fn on_gpu(&self, tell: &(dyn Fn(&CaseResult) + Sync)) -> Vec<CaseResult> {
        let start = Instant::now();
        let fail = |why: String| self.group.all(Verdict::Failed(why), start, tell);
        let everything = match self.ours(ROOMY, true, 1) {
            Ok(everything) => everything,
            Err(why) => return fail(format!("with room for everything: {}", why.why())),
        };
        let (low, at_low) = match self.lowest_with_kv(&everything) {
            Ok(found) => found,
            Err(why) => return fail(why.why()),
        };
        let middle = low + everything.peak.saturating_sub(low) / 2;
        let (mut at_low, mut at_all) = (Some(at_low), Some(everything));
        let each = self.group.budgets.iter().map(|&budget| {
            let start = Instant::now();
            let (bytes, ran) = match budget {
                Budget::Min | Budget::KvHost => (low, at_low.take()),
                Budget::Mid => (middle, None),
                Budget::All => (ROOMY, at_all.take()),
            };
            let ran = ran.map_or_else(|| self.ours(bytes, true, 1), Ok);
            let compared = ran.and_then(|ours| self.same_as_stock_there(ours, bytes));
            let result = self.result(budget, Some(bytes), compared, start);
            tell(&result);
            result
        });
        each.collect()
    }
}
