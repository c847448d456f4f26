//! [`super::pass`] on a simulated GPU, with weights that are mapped from files.

use super::pass;
use crate::arena::unit::LoadedUnit;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::gate::NewShape;
use crate::hook::pass_error::PassError;
use crate::hook::planning::planner::Planner;
use crate::hook::residency::Residency;
use crate::hook::schedulers::Schedulers;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::test_card::card;
use crate::hook::weights::Weights;
use crate::lanes::device::Stream;
use crate::trace::Recorder;
use pipeshard_plan::plan::{Placement, Unit, UnitClass, UnitId};
use pipeshard_sys as ffi;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

const BYTES: usize = 4096;

/// A weight that is mapped from a file of its own, for the rest of the process.
fn mapped(file: &File) -> LoadedUnit {
    file.set_len(BYTES as u64).expect("a file of ours");
    // SAFETY: the mapping is new and stays; the context has room for the tensor, which is valid for ever.
    unsafe {
        let (kind, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        let null = std::ptr::null_mut();
        let base = libc::mmap(null, BYTES, kind, flags, file.as_raw_fd(), 0);
        assert_ne!(base, libc::MAP_FAILED);
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 4096,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        });
        let tensor = ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_F32, BYTES as i64 / 4);
        (*tensor).data = base;
        LoadedUnit::new(tensor, BYTES as u64)
    }
}

fn unit(class: UnitClass) -> Unit {
    Unit {
        name: "blk.0.weight".to_string(),
        layer: Some(0),
        class,
        bytes: BYTES as u64,
        device_bytes: BYTES as u64,
        expert_count: 0,
    }
}

#[test]
fn files_are_looked_at_once_a_pass_and_only_those_that_it_reads() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = |name: &str| {
        let path = folder.path().join(name);
        File::create_new(&path).expect("a file can be made");
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("it is there")
    };
    let [streamed, resident, looked_up, others] =
        ["streamed", "resident", "looked-up", "others"].map(file);
    let mut weights = Weights::default();
    let units = [&streamed, &resident, &looked_up].map(mapped);
    let classes = [
        UnitClass::FeedForward,
        UnitClass::FeedForward,
        UnitClass::HostOnly,
    ];
    weights.add_of_test(1, units.into(), classes.map(unit).into());
    weights.add_of_test(2, vec![mapped(&others)], vec![unit(UnitClass::FeedForward)]);

    let config = Arc::new(Config::default());
    let device = card("vram=8M");
    let accounts = Accounts::new(Arc::clone(&config));
    let mut tenant = Tenant {
        weights,
        residency: Residency::new(Arc::clone(&config), Recorder::default()),
        planner: Planner::new(config, None),
    };
    let (mut schedulers, mut telemetry) =
        (Schedulers::default(), Telemetry::new(&Config::default()));
    let lane = Stream::open(device).expect("it has streams");
    let (compute, sched) = (lane.raw(), 1);
    schedulers.add_of_test(sched, compute);
    let bound = [
        (UnitId(0), Placement::Streamed),
        (UnitId(1), Placement::Resident),
    ];
    let entry = schedulers.get_mut(sched).expect("it was added");
    entry.graph.bound = bound.into();
    entry.graph.files = tenant
        .weights
        .files_read(&[UnitId(0), UnitId(1)], &[UnitId(0)]);
    entry.graph.splits = vec![vec![0], vec![0]];

    let mut run = |tenant: &mut Tenant| -> Result<(), PassError> {
        let (schedulers, telemetry) = (&mut schedulers, &mut telemetry);
        let proof = NewShape::of_test().no_pass();
        pass::begin(tenant, schedulers, telemetry, sched, proof)?;
        for split in 0..2 {
            let which = (sched, split);
            // SAFETY: the backend is live, and the scheduler submits to it.
            unsafe {
                pass::split_before(&accounts, tenant, schedulers, telemetry, which, compute)?;
                pass::split_after(&accounts, tenant, schedulers, telemetry, which, compute)?;
            }
        }
        Ok(())
    };
    let before = tenant.weights.file_looks();
    assert!(run(&mut tenant).is_ok());
    assert_eq!(tenant.weights.file_looks() - before, 2);

    // what the pass does not read may go
    resident.set_len(0).expect("a file of ours");
    others.set_len(0).expect("a file of ours");
    assert!(run(&mut tenant).is_ok());
    for (file, other) in [(&streamed, &looked_up), (&looked_up, &streamed)] {
        file.set_len(0).expect("a file of ours");
        other.set_len(BYTES as u64).expect("a file of ours");
        assert!(matches!(run(&mut tenant), Err(PassError::FileShrunk(_))));
    }
}
