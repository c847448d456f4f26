//! Encoders and language models take turns with the device's memory: the same bits whatever the budget, and nobody holds what the
//! other needs.

use super::*;

/// A run within a budget, on a device that has no more.
fn within_budget(name: &str, pictures: &[&Path], budget: u64) -> Encoded {
    let flags = within(budget);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Encoded::run(name, pictures, &flags)
}

fn stock(name: &str, pictures: &[&Path]) -> Encoded {
    Encoded::run(name, pictures, &["--no-repack"]).worked()
}

/// The smallest budget that works for these pictures, as refusals name it.
pub(super) fn smallest(pictures: &[&Path]) -> u64 {
    let mut budget = 2 * MIB;
    for _ in 0..12 {
        let tried = within_budget("smallest-turns", pictures, budget);
        if tried.finished.succeeded() {
            return budget;
        }
        assert!(tried.finished.failed_cleanly(), "{}", tried.finished.told());
        let said = tried.finished.said();
        budget = named(&said).unwrap_or_else(|| panic!("no budget is named: {said}"));
    }
    panic!("no budget works");
}

impl Encoded {
    fn encoder_bytes(&self) -> u64 {
        let each = self.vision().encoders.iter();
        each.map(|encoder| encoder.weights).sum()
    }

    /// Bytes that went to the device for encodes.
    fn copied(&self) -> u64 {
        self.vision().bytes_streamed + self.vision().bytes_uploaded
    }
}

#[test]
fn a_streamed_encoder_gives_the_same_bits_at_every_budget() {
    let picture = picture(448, 336);
    let pictures = [&picture as &Path];
    let stock = stock("turns-stock", &pictures);
    let least = smallest(&pictures);
    let roomy = within_budget("turns-roomy", &pictures, 300 * MIB).worked();
    let needed = roomy.report().peak.total;
    // neither the encoder's weights nor the language model's fit beside the rest
    assert!(least + 6 * MIB < needed, "{least} {needed}");
    let budgets = [
        least,
        (2 * least + needed) / 3,
        (least + 2 * needed) / 3,
        needed,
    ];
    for budget in budgets {
        let ours = within_budget("turns-ours", &pictures, budget).worked();
        assert!(stock.embeddings == ours.embeddings, "{budget}");
        assert_eq!(stock.finished.stdout, ours.finished.stdout, "{budget}");
        ours.assert_healthy(budget);
        let vision = ours.vision();
        assert!(vision.encoders.iter().all(|encoder| encoder.in_turn));
        assert_eq!(vision.encodes, 1);
        // each weight once
        assert_eq!(ours.copied(), ours.encoder_bytes(), "{budget}");
        assert!(vision.bytes_streamed > 9 * ours.encoder_bytes() / 10);
        assert_eq!(vision.staged_bytes, 0);
    }
}

#[test]
fn the_peak_is_that_of_the_larger_phase() {
    let picture = picture(448, 336);
    let pictures = [&picture as &Path, &picture];
    let stock = stock("phases-stock", &pictures);
    let budget = smallest(&pictures) + MIB;
    let ours = within_budget("phases-ours", &pictures, budget).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(stock.finished.stdout, ours.finished.stdout);
    ours.assert_healthy(budget);
    let (vision, peak) = (ours.vision(), &ours.report().peak);
    // one after the other, each holds more than is left beside the other
    let language = peak.resident + peak.slots;
    assert!(peak.vision + language + peak.kv + peak.scratch > budget);
    assert_eq!(vision.encodes, 2);
    // the first one may find the device empty
    assert!((2..=4).contains(&vision.phase_changes), "{vision:?}");
    // for each of the two, but for what the ring still has
    let (copied, whole) = (ours.copied(), ours.encoder_bytes());
    assert!(copied > whole && copied <= 2 * whole, "{vision:?}");
    assert!(vision.bytes_evicted >= vision.bytes_restored);
}

/// A language model of 46 MiB, which an encoder has to take memory from.
const LARGE: &[&str] = &["--layers=24", "--type=f16"];

/// The same where copies take longer than kernels: what is not waited for is not there.
fn beside_large_slowly(name: &str, pictures: &[&Path], budget: u64) -> Encoded {
    let sim = format!("vram={budget},delay=3000,seed=7");
    let vram = budget.to_string();
    let mut flags = vec!["--pipeshard-sim", &sim, "--pipeshard-vram", &vram];
    flags.extend(OF_LARGE);
    beside(&flags, name, pictures)
}

/// A run of that model in residents of a MiB each, with the usual decisions: weights are resident as far as there is room.
fn beside_large(name: &str, pictures: &[&Path], budget: u64) -> Encoded {
    let flags = within(budget);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(OF_LARGE);
    beside(&flags, name, pictures)
}

fn beside(flags: &[&str], name: &str, pictures: &[&Path]) -> Encoded {
    let env = [
        ("PIPESHARD_DEBUG_CANDIDATE", "usual"),
        ("PIPESHARD_DEBUG_CHUNK_BYTES", "1M"),
    ];
    let language = synthetic("tiny-qwen2vl", LARGE);
    Encoded::run_with(&language, name, pictures, flags, &env)
}

/// A context of which a cache does not take more than weights do, and pictures of 192 tokens.
const OF_LARGE: &[&str] = &["-c", "768", "--image-max-tokens", "192"];

#[test]
fn residents_make_way_for_an_encode_and_come_back() {
    let (first, second) = (picture(448, 336), picture(336, 448));
    let pictures = [&first as &Path, &second];
    let language = synthetic("tiny-qwen2vl", LARGE);
    let flags = [&["--no-repack"], OF_LARGE].concat();
    let stock = Encoded::run_with(&language, "evicted-stock", &pictures, &flags, &[]).worked();
    let roomy = beside_large("evicted-roomy", &pictures, 300 * MIB).worked();
    let all = &roomy.report().peak;
    assert_eq!(roomy.vision().bytes_evicted, 0);
    assert!(all.resident > 40 * MIB && all.slots == 0);
    // with all weights of the language model and a tenth of what the encoder takes; and where some of them are streamed
    let budgets = [
        all.total - 9 * all.vision / 10,
        all.total - all.resident / 2,
        all.total - 3 * all.resident / 4,
    ];
    let mut streams = 0;
    for budget in budgets {
        let ours = beside_large("evicted-ours", &pictures, budget).worked();
        assert!(stock.embeddings == ours.embeddings, "{budget}");
        assert_eq!(stock.finished.stdout, ours.finished.stdout, "{budget}");
        ours.assert_healthy(budget);
        let (vision, report) = (ours.vision(), ours.report());
        // from the text before the first picture to the encoder and back, and the same for the second
        assert_eq!((vision.encodes, vision.phase_changes), (2, 4), "{budget}");
        // more than the encoder takes was resident, and no more of it went than was needed
        let holds = report.peak.resident + report.peak.slots;
        assert!(holds > report.peak.vision, "{budget}: {:?}", report.peak);
        let evicted = vision.bytes_evicted;
        assert!(evicted < 2 * report.peak.vision, "{budget}: {vision:?}");
        assert_eq!(vision.bytes_restored, evicted, "{budget}");
        assert_eq!(report.held.resident, report.peak.resident, "{budget}");
        streams += u64::from(report.peak.slots > 0);
        if report.peak.slots == 0 {
            assert!(evicted >= 4 * MIB, "{budget}: {vision:?}");
            // residents that come back are there before the prompt reads them
            let slowly = beside_large_slowly("evicted-slowly", &pictures, budget).worked();
            assert_eq!(stock.finished.stdout, slowly.finished.stdout, "{budget}");
            assert_eq!(slowly.vision().bytes_restored, evicted, "{budget}");
        }
    }
    assert!(streams < budgets.len() as u64 && streams > 0);
}

#[test]
fn an_encoder_that_has_room_stays() {
    let picture = picture(448, 336);
    let pictures = [&picture as &Path; 3];
    let stock = stock("room-stock", &pictures);
    let ours = within_budget("room-ours", &pictures, 300 * MIB).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(stock.finished.stdout, ours.finished.stdout);
    ours.assert_healthy(300 * MIB);
    let vision = ours.vision();
    assert_eq!((vision.encodes, vision.phase_changes), (3, 0));
    assert_eq!(ours.copied(), ours.encoder_bytes());
    assert_eq!(ours.report().recarvings, 0);
}

#[test]
fn nothing_grows_from_image_to_image() {
    let (large, small) = (picture(448, 336), picture(112, 112));
    let two = [&large as &Path, &small];
    let many = [&large as &Path, &small, &large, &small, &large, &small];
    let budget = smallest(&two) + 2 * MIB;
    let peaks = [&two[..], &many].map(|pictures| {
        let ours = within_budget("grows", pictures, budget).worked();
        ours.assert_healthy(budget);
        assert_eq!(ours.vision().encodes, pictures.len() as u64);
        // for a size, not for each image
        assert!(
            (1..=3).contains(&ours.vision().split_twice),
            "{:?}",
            ours.vision()
        );
        let report = ours.report();
        (report.peak.vision, report.peak.scratch, report.peak.kv)
    });
    assert_eq!(peaks[0], peaks[1]);
}

#[test]
fn weights_that_are_not_page_locked_go_through_the_staging_ring() {
    let picture = picture(224, 224);
    let pictures = [&picture as &Path];
    let stock = stock("staged-stock", &pictures);
    let sim = [
        "--pipeshard-sim",
        "vram=300M,pin=off",
        "--pipeshard-vram",
        "300M",
    ];
    let ours = Encoded::run("staged-ours", &pictures, &sim).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(ours.vision().staged_bytes, ours.copied());
}

#[test]
fn delays_between_the_lanes_change_no_bit() {
    let picture = picture(224, 224);
    let pictures = [&picture as &Path, &picture];
    let stock = stock("delays-stock", &pictures);
    let budget = smallest(&pictures);
    // copies take longer than kernels, then the other way round
    for delay in [3000, 200] {
        let sim = format!("vram={budget},delay={delay},seed={delay}");
        let vram = budget.to_string();
        let flags = ["--pipeshard-sim", &sim, "--pipeshard-vram", &vram];
        let ours = Encoded::run("delays-ours", &pictures, &flags).worked();
        assert!(stock.embeddings == ours.embeddings, "{delay}");
        assert_eq!(stock.finished.stdout, ours.finished.stdout, "{delay}");
        ours.assert_healthy(budget);
    }
}
