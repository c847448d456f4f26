//! Which host memory is page-locked, as the simulated device knows it.

use std::collections::BTreeMap;

use pipeshard_model::size::ByteSize;

/// Whether, and how much, host memory may be page-locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinPolicy {
    /// As much as is asked for.
    Unlimited,
    /// Up to this many bytes at a time; what goes beyond is refused.
    Limited(u64),
    /// Always refused.
    Refused,
}

/// Why host memory was not page-locked, or not released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There is no simulated GPU in this process.
    #[error(
        "no simulated GPU was made in this process, so there is nothing to page-lock memory for"
    )]
    NoDevice,
    /// The specification says `pin=off`.
    #[error("the simulated GPU refuses to page-lock host memory (pin=off); copies go through unlocked memory and are slower")]
    Refused,
    /// More than `pin=SIZE` allows.
    #[error("the simulated GPU page-locks at most {}: {} are locked and {} more were asked for; copies of the rest are slower", ByteSize(*.limit), ByteSize(*.locked), ByteSize(*.asked))]
    Limit {
        /// Bytes that were asked for.
        asked: u64,
        /// Bytes that are locked already.
        locked: u64,
        /// The most at a time, in bytes.
        limit: u64,
    },
    /// A part of it is locked already.
    #[error("the host memory at {address:#x} is page-locked already, at least in part; release it first")]
    Overlap {
        /// Where the range begins.
        address: usize,
    },
    /// Null, empty, or longer than the address space.
    #[error("no memory at {address:#x}, {len} bytes: there is nothing to page-lock")]
    NoMemory {
        /// Where the range begins.
        address: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// The specification says `unpin=off`.
    #[error("the simulated GPU does not release the page-locked memory at {address:#x} because the specification says so (unpin)")]
    Kept {
        /// Where the range begins.
        address: usize,
    },
    /// The device is gone.
    #[error("the simulated GPU is lost and page-locks nothing")]
    Gone,
    /// Not the start and length of a locked range.
    #[error("the {len} bytes of host memory at {address:#x} are not a range that was page-locked")]
    NotLocked {
        /// Where the range begins.
        address: usize,
        /// Its length in bytes.
        len: usize,
    },
}

/// How much of a range is page-locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    All,
    None,
    /// CUDA refuses to copy such a range.
    Part,
}

#[derive(Debug)]
pub(super) struct Pins {
    policy: PinPolicy,
    /// Start to length; disjoint.
    ranges: BTreeMap<usize, usize>,
    locked: u64,
}

impl Pins {
    pub fn new(policy: PinPolicy) -> Self {
        Self {
            policy,
            ranges: BTreeMap::new(),
            locked: 0,
        }
    }

    /// Bytes that are locked.
    pub fn locked(&self) -> u64 {
        self.locked
    }

    /// Reports whether the policy allows to lock that much more.
    pub fn check(&self, len: usize) -> Result<(), PinError> {
        let asked = len as u64;
        match self.policy {
            PinPolicy::Unlimited => Ok(()),
            PinPolicy::Refused => Err(PinError::Refused),
            PinPolicy::Limited(limit) if self.locked.saturating_add(asked) > limit => {
                Err(PinError::Limit {
                    asked,
                    locked: self.locked,
                    limit,
                })
            }
            PinPolicy::Limited(_) => Ok(()),
        }
    }

    pub fn lock(&mut self, address: usize, len: usize) -> Result<(), PinError> {
        let end = address.checked_add(len);
        let (Some(end), true) = (end, address != 0 && len != 0) else {
            return Err(PinError::NoMemory { address, len });
        };
        let overlaps = self
            .ranges
            .range(..end)
            .next_back()
            .is_some_and(|(start, len)| start + len > address);
        if overlaps {
            return Err(PinError::Overlap { address });
        }
        self.check(len)?;
        self.ranges.insert(address, len);
        self.locked += len as u64;
        Ok(())
    }

    /// Length of the locked range that starts here.
    pub fn locked_at(&self, address: usize) -> Option<usize> {
        self.ranges.get(&address).copied()
    }

    pub fn unlock(&mut self, address: usize, len: usize) -> Result<(), PinError> {
        if self.ranges.get(&address) != Some(&len) {
            return Err(PinError::NotLocked { address, len });
        }
        self.ranges.remove(&address);
        self.locked -= len as u64;
        Ok(())
    }

    /// How much of a range is locked. As on CUDA, only one locked range can serve a copy: two that touch each other count as
    /// a part each (seen on an H100: a copy across the seam is an invalid argument).
    pub fn coverage(&self, address: usize, len: usize) -> Coverage {
        let end = address.saturating_add(len);
        let before = self.ranges.range(..end).next_back();
        match before.map(|(&start, &len)| (start, start + len)) {
            Some((start, last)) if start <= address && end <= last => Coverage::All,
            Some((_, last)) if last > address => Coverage::Part,
            _ => Coverage::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_locked_and_released_whole() {
        let mut pins = Pins::new(PinPolicy::Unlimited);
        assert_eq!(pins.lock(1000, 100), Ok(()));
        assert_eq!(pins.lock(1099, 1), Err(PinError::Overlap { address: 1099 }));
        assert_eq!(pins.lock(900, 101), Err(PinError::Overlap { address: 900 }));
        assert_eq!(pins.lock(900, 300), Err(PinError::Overlap { address: 900 }));
        assert_eq!(pins.lock(1100, 50), Ok(()));
        assert_eq!(pins.locked(), 150);
        assert!(matches!(
            pins.unlock(1000, 99),
            Err(PinError::NotLocked { .. })
        ));
        assert_eq!(pins.unlock(1000, 100), Ok(()));
        assert!(matches!(
            pins.unlock(1000, 100),
            Err(PinError::NotLocked { .. })
        ));
        assert_eq!(pins.locked(), 50);
        for (address, len) in [(0, 5), (5, 0), (usize::MAX, 2)] {
            assert_eq!(
                pins.lock(address, len),
                Err(PinError::NoMemory { address, len })
            );
        }
    }

    #[test]
    fn coverage_sees_gaps_and_neighbours() {
        let mut pins = Pins::new(PinPolicy::Unlimited);
        for (address, len) in [(1000, 100), (1100, 100), (1300, 100)] {
            pins.lock(address, len).expect("room");
        }
        for (address, len, expected) in [
            (1000, 100, Coverage::All),
            (1050, 100, Coverage::Part),
            (1000, 200, Coverage::Part),
            (1000, 201, Coverage::Part),
            (1150, 200, Coverage::Part),
            (1200, 100, Coverage::None),
            (1250, 100, Coverage::Part),
            (950, 60, Coverage::Part),
            (500, 10, Coverage::None),
            (1399, 1, Coverage::All),
            (1400, 1, Coverage::None),
        ] {
            assert_eq!(pins.coverage(address, len), expected, "{address} {len}");
        }
    }

    #[test]
    fn refusals_follow_the_specification() {
        let mut off = Pins::new(PinPolicy::Refused);
        assert_eq!(off.lock(1000, 1), Err(PinError::Refused));
        let mut limited = Pins::new(PinPolicy::Limited(100));
        limited.lock(1000, 60).expect("below the limit");
        let error = limited.lock(2000, 41).expect_err("above the limit");
        assert!(
            error
                .to_string()
                .contains("at most 100 B: 60 B are locked and 41 B more"),
            "{error}"
        );
        limited.lock(2000, 40).expect("exactly the limit");
        limited.unlock(1000, 60).expect("locked above");
        limited.lock(3000, 60).expect("room again");
    }
}
