//! Sets of experts: which ones of a stacked tensor are wanted, and which are in place.

use std::ops::Range;

/// A set of the experts that are stacked in one tensor. Its size is fixed when it is made; no operation allocates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertSet {
    words: Box<[u64]>,
    of: u32,
}

impl ExpertSet {
    /// None of `of` experts.
    pub fn none(of: u32) -> Self {
        ExpertSet {
            words: vec![0; of.div_ceil(u64::BITS) as usize].into(),
            of,
        }
    }

    /// How many experts there are to choose from.
    pub fn of(&self) -> u32 {
        self.of
    }

    /// How many are in the set.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Reports whether none is.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Reports whether all are.
    pub fn is_full(&self) -> bool {
        self.len() == self.of
    }

    /// Reports whether `expert` is.
    pub fn contains(&self, expert: u32) -> bool {
        expert < self.of && self.words[(expert / 64) as usize] >> (expert % 64) & 1 == 1
    }

    /// Adds `expert`; false if there is no such expert.
    pub fn insert(&mut self, expert: u32) -> bool {
        let exists = expert < self.of;
        if exists {
            self.words[(expert / 64) as usize] |= 1 << (expert % 64);
        }
        exists
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds all.
    pub fn fill(&mut self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            let left = self.of - index as u32 * u64::BITS;
            *word = u64::MAX >> (u64::BITS - left.min(u64::BITS));
        }
    }

    /// Adds those of `other`, which has as many to choose from.
    pub fn add(&mut self, other: &ExpertSet) {
        for (word, more) in self.words.iter_mut().zip(&*other.words) {
            *word |= more;
        }
    }

    /// Reports whether all of `other` are in this set.
    pub fn contains_all(&self, other: &ExpertSet) -> bool {
        other.missing(self).next().is_none()
    }

    /// What is in this set and not in `present`, as runs of consecutive experts, in ascending order.
    pub fn missing<'a>(&'a self, present: &'a ExpertSet) -> impl Iterator<Item = Range<u32>> + 'a {
        let lacks = move |expert: &u32| self.contains(*expert) && !present.contains(*expert);
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = (next..self.of).find(lacks)?;
            let end = (start..self.of).find(|e| !lacks(e)).unwrap_or(self.of);
            next = end;
            Some(start..end)
        })
    }
}

/// Kernels for quantised rows read up to this many bytes past the end of an expert, and must not find a NaN there.
const READ_PAST_EXPERT: usize = 512;

/// What to copy for a run of experts of `slice` bytes each, out of a tensor of `total` bytes: the run, and, unless the expert
/// after it is in place, the beginning of that.
pub fn run_bytes(
    run: &Range<u32>,
    slice: usize,
    next_in_place: bool,
    total: usize,
) -> Range<usize> {
    let behind = match next_in_place {
        true => 0,
        false => READ_PAST_EXPERT,
    };
    let end = run.end as usize * slice + behind;
    run.start as usize * slice..end.min(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(of: u32, experts: &BTreeSet<u32>) -> ExpertSet {
        let mut made = ExpertSet::none(of);
        for &expert in experts {
            assert_eq!(made.insert(expert), expert < of);
        }
        made
    }

    #[test]
    fn what_kernels_read_behind_an_expert_is_copied_too() {
        assert_eq!(run_bytes(&(2..4), 1000, false, 8000), 2000..4512);
        assert_eq!(run_bytes(&(2..4), 1000, true, 8000), 2000..4000);
        assert_eq!(run_bytes(&(2..8), 1000, false, 8000), 2000..8000);
        assert_eq!(run_bytes(&(0..1), 100, false, 300), 0..300);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(
            of in 1u32..200,
            a in prop::collection::btree_set(0u32..220, 0..150),
            b in prop::collection::btree_set(0u32..220, 0..150),
        ) {
            let (mut x, y) = (set(of, &a), set(of, &b));
            let (a, b) = (
                a.into_iter().filter(|&e| e < of).collect::<BTreeSet<u32>>(),
                b.into_iter().filter(|&e| e < of).collect::<BTreeSet<u32>>(),
            );
            prop_assert_eq!((x.len() as usize, x.is_empty()), (a.len(), a.is_empty()));
            prop_assert_eq!(x.is_full(), a.len() as u32 == of);
            prop_assert!((0..230).all(|e| x.contains(e) == a.contains(&e)));
            let runs: Vec<Range<u32>> = x.missing(&y).collect();
            let missing: Vec<u32> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(missing, a.difference(&b).copied().collect::<Vec<u32>>());
            // as long as can be
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(y.contains_all(&x), a.is_subset(&b));
            x.add(&y);
            prop_assert_eq!(&x, &set(of, &a.union(&b).copied().collect()));
            x.fill();
            prop_assert!(x.is_full() && x.contains_all(&y));
            prop_assert_eq!(&x, &set(of, &(0..of).collect()));
            x.clear();
            prop_assert!(x.is_empty());
        }
    }
}
