//! getResults and releaseResults: hosts that fetch answers on their own threads.

use crate::abi::{execution, result, Context};
use crate::instance::Instance;
use crate::outputs::{fill, of_host, set};
use crate::refusal::{answer, call, Refusal};
use crate::session::exports::pipeshard_cancel;
use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use std::time::Instant;

fn nothing() -> Refusal {
    Refusal::new(
        result::INVALID_STATE,
        "nothing is being evaluated whose results are fetched: call evaluateAsync without a callback first",
    )
}

pub unsafe extern "C" fn get_results(context: *mut Context, wait: bool, state: *mut u32) -> u32 {
    answer(|| {
        let instance = Instance::in_context(context)?;
        let state = state
            .as_mut()
            .ok_or_else(|| Refusal::invalid("getResults: the pointer for the state is null"))?;
        let begin = Instant::now();
        let mut running = instance.running();
        loop {
            let poll = running.poll.as_mut().ok_or_else(nothing)?;
            let patience = poll.patience();
            if let Some(handed) = poll.hand_out() {
                let outputs = of_host(context);
                match outputs.is_null() || outputs == handed.outputs.array() {
                    true => set(context, handed.outputs.array()),
                    // what does not fit stays where it is
                    false => fill(outputs, &handed.text)?,
                }
                *state = handed.state;
                return Ok(0);
            }
            let left = patience.saturating_sub(begin.elapsed());
            match wait {
                false => return Ok(result::NOT_READY),
                true if left.is_zero() => return Ok(result::TIMED_OUT),
                true => {}
            }
            let woken = instance.changed.wait_timeout(running, left);
            running = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    })
}

pub unsafe extern "C" fn release_results(context: *mut Context, state: u32) -> u32 {
    call(|| {
        let instance = Instance::in_context(context)?;
        let mut running = instance.running();
        let poll = running.poll.as_mut().ok_or_else(nothing)?;
        let handed = poll.release().ok_or_else(|| {
            Refusal::new(
                result::INVALID_STATE,
                "releaseResults: nothing was fetched that is not released",
            )
        })?;
        if of_host(context) == handed.outputs.array() {
            set(context, std::ptr::null());
        }
        if handed.state != execution::PENDING {
            running.poll = None;
            return Ok(());
        }
        drop(running);
        // the host has had enough
        if state == execution::CANCEL {
            instance.cancelled.store(true, Ordering::Relaxed);
            pipeshard_cancel(instance.session.0);
        }
        Ok(())
    })
}
