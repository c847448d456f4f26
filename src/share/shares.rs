//! This process's share of a total, and how it becomes another: no sum of shares ever exceeds the total.
//!
//! Who wants more asks the others to shrink first: those that compute nothing to their smallest budget, the others to an even share.

use super::ask::{ask, Question};
use super::{Group, Held, Member, Other};
use pipeshard_model::size::ByteSize;
use serde::Serialize;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Who computed nothing for so long gives way.
const IDLE: Duration = Duration::from_secs(5);
/// How long the passes of another may take that is asked to shrink.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a process shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The group's name.
    pub group: String,
    /// What all of it may hold, in bytes.
    pub total: u64,
}

/// A process in a group.
#[derive(Debug)]
pub struct Sharing {
    group: Group,
    member: Member,
    process: u32,
    total: u64,
    /// The most that this process wants, in bytes.
    wanted: AtomicU64,
}

/// What `GET /pipeshard` says of it.
#[derive(Debug, Serialize)]
pub struct Shares {
    /// Of all, in bytes.
    total: u64,
    /// Those that have a budget.
    others: Vec<OtherShare>,
}

#[derive(Debug, Serialize)]
struct OtherShare {
    process: u32,
    budget: u64,
}

/// Another member, as it answered.
struct Peer {
    other: Other,
    /// The least that it is asked to shrink to, in bytes.
    floor: u64,
    idle: bool,
}

/// To what each is asked to shrink so that `wanted` of the total are left: those that compute nothing first, then whoever has most to
/// spare.
fn targets(total: u64, wanted: u64, peers: &[Peer]) -> Vec<(usize, u64)> {
    let held: u64 = peers.iter().map(|peer| peer.other.budget).sum();
    let mut missing = wanted.saturating_sub(total.saturating_sub(held));
    let spare = |peer: &Peer| peer.other.budget.saturating_sub(peer.floor);
    let mut order: Vec<usize> = (0..peers.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse((peers[at].idle, spare(&peers[at]))));
    let mut found = Vec::new();
    for at in order {
        let given = spare(&peers[at]).min(missing);
        if given > 0 {
            missing -= given;
            found.push((at, peers[at].other.budget - given));
        }
    }
    found
}

impl Sharing {
    /// Becomes a member.
    ///
    /// # Errors
    /// In a sentence.
    pub fn begin(settings: &Settings) -> Result<(Arc<Self>, UnixListener), String> {
        let process = std::process::id();
        let begun = Group::open(&settings.group).and_then(|group| {
            let member = group.join(process)?;
            let _ = std::fs::remove_file(member.socket());
            let listener = UnixListener::bind(member.socket())?;
            listener.set_nonblocking(true)?;
            Ok((group, member, listener))
        });
        let (group, member, listener) = begun.map_err(|why| {
            format!(
                "the budget of {} cannot be shared with the other processes: {why}; set XDG_RUNTIME_DIR to a folder of this user's, or \
                 PIPESHARD_SHARE=off for a budget of its own",
                ByteSize(settings.total)
            )
        })?;
        let sharing = Sharing {
            group,
            member,
            process,
            total: settings.total,
            wanted: AtomicU64::new(settings.total),
        };
        Ok((Arc::new(sharing), listener))
    }

    /// The budget that a process begins with which wants `wanted` bytes: the others have shrunk for it when this returns.
    ///
    /// # Errors
    /// In a sentence; the process has no share then.
    pub fn grant(&self, wanted: u64) -> Result<u64, String> {
        self.wanted.store(wanted, Ordering::Relaxed);
        let granted = self.group.hold().and_then(|held| {
            let granted = self.left_after_others_shrank(&held, wanted)?;
            self.member.write(granted)?;
            Ok(granted)
        });
        granted
            .map_err(|why| format!("it is not known how much of the shared budget is left: {why}"))
    }

    /// Asks the others to shrink. Returns how much of `wanted` is left to this process.
    fn left_after_others_shrank(&self, held: &Held<'_>, wanted: u64) -> io::Result<u64> {
        let wanted = wanted.min(self.total);
        let mut others = held.others(self.process)?;
        others.retain(|other| other.budget > 0);
        let even = self.total / (others.len() as u64 + 1);
        // who does not answer keeps what it has
        let peers = others.iter().map(|other| {
            let state = ask(&other.socket, Question::State, PATIENCE).ok();
            let idle = state.is_some_and(|state| state.idle_ms >= IDLE.as_millis() as u64);
            Peer {
                floor: match state {
                    Some(state) if idle => state.minimum,
                    Some(state) => state.minimum.max(even),
                    None => other.budget,
                },
                other: other.clone(),
                idle,
            }
        });
        let peers: Vec<Peer> = peers.collect();
        let mut left = self
            .total
            .saturating_sub(peers.iter().map(|peer| peer.other.budget).sum());
        for (at, target) in targets(self.total, wanted, &peers) {
            let other = &peers[at].other;
            if let Ok(answer) = ask(&other.socket, Question::ShrinkTo(target), 2 * PATIENCE) {
                left += other.budget.saturating_sub(answer.budget);
            }
        }
        Ok(wanted.min(left))
    }

    /// Somebody asks for another budget: the most that this process wants from now on. Returns what of it can be had at once, and is
    /// taken already; [`Sharing::has`] says what came of it.
    pub fn allow(&self, budget: u64, now: u64) -> u64 {
        self.wanted.store(budget, Ordering::Relaxed);
        let allowed = self.group.hold().and_then(|held| {
            let others = held.others(self.process)?;
            let others: u64 = others.iter().map(|other| other.budget).sum();
            let allowed = budget.min(self.total.saturating_sub(others));
            self.member.write(allowed.max(now))?;
            Ok(allowed)
        });
        allowed.unwrap_or_else(|_| budget.min(now))
    }

    /// The budget is `budget` now: it has shrunk, or did not grow.
    ///
    /// # Errors
    /// The others do not know that, in a sentence.
    pub fn has(&self, budget: u64) -> Result<(), String> {
        let written = self.member.write(budget);
        written.map_err(|why| {
            let budget = ByteSize(budget);
            format!("others that share the budget do not know that it is {budget} here: {why}")
        })
    }

    /// Of all members, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The most of it that this process wants, in bytes.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed).min(self.total)
    }

    /// Takes `wanted` bytes, or what of it is left when the others have shrunk, if nobody else changes shares in this moment and that
    /// is more than `now`. It counts as taken when this returns; [`Sharing::has`] says what came of it.
    pub fn take(&self, wanted: u64, now: u64) -> Option<u64> {
        let held = self.group.try_hold()?;
        let granted = self.left_after_others_shrank(&held, wanted).ok()?;
        (granted > now && self.member.write(granted).is_ok()).then_some(granted)
    }

    /// What all have; none where that cannot be known.
    pub fn shares(&self) -> Option<Shares> {
        let others = self.group.hold().and_then(|held| held.others(self.process));
        let others = others.ok()?.into_iter().map(|other| OtherShare {
            process: other.process,
            budget: other.budget,
        });
        Some(Shares {
            total: self.total,
            others: others.filter(|other| other.budget > 0).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn peer((budget, minimum, idle): (u64, u64, bool), even: u64) -> Peer {
        Peer {
            other: Other {
                process: 1,
                budget,
                socket: PathBuf::new(),
            },
            floor: match idle {
                true => minimum,
                false => minimum.max(even),
            },
            idle,
        }
    }

    #[test]
    fn idle_ones_give_way_before_busy_ones() {
        let peers = [(60, 10, false), (30, 10, true)].map(|of| peer(of, 33));
        // 10 of 100 are free
        assert_eq!(targets(100, 20, &peers), [(1, 20)]);
        assert_eq!(targets(100, 40, &peers), [(1, 10), (0, 50)]);
        // no further than to an even share
        assert_eq!(targets(100, 100, &peers), [(1, 10), (0, 33)]);
        assert_eq!(targets(100, 10, &peers), []);
    }

    proptest! {
        #[test]
        fn nobody_shrinks_below_its_floor_or_more_than_is_wanted(
            given in prop::collection::vec((0..1000u64, 0..500u64, any::<bool>()), 0..6),
            total in 0..4000u64,
            wanted in 0..4000u64,
        ) {
            let even = total / (given.len() as u64 + 1);
            let peers: Vec<Peer> = given.into_iter().map(|of| peer(of, even)).collect();
            let held: u64 = peers.iter().map(|peer| peer.other.budget).sum();
            let mut after = held;
            for (at, target) in targets(total, wanted, &peers) {
                prop_assert!(target < peers[at].other.budget && target >= peers[at].floor);
                after -= peers[at].other.budget - target;
            }
            let left = total.saturating_sub(held);
            prop_assert!(held - after <= wanted.saturating_sub(left));
            let spare: u64 = peers.iter().map(|p| p.other.budget.saturating_sub(p.floor)).sum();
            prop_assert_eq!(held - after, wanted.saturating_sub(left).min(spare));
        }
    }
}
