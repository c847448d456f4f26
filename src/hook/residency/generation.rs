//! How old graphs are told from new ones.

/// Two numbers that say whether a graph may be used, and a mark that saves rebuilding it twice.
#[derive(Debug)]
pub struct Generation {
    /// Grows whenever a device address may have changed. A graph remembers it, and one of another generation does not run.
    addresses: u64,
    /// Grows when graphs that were split before must not be reused: a part of llama.cpp's test for that.
    reuse: u64,
    /// All graphs that were split since the arena took its shape are void already, so two changes in a row cost one rebuild.
    void: bool,
}

impl Default for Generation {
    fn default() -> Self {
        Generation {
            addresses: 0,
            reuse: 1,
            void: true,
        }
    }
}

impl Generation {
    /// The generation of addresses.
    pub fn addresses(&self) -> u64 {
        self.addresses
    }

    /// What llama.cpp compares: a graph from before another value is not used again.
    pub fn reuse(&self) -> u64 {
        self.reuse
    }

    /// Graphs that were split before must not be reused.
    pub fn void_graphs(&mut self) {
        if !std::mem::replace(&mut self.void, true) {
            self.reuse += 1;
        }
    }

    /// Device addresses change. Graphs that were split before neither run nor are reused.
    pub fn change_addresses(&mut self) {
        self.addresses += 1;
        self.void_graphs();
    }

    /// Graphs that are split from here on are good ones.
    pub fn begin(&mut self) {
        self.void = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_changes_in_a_row_cost_one_rebuild() {
        let mut generation = Generation::default();
        generation.change_addresses();
        assert_eq!((generation.addresses(), generation.reuse()), (1, 1));
        generation.begin();
        generation.void_graphs();
        generation.change_addresses();
        assert_eq!((generation.addresses(), generation.reuse()), (2, 2));
        generation.begin();
        generation.void_graphs();
        assert_eq!((generation.addresses(), generation.reuse()), (2, 3));
    }
}
