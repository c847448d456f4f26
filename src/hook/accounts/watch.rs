//! How much more of the device this process holds than when it began: asked of the driver.
//!
//! Where the driver knows figures by process, others never count. Elsewhere what is free is compared with what was free at the
//! start, and what other programs have taken since looks like this process's.

use crate::hook::log;
use crate::lanes::driver_memory::MemorySource;

/// Looks at a device's memory.
pub struct Watch {
    source: Box<dyn MemorySource>,
    free_at_start: u64,
    /// What the process held by the driver's figure; `None` where it has none.
    own_at_start: Option<u64>,
}

impl Watch {
    /// From here on.
    pub fn start(mut source: Box<dyn MemorySource>) -> Self {
        let own_at_start = match source.held_by_process() {
            // a process that has opened a device holds something
            Ok(bytes) if bytes > 0 => Some(bytes),
            Ok(_) => {
                say("this process is said to hold nothing");
                None
            }
            Err(why) => {
                say(&why);
                None
            }
        };
        Watch {
            free_at_start: source.free(),
            source,
            own_at_start,
        }
    }

    /// What was free at the start.
    pub fn free_at_start(&self) -> u64 {
        self.free_at_start
    }

    /// What is free now.
    pub fn free(&mut self) -> u64 {
        self.source.free()
    }

    /// Whether the driver tells what this process holds, others' memory left out.
    pub fn knows_processes(&self) -> bool {
        self.own_at_start.is_some()
    }

    /// Bytes that were taken since the start. `accounted`: those that are known of, which must be among them.
    pub fn taken(&mut self, accounted: u64) -> u64 {
        if let Some(start) = self.own_at_start {
            match self.source.held_by_process() {
                Ok(now) if now >= accounted => return now.saturating_sub(start),
                Ok(_) => say("it tells the figure of another process"),
                Err(why) => say(&why),
            }
            self.own_at_start = None;
        }
        self.free_at_start.saturating_sub(self.source.free())
    }
}

fn say(why: &str) {
    log::info(&format!(
        "the driver does not report this process's device memory ({why}); memory of other programs is counted as the backend's"
    ));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A card of 1000 bytes with what is said at each look: by others and by us.
    pub struct Told {
        pub by_process: bool,
        pub looks: VecDeque<(u64, u64)>,
    }

    impl MemorySource for Told {
        fn held_by_process(&mut self) -> Result<u64, String> {
            match (self.by_process, self.looks.front()) {
                (true, Some(&(_, own))) => {
                    self.looks.pop_front();
                    Ok(own)
                }
                _ => Err("the driver does not say".to_owned()),
            }
        }

        fn free(&mut self) -> u64 {
            // at the start both are asked
            let (others, own) = match self.by_process {
                true => (0, 0),
                false => self.looks.pop_front().unwrap_or_default(),
            };
            1000 - others - own
        }
    }

    fn watch(by_process: bool, looks: &[(u64, u64)]) -> Watch {
        Watch::start(Box::new(Told {
            by_process,
            looks: looks.iter().copied().collect(),
        }))
    }

    #[test]
    fn others_never_count_where_the_driver_knows_processes() {
        let mut known = watch(true, &[(0, 50), (700, 90), (0, 80)]);
        assert_eq!((known.taken(30), known.taken(30)), (40, 30));
        let mut unknown = watch(false, &[(0, 50), (700, 90), (0, 80)]);
        assert_eq!((unknown.taken(30), unknown.taken(30)), (740, 30));
    }

    #[test]
    fn a_figure_that_is_less_than_what_is_known_of_is_not_ours() {
        let mut wrong = watch(true, &[(0, 50), (0, 60)]);
        assert_eq!(wrong.taken(70), 0);
        assert_eq!(wrong.own_at_start, None);
    }
}
