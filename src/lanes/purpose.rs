//! What device memory is for, as a host's allocator is told. Noted by thread, around what allocates: ggml does not pass it on.

use std::cell::Cell;

/// What memory is for. The numbers are those of pipeshard.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Purpose {
    /// Weights that stay.
    Weights = 1,
    /// KV caches and recurrent states.
    Kv = 2,
    /// What weights are streamed through.
    Ring = 3,
    /// Compute buffers of language models.
    Buffers = 4,
    /// Encoders of images and sound: weights and compute buffers.
    Vision = 5,
    /// All else: what the backend takes for itself, experts that are fetched, measuring.
    Other = 6,
}

thread_local! {
    /// Of what is allocated now.
    static NOW: Cell<Purpose> = const { Cell::new(Purpose::Other) };
    /// Of the compute buffers that a scheduler of this thread asked for last.
    static COMPUTE: Cell<Purpose> = const { Cell::new(Purpose::Buffers) };
}

/// What memory is for that this thread allocates now.
pub fn now() -> Purpose {
    NOW.get()
}

/// Notes it until the value is dropped.
#[derive(Debug)]
pub struct During(Purpose);

impl During {
    /// From here on.
    pub fn begin(purpose: Purpose) -> Self {
        During(NOW.replace(purpose))
    }
}

impl Drop for During {
    fn drop(&mut self) {
        NOW.set(self.0);
    }
}

/// Does `work`, whose memory is for `purpose`.
pub fn during<T>(purpose: Purpose, work: impl FnOnce() -> T) -> T {
    let _during = During::begin(purpose);
    work()
}

/// From here on compute buffers are made, those that were asked for last. Returns what [`leave_compute`] wants to know.
pub fn enter_compute() -> Purpose {
    NOW.replace(COMPUTE.get())
}

/// They are made. `before`: the number of what [`enter_compute`] returned.
pub fn leave_compute(before: i32) {
    NOW.set(match before {
        1 => Purpose::Weights,
        2 => Purpose::Kv,
        3 => Purpose::Ring,
        4 => Purpose::Buffers,
        5 => Purpose::Vision,
        _ => Purpose::Other,
    });
}

/// The compute buffers that this thread makes next are for that.
pub fn compute_buffers_are(purpose: Purpose) {
    COMPUTE.set(purpose);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_nest_and_end_with_a_panic() {
        assert_eq!(now(), Purpose::Other);
        during(Purpose::Kv, || {
            compute_buffers_are(Purpose::Vision);
            let before = enter_compute();
            assert_eq!(now(), Purpose::Vision);
            leave_compute(before as i32);
            assert_eq!(now(), Purpose::Kv);
            let panicked =
                std::panic::catch_unwind(|| during(Purpose::Ring, || panic!("on purpose")));
            assert!(panicked.is_err());
            assert_eq!(now(), Purpose::Kv);
        });
        assert_eq!(now(), Purpose::Other);
        // another thread's is its own
        let there = std::thread::spawn(now).join().expect("no panic");
        assert_eq!(there, Purpose::Other);
    }
}
