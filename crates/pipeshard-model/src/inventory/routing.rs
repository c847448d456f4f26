//! What a router of experts can be expected to choose.

/// How many different experts `rows` rows are expected to choose, if each chooses `used` of `experts` at random. Real routers
/// choose less evenly, so this is the most to be expected.
pub fn expected_distinct(experts: u32, used: u32, rows: u32) -> f64 {
    if experts == 0 {
        return 0.0;
    }
    let missed_by_one = 1.0 - f64::from(used.min(experts)) / f64::from(experts);
    f64::from(experts) * (1.0 - missed_by_one.powf(f64::from(rows)))
}
