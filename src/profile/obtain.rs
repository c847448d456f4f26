//! Obtains a profile: from the user's file, the cache or a specification, or by measuring now.

use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::file::{from_file, ProfileFileError};
use super::key::key_of;
use super::simulated::of_simulated;
use crate::files::Stored;
use crate::lanes::device::Device;
use crate::measure::{best, measure, measure_operations, MeasureError, Settings};
use pipeshard_plan::profile::{
    Effort, Op, Origin, Processor, Profile, ProfileKey, PROFILE_SCHEMA_VERSION,
};
use pipeshard_sim::SimSpec;

/// Names a file with the profile to use.
pub const FILE_VARIABLE: &str = "LLAMA_ARG_PIPESHARD_PROFILE";

/// The profile that the user names in the environment.
pub fn file_of_user() -> Option<PathBuf> {
    let value = std::env::var_os(FILE_VARIABLE);
    value.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What is wanted.
pub struct Request<'a> {
    /// The device, whose backend is loaded.
    pub device: Device,
    /// What is to be in the profile: see [`pipeshard_plan::profile::operations`].
    pub operations: &'a [Op],
    /// Threads that the CPU computes with.
    pub threads: u32,
    /// The most device memory that measuring may hold, in bytes.
    pub device_memory: u64,
    /// What the device was made from, if it is simulated: its profile is stated, not measured.
    pub simulated: Option<&'a SimSpec>,
    /// A profile that the user names.
    pub file: Option<&'a Path>,
    /// How much is measured, where something is.
    pub effort: Effort,
    /// Measure even where a profile is kept.
    pub refresh: bool,
    /// Where profiles are kept; none: they are not.
    pub cache: Option<&'a Cache>,
    /// Told steps done and steps in all while something is measured.
    pub progress: &'a dyn Fn(usize, usize),
}

/// A profile and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Obtained {
    /// The profile.
    pub profile: Profile,
    /// Where it comes from.
    pub from: Source,
    /// What the user should know: a damaged file, one that could not be written.
    pub notes: Vec<String>,
}

/// Where a profile comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Kept from before.
    Cache,
    /// Kept from before, and what this model needs was added.
    Extended,
    /// Measured now.
    Measured,
    /// From a simulated GPU's specification.
    Stated,
    /// From the file that the user named.
    File,
}

/// The reason why no profile could be obtained.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The user's file.
    #[error(transparent)]
    File(#[from] ProfileFileError),
    /// It could not be measured.
    #[error("the profile of this machine could not be measured: {0}")]
    Measure(#[from] MeasureError),
}

/// Obtains a profile. Where one is kept that has all operations this reads a file; else it takes seconds.
///
/// # Errors
/// [`ProfileError`], with the reason. A cache that fails is a note and no error.
pub fn obtain(request: &Request<'_>) -> Result<Obtained, ProfileError> {
    let settings = || Settings::new(request.effort, request.threads, request.device_memory);
    obtain_with(request, &key_of(request.device, request.threads), &settings)
}

fn obtain_with(
    request: &Request<'_>,
    key: &ProfileKey,
    settings: &dyn Fn() -> Settings,
) -> Result<Obtained, ProfileError> {
    let mut notes = Vec::new();
    let known = |profile, from| Obtained {
        profile,
        from,
        notes: Vec::new(),
    };
    if let Some(path) = request.file {
        return Ok(known(from_file(path, key)?, Source::File));
    }
    if let Some(spec) = request.simulated {
        let profile = of_simulated(spec, request.threads, None);
        return Ok(known(profile, Source::Stated));
    }
    if let Some(mut profile) = kept(request, key, &mut notes) {
        let missing = missing(&profile, request.operations);
        if missing.is_empty() {
            return Ok(Obtained {
                profile,
                from: Source::Cache,
                notes,
            });
        }
        let (device, progress) = (request.device, request.progress);
        let curves = measure_operations(device, &missing, &settings(), progress)?;
        profile.merge(curves);
        raise_rooflines(&mut profile);
        round(&mut profile);
        keep(request, &profile, &mut notes);
        return Ok(Obtained {
            profile,
            from: Source::Extended,
            notes,
        });
    }
    let mut profile = measured(request, key, &settings())?;
    round(&mut profile);
    if request.refresh {
        keep(request, &profile, &mut notes);
    } else if let Some(cache) = request.cache {
        // another process may have measured at the same time: both go by what was kept first
        match cache.store_first(profile.clone()) {
            Ok(first) => profile = first,
            Err(error) => notes.push(error.to_string()),
        }
    }
    Ok(Obtained {
        profile,
        from: Source::Measured,
        notes,
    })
}

fn measured(
    request: &Request<'_>,
    key: &ProfileKey,
    settings: &Settings,
) -> Result<Profile, MeasureError> {
    let measured = measure(
        request.device,
        request.operations,
        settings,
        request.progress,
    )?;
    Ok(Profile {
        schema_version: PROFILE_SCHEMA_VERSION,
        origin: Origin::Measured,
        key: key.clone(),
        link: measured.link,
        memory: measured.memory,
        overheads: measured.overheads,
        host: measured.host,
        cpu: measured.cpu,
        gpu: measured.gpu,
        curves: measured.curves,
        learned: Vec::new(),
    })
}

/// Leaves five digits of each figure: more were not measured, and so many are the same again when they are read.
fn round(profile: &mut Profile) {
    let figure = |value: &mut f64| {
        if let Ok(rounded) = format!("{value:.4e}").parse() {
            *value = rounded;
        }
    };
    let (link, memory, paid) = (
        &mut profile.link,
        &mut profile.memory,
        &mut profile.overheads,
    );
    for quantity in [
        &mut link.pinned,
        &mut link.pinned_cpu_busy,
        &mut link.pageable,
        &mut link.back,
        &mut link.register,
        &mut memory.cpu,
        &mut memory.cpu_copy_busy,
        &mut paid.to_cpu,
        &mut paid.to_gpu,
        &mut paid.launch,
        &mut paid.cpu_op,
        &mut paid.cpu_wake,
        &mut paid.pass,
    ] {
        figure(&mut quantity.median);
        figure(&mut quantity.spread);
    }
    for seconds in [
        &mut profile.host.embedding,
        &mut profile.host.shared_embedding,
        &mut profile.host.store_row,
        &mut profile.host.store_float,
    ] {
        figure(seconds);
    }
    for roofline in [&mut profile.cpu, &mut profile.gpu] {
        figure(&mut roofline.bytes);
        figure(&mut roofline.flops);
        figure(&mut roofline.launch);
    }
    for point in profile.curves.iter_mut().flat_map(|c| &mut c.points) {
        figure(&mut point.seconds);
        figure(&mut point.spread);
        point.copy_busy.iter_mut().for_each(figure);
    }
}

/// The profile that is kept, if it is wanted.
fn kept(request: &Request<'_>, key: &ProfileKey, notes: &mut Vec<String>) -> Option<Profile> {
    let cache = request.cache.filter(|_| !request.refresh)?;
    match cache.load(key) {
        Stored::Valid(profile) => Some(*profile),
        Stored::Nothing => None,
        Stored::Damaged(why) => {
            notes.push(why);
            None
        }
    }
}

fn keep(request: &Request<'_>, profile: &Profile, notes: &mut Vec<String>) {
    if let Some(Err(error)) = request.cache.map(|cache| cache.store(profile)) {
        notes.push(error.to_string());
    }
}

/// Operations that a profile has no curve of, for one processor or the other.
fn missing(profile: &Profile, wanted: &[Op]) -> Vec<Op> {
    let has = |op: &Op, on: Processor| profile.curves.iter().any(|c| c.on == on && c.op == *op);
    let complete = |op: &Op| has(op, Processor::Cpu) && has(op, Processor::Gpu);
    wanted.iter().filter(|op| !complete(op)).cloned().collect()
}

/// What new curves reach is possible.
fn raise_rooflines(profile: &mut Profile) {
    let (bytes, flops) = best(&profile.curves, Processor::Cpu);
    profile.cpu.bytes = profile.cpu.bytes.max(bytes);
    profile.cpu.flops = profile.cpu.flops.max(flops);
    let (bytes, flops) = best(&profile.curves, Processor::Gpu);
    profile.gpu.bytes = profile.gpu.bytes.max(bytes);
    profile.gpu.flops = profile.gpu.flops.max(flops);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::{card, little};
    use std::cell::Cell;

    fn product(rows: u64) -> Op {
        Op::Product {
            type_name: "f16".to_owned(),
            columns: 256,
            rows,
        }
    }

    fn key() -> ProfileKey {
        ProfileKey {
            device: "a card".to_owned(),
            ..ProfileKey::default()
        }
    }

    fn request<'a>(
        device: Device,
        operations: &'a [Op],
        cache: &'a Cache,
        progress: &'a dyn Fn(usize, usize),
    ) -> Request<'a> {
        Request {
            device,
            operations,
            threads: 1,
            device_memory: 16 << 20,
            simulated: None,
            file: None,
            effort: Effort::Quick,
            refresh: false,
            cache: Some(cache),
            progress,
        }
    }

    #[test]
    fn a_machine_is_measured_once_and_a_profile_grows_with_the_models() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let device = card("vram=1G");
        let settings = || little(16 << 20);
        let steps = Cell::new(0);
        let progress = |_, all| steps.set(all);
        let (small, both) = ([product(64)], [product(64), product(128)]);
        let ask = |operations: &[Op], refresh| {
            steps.set(0);
            let request = Request {
                refresh,
                ..request(device, operations, &cache, &progress)
            };
            obtain_with(&request, &key(), &settings).unwrap()
        };
        let first = ask(&small, false);
        assert_eq!((first.from, steps.get()), (Source::Measured, 5));
        let again = ask(&small, false);
        assert_eq!((again.from, steps.get()), (Source::Cache, 0));
        assert_eq!(again.profile, first.profile);
        let more = ask(&both, false);
        assert_eq!((more.from, steps.get()), (Source::Extended, 3));
        assert_eq!(more.profile.curves[..2], first.profile.curves[..]);
        assert_eq!(more.profile.curves.len(), 4);
        assert_eq!(ask(&small, false).profile, more.profile);
        assert_eq!(ask(&small, true).from, Source::Measured);

        std::fs::write(cache.path(&key()), "{").unwrap();
        let damaged = ask(&small, false);
        assert_eq!(damaged.from, Source::Measured);
        assert!(
            damaged.notes[0].contains("is damaged"),
            "{:?}",
            damaged.notes
        );
        assert_eq!(ask(&small, false).from, Source::Cache);
    }

    #[test]
    fn a_kept_profile_is_read_without_measuring() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let mut profile = Profile::assumed();
        profile.key = key();
        let points = |rows| pipeshard_plan::profile::Point {
            rows,
            seconds: 1e-3,
            spread: 0.0,
            copy_busy: None,
        };
        for rows in 1..60 {
            for on in [Processor::Cpu, Processor::Gpu] {
                profile.curves.push(pipeshard_plan::profile::Curve {
                    on,
                    op: product(rows),
                    points: (1..12).map(points).collect(),
                });
            }
        }
        cache.store(&profile).unwrap();
        let device = card("vram=1G");
        let operations = [product(1), product(59)];
        let request = request(device, &operations, &cache, &|_, _| {});
        let settings = || little(16 << 20);
        let found = obtain_with(&request, &key(), &settings).unwrap();
        assert_eq!(found.from, Source::Cache);
        assert_eq!(found.profile.curves.len(), profile.curves.len());
        let did = pipeshard_sim::counters(device.raw());
        assert_eq!((did.graphs, did.copies, did.allocations), (0, 0, 0));
    }

    #[test]
    fn a_simulated_gpu_and_a_file_are_taken_at_their_word() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(&folder.path().join("cache"));
        let device = card("vram=1G");
        let spec = SimSpec::parse("vram=1G,pcie=9G").unwrap();
        let stated = Request {
            simulated: Some(&spec),
            ..request(device, &[], &cache, &|_, _| {})
        };
        let stated = obtain(&stated).unwrap();
        assert_eq!(stated.from, Source::Stated);
        assert_eq!(stated.profile.link.pinned.median, 9e9);

        let path = folder.path().join("mine.json");
        std::fs::write(&path, serde_json::to_vec(&stated.profile).unwrap()).unwrap();
        let file = Request {
            file: Some(&path),
            ..request(device, &[], &cache, &|_, _| {})
        };
        let mine = obtain(&file).unwrap();
        assert_eq!((mine.from, mine.profile), (Source::File, stated.profile));
        std::fs::write(&path, "no").unwrap();
        assert!(obtain(&file).is_err());
        assert!(
            !folder.path().join("cache").exists(),
            "nothing was measured"
        );
    }

    #[test]
    fn a_cache_that_fails_is_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = Cache::in_folder(&file);
        let operations = [product(64)];
        let device = card("vram=1G");
        let request = request(device, &operations, &cache, &|_, _| {});
        let obtained = obtain_with(&request, &key(), &|| little(16 << 20)).unwrap();
        assert_eq!(obtained.from, Source::Measured);
        assert!(obtained
            .notes
            .iter()
            .any(|note| note.contains("cannot be kept")));
    }
}
