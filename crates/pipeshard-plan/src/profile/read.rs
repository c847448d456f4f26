//! A profile as text.

use super::types::{Curve, Profile, PROFILE_SCHEMA_VERSION};

/// A profile from JSON.
///
/// # Errors
/// What is wrong with the text.
pub fn read(text: &[u8]) -> Result<Profile, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let version = &value["schema_version"];
    if *version != PROFILE_SCHEMA_VERSION {
        return Err(format!(
            "its version is {version}, this build reads {PROFILE_SCHEMA_VERSION}"
        ));
    }
    let profile: Profile = serde_json::from_value(value).map_err(|e| e.to_string())?;
    match nonsense(&profile) {
        Some(what) => Err(what),
        None => Ok(profile),
    }
}

/// A figure that no measurement gives.
fn nonsense(profile: &Profile) -> Option<String> {
    let (link, memory, paid) = (&profile.link, &profile.memory, &profile.overheads);
    let quantities = [
        link.pinned,
        link.pinned_cpu_busy,
        link.pageable,
        link.back,
        link.register,
        memory.cpu,
        memory.cpu_copy_busy,
        paid.to_cpu,
        paid.to_gpu,
        paid.launch,
        paid.cpu_op,
        paid.cpu_wake,
        paid.pass,
    ];
    let figures = quantities.iter().map(|quantity| quantity.median);
    let rooflines = [profile.cpu, profile.gpu];
    let figures = figures.chain(rooflines.iter().flat_map(|r| [r.bytes, r.flops, r.launch]));
    if figures
        .into_iter()
        .any(|figure| !(figure >= 0.0 && figure.is_finite()))
    {
        return Some("a figure is negative".to_owned());
    }
    let wrong = |curve: &&Curve| {
        let points = &curve.points;
        let time = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        let rising = points.windows(2).all(|pair| pair[0].rows < pair[1].rows);
        !rising
            || points
                .iter()
                .any(|p| !time(p.seconds) || !p.copy_busy.is_none_or(time))
    };
    if let Some(curve) = profile.curves.iter().find(wrong) {
        return Some(format!("the curve of {} makes no sense", curve.op));
    }
    let learned = profile
        .learned
        .iter()
        .find(|learned| !learned.is_possible())?;
    Some(format!(
        "what runs of {} have shown makes no sense",
        learned.model
    ))
}
