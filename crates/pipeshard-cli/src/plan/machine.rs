//! The machine that is predicted for, and where its figures come from.

use std::path::Path;

use pipeshard::profile::{read_file, Cache};
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::profile::{model_label, Machine, Origin, Profile, ProfileKey, MACHINES};

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
            Some((path, profile)) => Self::of(profile, file_date(&path)),
            None => Self::assumed(),
        }
    }

    /// Where the figures for a model come from: what its runs have shown is among them.
    pub fn source_for(&self, inventory: &Inventory) -> String {
        let learned = self.profile.learned_of(&model_label(inventory));
        let shown = learned.map_or_else(String::new, |learned| {
            format!(
                " By {} passes of this model the CPU takes {:.2} times as long.",
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
            source,
            profile,
        }
    }
}

/// The day on which a file was written, in UTC.
fn file_date(path: &Path) -> Option<String> {
    let modified = path.metadata().ok()?.modified().ok()?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(date(since.as_secs() / 86_400))
}

/// The date of a day since 1970-01-01, in the Gregorian calendar.
fn date(day: u64) -> String {
    // years from 0000-03-01, so that a leap day is a year's last
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (day, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(day), text);
        }
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
