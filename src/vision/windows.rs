//! In which windows an image is attended to.
//!
//! Qwen2.5-VL and its relatives order patches by window: rows of windows (strips) from top to bottom, windows from left to right, in
//! each its merged patches row by row, each of them four patches. Muse Glimmer does the same with single patches. Windows at the right and lower edge may be smaller. In most
//! layers a patch attends to its window only. Stock has one mask of all patches by all for that; here it is what windows there are, in
//! which order.

use std::ffi::CStr;
use std::ops::Range;

/// Windows that patches attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windowed {
    /// Pixels along a side of a patch.
    pub patch: u32,
    /// Pixels along a side of a window.
    pub window: u32,
    /// How patches are ordered by windows.
    pub order: Order,
}

/// How llama.cpp orders patches by windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The four patches that become a token stay together: Qwen2.5-VL and its relatives.
    Merged,
    /// Patch by patch: Muse Glimmer.
    Single,
}

impl Order {
    /// Patches along a side of what stays together.
    pub fn merged(self) -> u32 {
        match self {
            Order::Merged => 2,
            Order::Single => 1,
        }
    }

    /// clip.cpp's name for the input that holds the order.
    pub fn input(self) -> &'static CStr {
        match self {
            Order::Merged => c"inv_window_idx",
            Order::Single => c"muse_glimmer_sp_perm",
        }
    }

    /// Whether clip.cpp fills the mask of windows though nothing reads it.
    pub fn fills_mask(self) -> bool {
        self == Order::Single
    }
}

/// An image as its windows divide it, in merged patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// From left to right.
    pub width: u32,
    /// From top to bottom.
    pub height: u32,
    /// Along a side of a window.
    pub window: u32,
    /// Patches along a side of a merged one.
    pub merged: u32,
}

/// Windows of the same size at the same distance from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first patch of the first one.
    pub first: u64,
    /// Patches of each.
    pub each: u64,
    /// How many.
    pub count: u64,
    /// Patches from the first of one to the first of the next.
    pub step: u64,
}

impl Run {
    /// Whether they lie one behind the other.
    pub fn is_dense(&self) -> bool {
        self.count == 1 || self.step == self.each
    }
}

impl Grid {
    /// The grid of an image of `width` by `height` pixels. None where llama.cpp has no such images.
    pub fn of(width: i64, height: i64, windowed: Windowed) -> Option<Self> {
        let Windowed { patch, window, .. } = windowed;
        let merged = windowed.order.merged();
        let pixels = i64::from(patch) * i64::from(merged);
        if pixels == 0 || width % pixels != 0 || height % pixels != 0 {
            return None;
        }
        let grid = Grid {
            width: u32::try_from(width / pixels).ok()?,
            height: u32::try_from(height / pixels).ok()?,
            window: window / patch / merged,
            merged,
        };
        (grid.width > 0 && grid.height > 0 && grid.window > 0).then_some(grid)
    }

    /// Patches in all.
    pub fn patches(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * self.of_merged()
    }

    /// Patches of a merged one.
    fn of_merged(&self) -> u64 {
        u64::from(self.merged) * u64::from(self.merged)
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

    /// All windows in runs, by strips or by columns: whatever `cost` finds cheaper. Strips are few where an image is wide, columns
    /// where it is high.
    pub fn runs(&self, cost: impl Fn(&Run) -> usize) -> Vec<Run> {
        let all = |runs: &Vec<Run>| runs.iter().map(&cost).sum::<usize>();
        let (strips, columns) = (self.by_strips(0), self.by_columns());
        match all(&columns) < all(&strips) {
            true => columns,
            false => strips,
        }
    }

    /// The windows in order from a strip on, those of the same size taken together.
    fn by_strips(&self, strip: u32) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut first = 0;
        for (columns, rows) in self.windows() {
            let each = (columns.len() * rows.len()) as u64 * self.of_merged();
            if rows.start >= strip * self.window {
                match runs.last_mut() {
                    Some(run) if run.each == each => run.count += 1,
                    _ => runs.push(Run {
                        first,
                        each,
                        count: 1,
                        step: each,
                    }),
                }
            }
            first += each;
        }
        runs
    }

    /// The windows of all strips of full height, column by column, then those of a lower one.
    fn by_columns(&self) -> Vec<Run> {
        let strips = self.height / self.window;
        let high = u64::from(self.window) * self.of_merged();
        let column = |columns: Range<u32>| Run {
            first: u64::from(columns.start) * high,
            each: columns.len() as u64 * high,
            count: u64::from(strips),
            step: u64::from(self.width) * high,
        };
        let mut runs: Vec<Run> = match strips {
            0 => Vec::new(),
            _ => self.parts(self.width).map(column).collect(),
        };
        runs.extend(self.by_strips(strips));
        runs
    }

    /// How many windows there are.
    pub fn count(&self) -> u64 {
        let along = |length: u32| u64::from(length.div_ceil(self.window));
        along(self.width) * along(self.height)
    }

    /// Whether these are the merged patches, numbered row by row over the whole image, in the order of windows: what llama.cpp's
    /// `inv_window_idx` holds, or `muse_glimmer_sp_perm`.
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

    const QWEN: Windowed = Windowed {
        patch: 14,
        window: 112,
        order: Order::Merged,
    };

    /// As clip.cpp fills its inputs for such models: the order, and by patch which ones it attends to.
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
                let each = grid.of_merged() as usize;
                let seen = begin * each..order.len() * each;
                sees.extend(seen.clone().map(|_| seen.clone()));
            }
        }
        (order, sees)
    }

    #[test]
    fn an_image_of_whole_windows_is_one_run() {
        let grid = Grid::of(448, 336, QWEN).expect("an image");
        let whole = Run {
            first: 0,
            each: 64,
            count: 12,
            step: 64,
        };
        assert_eq!((grid.runs(|_| 1), grid.count()), (vec![whole], 12));
    }

    #[test]
    fn a_strip_has_a_narrower_window_at_its_end() {
        // 69 by 39 merged patches, as a picture of 1932 by 1092 has
        let grid = Grid::of(1932, 1092, QWEN).expect("an image");
        let runs = grid.by_strips(0);
        assert_eq!(runs.len(), 20);
        let ends = (runs[1].each, runs[18].each, runs[19].each);
        assert_eq!(ends, (16, 48, 12));
        assert_eq!(grid.patches(), 10_764);
    }

    #[test]
    fn a_picture_that_is_a_line_has_few_runs() {
        // strips of one window each, all alike
        let grid = Grid::of(28, 28 * 4096, QWEN).expect("an image");
        assert_eq!(grid.runs(|_| 1).len(), 1);
    }

    #[test]
    fn a_high_picture_is_taken_by_columns() {
        // 43 by 95 merged patches, as a telephone's screen has
        let grid = Grid::of(1204, 2660, QWEN).expect("an image");
        // the last strip is as high as the narrow window before it is wide
        assert_eq!(grid.by_strips(0).len(), 47);
        let runs = grid.runs(|_| 1);
        assert_eq!(runs.len(), 13);
        let narrow = Run {
            first: 40 * 16,
            each: 3 * 16,
            count: 23,
            step: 43 * 16,
        };
        assert_eq!(runs[10], narrow);
        assert!(!narrow.is_dense() && runs[11].is_dense());
    }

    #[test]
    fn single_patches_are_ordered_by_windows_as_well() {
        // 3 by 2 patches in windows of 2 by 2
        let single = Windowed {
            patch: 10,
            window: 20,
            order: Order::Single,
        };
        let grid = Grid::of(30, 20, single).expect("an image");
        assert_eq!((grid.patches(), grid.count()), (6, 2));
        assert!(grid.is_order(&[0, 1, 3, 4, 2, 5]) && !grid.is_order(&[0, 1, 2, 3, 4, 5]));
        let each: Vec<u64> = grid.runs(|_| 1).iter().map(|run| run.each).collect();
        assert_eq!(each, [4, 2]);
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
            let windowed = Windowed {
                patch,
                window,
                order: Order::Merged,
            };
            assert_eq!(Grid::of(width, height, windowed), None);
        }
    }

    proptest! {
        #[test]
        fn windows_are_those_of_stock(width in 1u32..40, height in 1u32..40, window in 1u32..9, merged in 1u32..3) {
            let grid = Grid { width, height, window, merged };
            let (order, sees) = stock(grid);
            prop_assert!(grid.is_order(&order));
            for runs in [grid.by_strips(0), grid.by_columns()] {
                let mut seen = vec![0..0; sees.len()];
                for run in &runs {
                    for window in 0..run.count {
                        let first = (run.first + window * run.step) as usize;
                        let window = first..first + run.each as usize;
                        for at in window.clone() {
                            prop_assert_eq!(&seen[at], &(0..0));
                            seen[at] = window.clone();
                        }
                    }
                }
                prop_assert_eq!(&seen, &sees);
                prop_assert_eq!(runs.iter().map(|run| run.count).sum::<u64>(), grid.count());
            }
        }

        #[test]
        fn another_order_is_noticed(width in 2u32..20, height in 1u32..20, window in 1u32..9, at in any::<prop::sample::Index>()) {
            let grid = Grid { width, height, window, merged: 2 };
            let (mut order, _) = stock(grid);
            let at = at.index(order.len() - 1);
            order.swap(at, at + 1);
            prop_assert!(!grid.is_order(&order));
            order.pop();
            prop_assert!(!grid.is_order(&order));
        }
    }
}
