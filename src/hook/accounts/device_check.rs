//! The ledger held against what the simulated GPU counts by itself.
//!
//! A real device cannot say who holds its memory, so this exists for tests: what is taken on the device and not in the ledger is
//! memory that was not asked for. The ledger may be ahead, because memory is booked before it is allocated; it must never lag.

use crate::arena::ledger::Ledger;
use crate::lanes::device::Device;
use pipeshard_sim as sim;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct DeviceCheck {
    /// The most bytes by which the device was ahead of the ledger.
    most: u64,
}

/// Bytes that are taken on the device beyond what the ledger says, negative where the ledger is ahead; nothing for a real device.
/// `acted`: what the ledger has and the device only acts as if it had.
fn beyond(device: Device, ledger: &Ledger, acted: u64) -> Option<i64> {
    let taken = sim::taken_bytes(device.raw())?;
    let booked = ledger.now().total().saturating_sub(acted);
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Some(signed(taken) - signed(booked))
}

impl DeviceCheck {
    /// Looks whether memory is taken that is not in the ledger.
    pub fn look(&mut self, device: Device, ledger: &Ledger, acted: u64) {
        let excess = beyond(device, ledger, acted).unwrap_or(0);
        self.most = self.most.max(u64::try_from(excess).unwrap_or(0));
    }

    /// The largest excess that was ever seen, and the exact difference now, in bytes; nothing for a real device.
    pub fn figures(&self, device: Device, ledger: &Ledger, acted: u64) -> Option<(u64, i64)> {
        let now = beyond(device, ledger, acted)?;
        Some((self.most.max(u64::try_from(now).unwrap_or(0)), now))
    }
}
