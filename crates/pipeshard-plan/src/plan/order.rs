//! The fixed order in which units are given room on the device.

use super::types::{Unit, UnitClass, UnitId};

/// `0..count` in van der Corput order: every prefix is spread evenly over the range.
fn corput(count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let bits = count.next_power_of_two().trailing_zeros();
    let mut taken = vec![false; count];
    let mut order = Vec::with_capacity(count);
    // 2^bits >= count points, a distance of 2^-bits apart, hit each of `count` equal bins.
    for k in 0..1usize << bits {
        let reversed = k
            .reverse_bits()
            .checked_shr(usize::BITS - bits)
            .unwrap_or(0);
        let index = ((reversed as u128 * count as u128) >> bits) as usize;
        if !std::mem::replace(&mut taken[index], true) {
            order.push(index);
        }
    }
    order
}

/// Indices of the large units that may be resident, first choice first: those of `wanted`, then the rest by class, within a
/// class by layer in van der Corput order, within a layer in order of use. `output`: so may the head.
pub(super) fn priority(units: &[Unit], wanted: &[UnitId], output: bool) -> Vec<usize> {
    let usual = usual(units, output);
    let mut open = vec![false; units.len()];
    for &index in &usual {
        open[index] = true;
    }
    let mut take = |index: &usize| open.get_mut(*index).is_some_and(std::mem::take);
    let named = wanted.iter().map(|id| id.index());
    named.chain(usual).filter(|index| take(index)).collect()
}

/// The same in an order in which every prefix is spread evenly.
pub(crate) fn spread<T: Copy>(all: &[T]) -> Vec<T> {
    let order = corput(all.len()).into_iter();
    order.map(|at| all[at]).collect()
}

fn usual(units: &[Unit], output: bool) -> Vec<usize> {
    // a token reads all of the head, but few of the experts
    let classes = [
        UnitClass::Attention,
        UnitClass::FeedForward,
        UnitClass::Output,
        UnitClass::Experts,
    ];
    let mut order = Vec::new();
    for class in classes {
        if class == UnitClass::Output && !output {
            continue;
        }
        let of_class = units.iter().enumerate().filter(|(_, u)| u.class == class);
        let mut of_class: Vec<(Option<u32>, usize)> = of_class.map(|(i, u)| (u.layer, i)).collect();
        of_class.sort_unstable();
        let layers: Vec<&[(Option<u32>, usize)]> = of_class.chunk_by(|a, b| a.0 == b.0).collect();
        for members in spread(&layers) {
            order.extend(members.iter().map(|&(_, index)| index));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_over_the_range() {
        assert_eq!(corput(0), [] as [usize; 0]);
        assert_eq!(corput(1), [0]);
        assert_eq!(corput(8), [0, 4, 2, 6, 1, 5, 3, 7]);
        assert_eq!(corput(5), [0, 2, 1, 3, 4]);
    }

    #[test]
    fn every_prefix_of_any_range_is_even() {
        for count in 1..200usize {
            let order = corput(count);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..count), "not a permutation");
            for taken in 1..=count {
                let mut prefix = order[..taken].to_vec();
                prefix.sort_unstable();
                prefix.push(count);
                let gap = prefix.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
                // At worst one bisection later.
                assert!(
                    gap <= 2 * count.div_ceil(taken) + 1,
                    "{count} {taken} {gap}"
                );
            }
        }
    }

    #[test]
    fn attention_of_all_layers_comes_before_any_ffn() {
        let unit = |layer, class| Unit {
            name: String::new(),
            layer,
            class,
            bytes: 1,
            device_bytes: 1,
            expert_count: 0,
        };
        let mut units = vec![unit(None, UnitClass::HostOnly)];
        for layer in 0..4 {
            units.push(unit(Some(layer), UnitClass::Small));
            units.push(unit(Some(layer), UnitClass::Attention));
            units.push(unit(Some(layer), UnitClass::FeedForward));
        }
        units.push(unit(None, UnitClass::Output));
        assert_eq!(priority(&units, &[], true), [2, 8, 5, 11, 3, 9, 6, 12, 13]);
        assert_eq!(priority(&units, &[], false), [2, 8, 5, 11, 3, 9, 6, 12]);
        let wanted = [9, 0, 9, 13, 99].map(UnitId);
        assert_eq!(
            priority(&units, &wanted, true),
            [9, 13, 2, 8, 5, 11, 3, 6, 12]
        );
        assert_eq!(priority(&units, &wanted, false)[..2], [9, 2]);
    }
}
