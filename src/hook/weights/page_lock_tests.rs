//! Page-locking for a plan, with as much room as a test says.

use super::*;
use crate::hook::test_card::card;
use crate::lanes::host_memory::{pages_of, Limit, NotLocked};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

const PAGE: usize = 4096;
/// Of a weight: not a multiple of a page.
const BYTES: usize = 3 * PAGE / 2;

/// Simulated cards count what is locked for all of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Weights that are adjacent, in a file that is mapped or in memory, for the rest of the process.
fn weights(count: usize, file: Option<&File>) -> Weights {
    let bytes = (count * BYTES).next_multiple_of(PAGE);
    let (fd, flags) = match file {
        Some(file) => {
            file.set_len(bytes as u64).expect("a file of ours");
            (file.as_raw_fd(), libc::MAP_SHARED)
        }
        None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
    };
    // SAFETY: the mapping is new and stays; the context has room for the tensors, which are valid for ever.
    let units = unsafe {
        let null = std::ptr::null_mut();
        let base = libc::mmap(null, bytes, libc::PROT_READ, flags, fd, 0);
        assert_ne!(base, libc::MAP_FAILED);
        let buffer = ffi::ggml_backend_cpu_buffer_from_ptr(base, bytes);
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: count * 1024,
            mem_buffer: null,
            no_alloc: true,
        });
        let weight = |index: usize| {
            let tensor = ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_F32, BYTES as i64 / 4);
            (*tensor).buffer = buffer;
            (*tensor).data = base.byte_add(index * BYTES);
            LoadedUnit::new(tensor, BYTES as u64)
        };
        (0..count).map(weight).collect()
    };
    let described = Unit {
        name: "blk.0.weight".to_string(),
        layer: Some(0),
        class: UnitClass::FeedForward,
        bytes: BYTES as u64,
        device_bytes: BYTES as u64,
        expert_count: 0,
    };
    let mut weights = Weights::default();
    weights.add_of_test(1, units, vec![described; count]);
    weights
}

/// Locks for a plan under which `read` are read from host memory, and `uploaded` are about to become resident.
fn lock(
    weights: &mut Weights,
    device: Device,
    read: &[usize],
    uploaded: &[usize],
) -> Option<String> {
    let which = |meant: &[usize]| -> Vec<bool> {
        (0..weights.units.len())
            .map(|at| meant.contains(&at))
            .collect()
    };
    let (read, uploaded) = (which(read), which(uploaded));
    // SAFETY: nothing is copied.
    unsafe { weights.lock_for(device, &read, &uploaded) }
}

fn unlock(weights: &mut Weights, device: Device, read: &[usize]) {
    let read: Vec<bool> = (0..weights.units.len())
        .map(|at| read.contains(&at))
        .collect();
    // SAFETY: nothing is copied.
    unsafe { weights.unlock_others(device, &read) };
}

fn pinned(weights: &Weights) -> Vec<usize> {
    let units = weights.units.iter().enumerate();
    let pinned = units.filter(|(_, unit)| unit.pinned());
    pinned.map(|(at, _)| at).collect()
}

#[test]
fn what_is_read_is_locked_and_what_is_uploaded_only_for_that() {
    let _alone = ALONE.lock();
    let device = card("vram=8M");
    let mut weights = weights(8, None);
    assert_eq!(lock(&mut weights, device, &[1, 2, 6], &[3, 4]), None);
    assert_eq!(pinned(&weights), [1, 2, 3, 4, 6]);
    // neighbours lie in one range, so that nothing is copied in parts
    assert_eq!(weights.units[2].seams(), &[] as &[usize]);
    unlock(&mut weights, device, &[1, 2, 6]);
    assert_eq!(pinned(&weights), [1, 2, 6]);
    // units 1 and 2 take pages 1 to 4, unit 6 pages 9 and 10
    assert_eq!(weights.page_locked_bytes(), 6 * PAGE as u64);

    // less is resident: more is locked, in addition to what is
    assert_eq!(lock(&mut weights, device, &[1, 2, 3, 6], &[]), None);
    assert_eq!(pinned(&weights), [1, 2, 3, 6]);
    assert_eq!(weights.units[3].seams(), &[PAGE / 2]);
}

/// Eight weights that are mapped from a disk; four pages may be locked. `None` without a disk.
fn limited() -> Option<Weights> {
    let here = std::env::current_dir().expect("there is a folder");
    let file = tempfile::NamedTempFile::new_in(here.join("target")).expect("a file can be made");
    let mut weights = weights(8, Some(file.as_file()));
    weights.locks.locking.lockable = || Some(4 * PAGE as u64);
    let files = &weights.models[0].files;
    let on_disk = files.reclaimable(weights.units[0].host(), 1);
    on_disk.then_some(weights)
}

#[test]
fn what_became_resident_gives_way_before_a_lock_is_refused() {
    let _alone = ALONE.lock();
    let device = card("vram=8M");
    let Some(mut weights) = limited() else { return };
    assert_eq!(lock(&mut weights, device, &[0, 1], &[]), None);
    assert_eq!(weights.page_locked_bytes(), 3 * PAGE as u64);
    assert_eq!(lock(&mut weights, device, &[1, 6], &[]), None);
    assert_eq!(pinned(&weights), [1, 6]);
    // what is about to be uploaded takes nothing from what is read
    assert_eq!(lock(&mut weights, device, &[1, 6], &[2, 3, 4]), None);
    assert_eq!(pinned(&weights), [1, 6]);
}

#[test]
fn locking_stops_before_memory_runs_out() {
    let _alone = ALONE.lock();
    let device = card("vram=8M");
    let Some(mut weights) = limited() else { return };
    assert_eq!(lock(&mut weights, device, &[0, 1], &[]), None);
    let why = lock(&mut weights, device, &[0, 1, 6], &[]).unwrap_or_default();
    assert!(why.contains("page-locking stopped at"), "{why}");
    assert!(why.contains("give it more"), "{why}");
    assert_eq!(pinned(&weights), [0, 1]);
    // and when there is room again nothing is said any more
    assert_eq!(lock(&mut weights, device, &[6], &[]), None);
    // another model of the process has taken all there is
    let elsewhere = Limit {
        lockable: &|| Some(4 * PAGE as u64),
        elsewhere: 4 * PAGE as u64,
    };
    let mut second = LockedMemory::default();
    let pages = pages_of(weights.units[3].host() as usize, BYTES);
    // SAFETY: the memory is mapped for the rest of the process.
    let no_room = unsafe { second.lock_pages(device, pages, Some(elsewhere)) };
    assert_eq!(no_room, Err(NotLocked::NoRoom));
}
