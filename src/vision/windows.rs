//! In which windows an image is attended to.
//!
//! Qwen2.5-VL and its relatives order patches by window: rows of windows (strips) from top to bottom, windows from left to right, in
//! each its merged patches row by row, each of them four patches. Windows at the right and lower edge may be smaller. In most
//! layers a patch attends to its window only. Stock has one mask of all patches by all for that; here it is what windows there are, in
//! which order.

use std::ops::Range;

/// Patches along a side of a merged one.
pub const MERGED: u64 = 2;

/// An image as its windows divide it, in merged patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// From left to right.
    pub width: u32,
    /// From top to bottom.
    pub height: u32,
    /// Along a side of a window.
    pub window: u32,
}

/// Windows of the same size, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first patch of the first one.
    pub first: u64,
    /// Patches of each.
    pub each: u64,
    /// How many.
    pub count: u64,
}

impl Grid {
    /// The grid of an image of `width` by `height` pixels, in patches of `patch` pixels and windows of `window`. None where llama.cpp
    /// has no such images.
    pub fn of(width: i64, height: i64, patch: u32, window: u32) -> Option<Self> {
        let merged = i64::from(patch) * MERGED as i64;
        if merged == 0 || width % merged != 0 || height % merged != 0 {
            return None;
        }
        let grid = Grid {
            width: u32::try_from(width / merged).ok()?,
            height: u32::try_from(height / merged).ok()?,
            window: window / patch / MERGED as u32,
        };
        (grid.width > 0 && grid.height > 0 && grid.window > 0).then_some(grid)
    }

    /// Patches in all.
    pub fn patches(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * MERGED * MERGED
    }

    /// Where the parts of a side of `length` begin and end.
    fn parts(&self, length: u32) -> impl Iterator<Item = Range<u32>> + Clone {
        let window = self.window;
        let starts = (0..length).step_by(window as usize);
        starts.map(move |start| start..length.min(start.saturating_add(window)))
    }

    /// The windows in order, columns and rows of merged patches that each covers.
    fn windows(&self) -> impl Iterator<Item = (Range<u32>, Range<u32>)> + '_ {
        let columns = self.parts(self.width);
        self.parts(self.height)
            .flat_map(move |rows| columns.clone().map(move |c| (c, rows.clone())))
    }

    /// The windows in order, those of the same size taken together.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut first = 0;
        for (columns, rows) in self.windows() {
            let each = (columns.len() * rows.len()) as u64 * MERGED * MERGED;
            match runs.last_mut() {
                Some(run) if run.each == each => run.count += 1,
                _ => runs.push(Run {
                    first,
                    each,
                    count: 1,
                }),
            }
            first += each;
        }
        runs
    }

    /// How many windows there are.
    pub fn count(&self) -> u64 {
        let along = |length: u32| u64::from(length.div_ceil(self.window));
        along(self.width) * along(self.height)
    }

    /// Whether these are the merged patches, numbered row by row over the whole image, in the order of windows: what llama.cpp's
    /// `inv_window_idx` holds.
    pub fn is_order(&self, order: &[i32]) -> bool {
        let expected = self.windows().flat_map(|(columns, rows)| {
            rows.flat_map(move |row| {
                columns
                    .clone()
                    .map(move |column| u64::from(row) * u64::from(self.width) + u64::from(column))
            })
        });
        expected.eq(order
            .iter()
            .map(|&at| u64::try_from(at).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As clip.cpp fills its inputs for these models: the order, and by patch which ones it attends to.
    fn stock(grid: Grid) -> (Vec<i32>, Vec<Range<usize>>) {
        let (width, height) = (grid.width as usize, grid.height as usize);
        let window = grid.window as usize;
        let (mut order, mut sees) = (Vec::new(), Vec::new());
        for y in (0..height).step_by(window) {
            for x in (0..width).step_by(window) {
                let begin = order.len();
                for row in y..height.min(y + window) {
                    for column in x..width.min(x + window) {
                        order.push((row * width + column) as i32);
                    }
                }
                let seen = begin * 4..order.len() * 4;
                sees.extend(seen.clone().map(|_| seen.clone()));
            }
        }
        (order, sees)
    }

    #[test]
    fn an_image_of_whole_windows_is_one_run() {
        let grid = Grid::of(448, 336, 14, 112).expect("an image");
        let whole = Run {
            first: 0,
            each: 64,
            count: 12,
        };
        assert_eq!((grid.runs(), grid.count()), (vec![whole], 12));
    }

    #[test]
    fn a_strip_has_a_narrower_window_at_its_end() {
        // 69 by 39 merged patches, as a picture of 1932 by 1092 has
        let grid = Grid::of(1932, 1092, 14, 112).expect("an image");
        let runs = grid.runs();
        assert_eq!(runs.len(), 20);
        let ends = (runs[1].each, runs[18].each, runs[19].each);
        assert_eq!(ends, (16, 48, 12));
        assert_eq!(grid.patches(), 10_764);
    }

    #[test]
    fn a_picture_that_is_a_line_has_few_runs() {
        // strips of one window each, all alike
        let grid = Grid::of(28, 28 * 4096, 14, 112).expect("an image");
        assert_eq!(grid.runs().len(), 1);
    }

    #[test]
    fn what_is_no_image_has_no_grid() {
        for (width, height, patch, window) in [
            (30, 28, 14, 112),
            (0, 28, 14, 112),
            (28, 28, 0, 112),
            (28, 28, 14, 20),
            (i64::MAX / 28 * 28, 28, 14, 112),
        ] {
            assert_eq!(Grid::of(width, height, patch, window), None);
        }
    }

    proptest! {
        #[test]
        fn windows_are_those_of_stock(width in 1u32..40, height in 1u32..40, window in 1u32..9) {
            let grid = Grid { width, height, window };
            let (order, sees) = stock(grid);
            prop_assert!(grid.is_order(&order));
            let mut seen = Vec::new();
            for run in grid.runs() {
                prop_assert_eq!(run.first, seen.len() as u64);
                for _ in 0..run.count {
                    let window = seen.len()..seen.len() + run.each as usize;
                    seen.extend(window.clone().map(|_| window.clone()));
                }
            }
            prop_assert_eq!(seen, sees);
            prop_assert_eq!(grid.runs().iter().map(|run| run.count).sum::<u64>(), grid.count());
        }

        #[test]
        fn another_order_is_noticed(width in 2u32..20, height in 1u32..20, window in 1u32..9, at in any::<prop::sample::Index>()) {
            let grid = Grid { width, height, window };
            let (mut order, _) = stock(grid);
            let at = at.index(order.len() - 1);
            order.swap(at, at + 1);
            prop_assert!(!grid.is_order(&order));
            order.pop();
            prop_assert!(!grid.is_order(&order));
        }
    }
}
