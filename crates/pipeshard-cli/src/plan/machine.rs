//! The machine that is predicted for, and where its figures come from.

use std::path::Path;

use jiff::tz::TimeZone;
use jiff::Timestamp;
use pipeshard::profile::{of_simulated, read_file, Cache};
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::profile::{model_label, Machine, Origin, Profile, ProfileKey, MACHINES};
use pipeshard_sim::SimSpec;

/// What the machine is called of which nothing is known.
const ASSUMED: &str = "assumed";

/// A profile and how it came here.
#[derive(Debug, Clone)]
pub struct PlannedMachine {
    /// The figures.
    pub profile: Profile,
    /// One sentence on where they come from.
    pub source: String,
    /// They are those of a real card, which keeps some of its memory for itself.
    pub real_card: bool,
    /// They are those of the machine at hand, or of a simulated GPU: runs on it keep plans.
    pub runs_here: bool,
}

impl PlannedMachine {
    /// Where nothing is known.
    pub fn assumed() -> Self {
        PlannedMachine {
            profile: Profile::assumed(),
            source:
                "Predictions for an assumed machine; run `pipeshard profile MODEL` for this one."
                    .to_owned(),
            real_card: false,
            runs_here: false,
        }
    }

    /// A machine by its data sheets.
    pub fn named(machine: &Machine) -> Self {
        PlannedMachine {
            profile: machine.profile(0),
            source: format!(
                "Predictions for a stated machine, from data sheets: {}. Nothing was measured.",
                machine.title
            ),
            real_card: true,
            runs_here: false,
        }
    }

    /// What `--profile` names: a machine or a file.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn from_argument(argument: &str) -> Result<Self, String> {
        match Machine::named(argument) {
            Some(machine) => Ok(Self::named(machine)),
            None if argument == ASSUMED => Ok(Self::assumed()),
            None => Self::from_file(Path::new(argument)),
        }
    }

    fn from_file(path: &Path) -> Result<Self, String> {
        let profile = read_file(path).map_err(|error| {
            let names = MACHINES.map(|machine| machine.name).join(", ");
            format!("{error}. Give a file of pipeshard profile, or one of {names}")
        })?;
        Ok(Self::of(profile, file_date(path)))
    }

    /// What was measured last with this machine's CPU, by this build; else what is assumed.
    pub fn at_hand(cache: Option<&Cache>, host: &ProfileKey) -> Self {
        match cache.and_then(|cache| cache.latest_of(host)) {
            Some((path, profile)) => PlannedMachine {
                runs_here: true,
                ..Self::of(profile, file_date(&path))
            },
            None => Self::assumed(),
        }
    }

    /// A simulated GPU.
    pub fn simulated(spec: &SimSpec, threads: u32) -> Self {
        PlannedMachine {
            runs_here: true,
            ..Self::of(of_simulated(spec, threads, None), None)
        }
    }

    /// Where the figures for a model come from: what its runs have shown is among them.
    pub fn source_for(&self, inventory: &Inventory) -> String {
        let learned = self.profile.learned_of(&model_label(inventory));
        let shown = learned.map_or_else(String::new, |learned| {
            format!(
                " CPU slowdown factor from {} passes of this model: {:.2}.",
                learned.passes, learned.cpu
            )
        });
        format!("{}{shown}", self.source)
    }

    /// A profile from a file that was written on `date`.
    pub fn of(profile: Profile, date: Option<String>) -> Self {
        let on = date.map_or_else(String::new, |date| format!(" on {date}"));
        let (device, cpu) = (&profile.key.device, &profile.key.cpu);
        let source = match profile.origin {
            Origin::Measured => format!(
                "Predictions from a profile measured{on}: {device}, {cpu}, {} threads.",
                profile.key.threads
            ),
            Origin::Stated => {
                format!("Predictions for a stated machine: {device}. Nothing was measured.")
            }
        };
        PlannedMachine {
            real_card: profile.origin == Origin::Measured && !device.starts_with("SIM"),
            runs_here: false,
            source,
            profile,
        }
    }
}

/// The day on which a file was written, in UTC.
fn file_date(path: &Path) -> Option<String> {
    let modified = path.metadata().ok()?.modified().ok()?;
    let moment = Timestamp::try_from(modified).ok()?;
    Some(TimeZone::UTC.to_datetime(moment).date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_file_has_the_day_on_which_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (day, text) in [(0, "1970-01-01"), (11_016, "2000-02-29")] {
            let noon = Duration::from_secs(day * 86_400 + 43_200);
            file.as_file().set_modified(UNIX_EPOCH + noon).unwrap();
            assert_eq!(file_date(file.path()).as_deref(), Some(text));
        }
        assert_eq!(file_date(Path::new("/nowhere")), None);
    }

    #[test]
    fn it_says_where_the_figures_come_from() {
        let laptop = PlannedMachine::from_argument("laptop-12g").unwrap();
        assert!(laptop.source.contains("stated") && laptop.source.contains("laptop card"));
        let mut profile = Profile::assumed();
        profile.origin = Origin::Measured;
        profile.key.device = "Card 9000".to_owned();
        let measured = PlannedMachine::of(profile.clone(), Some("2026-01-02".to_owned()));
        assert!(measured
            .source
            .contains("measured on 2026-01-02: Card 9000"));
        assert!(measured.real_card);
        profile.key.device = "SIM0".to_owned();
        assert!(!PlannedMachine::of(profile, None).real_card);
    }

    #[test]
    fn files_that_are_no_profiles_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profile.json");
        let said = |file: &Path| PlannedMachine::from_file(file).unwrap_err();
        assert!(said(&file).contains("laptop-12g"));
        std::fs::write(&file, "{}").unwrap();
        assert!(said(&file).contains("pipeshard profile"));
        let whole = Profile::assumed();
        std::fs::write(&file, serde_json::to_vec(&whole).unwrap()).unwrap();
        assert_eq!(PlannedMachine::from_file(&file).unwrap().profile, whole);
    }

    #[test]
    fn what_was_measured_here_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let mut host = ProfileKey {
            cpu: "This CPU".to_owned(),
            threads: 4,
            ..ProfileKey::default()
        };
        let at_hand = |host: &ProfileKey| PlannedMachine::at_hand(Some(&cache), host);
        assert!(at_hand(&host).source.contains("assumed machine"));
        let mut measured = Profile::assumed();
        measured.origin = Origin::Measured;
        measured.key = host.clone();
        measured.key.device = "Card 9000".to_owned();
        cache.store(&measured).unwrap();
        assert!(at_hand(&host)
            .source
            .contains("Card 9000, This CPU, 4 threads"));
        host.threads = 8;
        assert!(at_hand(&host).source.contains("assumed machine"));
    }
}
