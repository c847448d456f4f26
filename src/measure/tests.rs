//! Measuring on the simulated device: it runs through, keeps within its limit and gives everything back.

use std::cell::RefCell;
use std::time::Duration;

use super::*;
use pipeshard_sim::{self as sim, SimSpec};

pub(crate) fn card(spec: &str) -> Device {
    sim::test_support::load_cpu();
    let registry = sim::registry(SimSpec::parse(spec).unwrap());
    // SAFETY: the registry has one device.
    let raw = unsafe { pipeshard_sys::ggml_backend_reg_dev_get(registry, 0) };
    Device::new(raw).unwrap()
}

/// Little of everything, so that it takes a moment.
pub(crate) fn little(device_memory: u64) -> Settings {
    Settings {
        threads: 1,
        device_memory,
        least_device_memory: 4 * MIB,
        host_weights: 8 * MIB,
        pinned: 2 * MIB,
        device_weights: MIB,
        point: Duration::from_micros(500),
        gpu_batches: vec![1, 8],
        cpu_batches: vec![1, 8],
        longest: 0.5,
    }
}

fn product(type_name: &str, columns: u64, rows: u64) -> Op {
    Op::Product {
        type_name: type_name.to_owned(),
        columns,
        rows,
    }
}

fn attention(head: u32, type_k: &str) -> Op {
    Op::Attention {
        head,
        heads: 4,
        kv_heads: 2,
        type_k: type_k.to_owned(),
        type_v: "f16".to_owned(),
        kv_tokens: 256,
    }
}

fn experts() -> Op {
    Op::Experts {
        type_name: "q4_0".to_owned(),
        columns: 256,
        rows: 64,
        experts: 16,
        used: 4,
    }
}

fn counters(device: Device) -> sim::SimCounters {
    sim::counters(device.raw())
}

#[test]
fn every_kind_is_measured_and_everything_is_given_back() {
    let device = card("vram=1G,poison=on");
    let ops = [
        product("f16", 256, 128),
        product("q6_K", 512, 64),
        experts(),
        attention(64, "f16"),
        attention(64, "q8_0"),
    ];
    let limit = 24 * MIB;
    let told = RefCell::new(Vec::new());
    let measured = measure(device, &ops, &little(limit), &|done, all| {
        told.borrow_mut().push((done, all));
    })
    .unwrap();
    assert!(sim::test_support::page_locked_is(device.raw(), 0));
    let after = counters(device);
    assert_eq!((after.current_bytes, after.pinned_bytes), (0, 0));
    assert_eq!(after.allocations, after.frees);
    assert!(
        after.peak_bytes > 0 && after.peak_bytes <= limit,
        "{}",
        after.peak_bytes
    );
    assert_eq!(told.borrow().first(), Some(&(0, 13)));
    assert_eq!(told.borrow().last(), Some(&(13, 13)));

    for op in &ops {
        for on in [Processor::Cpu, Processor::Gpu] {
            let curve = measured
                .curves
                .iter()
                .find(|c| c.on == on && c.op == *op)
                .unwrap();
            let rows: Vec<u32> = curve.points.iter().map(|p| p.rows).collect();
            assert_eq!(rows, [1, 8], "{op:?} on {on:?}");
            for point in &curve.points {
                assert!(point.seconds > 0.0 && point.seconds < 0.5 && point.spread >= 0.0);
            }
        }
    }
    let link = measured.link;
    for rate in [
        link.pinned,
        link.pageable,
        link.back,
        link.register,
        link.pinned_cpu_busy,
    ] {
        assert!(rate.median > 0.0, "{link:?}");
    }
    assert!(measured.memory.cpu.median > 0.0 && measured.memory.cpu_copy_busy.median > 0.0);
    let host = measured.host;
    assert!(host.embedding > 0.0 && host.embedding < 1e-6, "{host:?}");
    assert!(host.store_row + host.store_float > 0.0, "{host:?}");
    assert_ne!(
        host,
        pipeshard_plan::profile::HostCosts::ASSUMED,
        "measured, not assumed"
    );
    let paid = measured.overheads;
    for time in [paid.to_gpu, paid.launch, paid.cpu_op, paid.pass] {
        assert!(time.median > 0.0 && time.median < 0.1, "{paid:?}");
    }
    for line in [measured.cpu, measured.gpu] {
        assert!(
            line.bytes > 0.0 && line.flops > 0.0 && line.launch > 0.0,
            "{line:?}"
        );
    }
}

#[test]
fn what_an_encoder_consists_of_is_measured_on_both_processors() {
    let device = card("vram=1G");
    // heads as wide as an encoder's, and an operation without weights
    let mut attends = attention(80, "f16");
    if let Op::Attention { kv_heads, .. } = &mut attends {
        *kv_heads = 4;
    }
    let ops = [product("f16", 160, 320), attends, Op::Sum { columns: 160 }];
    let curves = measure_operations(device, &ops, &little(16 * MIB), &|_, _| {}).unwrap();
    let points: Vec<usize> = curves.iter().map(|curve| curve.points.len()).collect();
    assert_eq!(points, [2; 6]);
    let seconds = curves
        .iter()
        .flat_map(|curve| &curve.points)
        .map(|p| p.seconds);
    assert!(seconds.into_iter().all(|seconds| seconds > 0.0));
    assert_eq!(counters(device).current_bytes, 0);
}

#[test]
fn what_cannot_be_measured_has_a_curve_without_points() {
    let device = card("vram=1G");
    let settings = little(16 * MIB);
    let ops = [
        product("q8_1", 256, 128),
        product("f16", 1 << 20, 64),
        product("q4_0", 256, 64),
    ];
    let curves = measure_operations(device, &ops, &settings, &|_, _| {}).unwrap();
    let points: Vec<usize> = curves.iter().map(|curve| curve.points.len()).collect();
    assert_eq!(
        points,
        [0, 0, 0, 0, 2, 2],
        "no data of a type; too large; measured"
    );
    assert_eq!(counters(device).current_bytes, 0);
}

#[test]
fn without_page_locked_memory_the_rest_is_measured() {
    let device = card("vram=1G,pin=off");
    let measured = measure(
        device,
        &[product("f16", 256, 128)],
        &little(16 * MIB),
        &|_, _| {},
    );
    let measured = measured.unwrap();
    assert_eq!(measured.link.pinned.median, 0.0);
    assert!(measured.link.pageable.median > 0.0);
    assert!(measured.curves.iter().all(|curve| curve.points.len() == 2));
    assert_eq!(counters(device).current_bytes, 0);
}

#[test]
fn little_memory_is_an_error_with_a_sentence() {
    let device = card("vram=8M");
    let told = |settings: &Settings| {
        measure(device, &[], settings, &|_, _| {})
            .unwrap_err()
            .to_string()
    };
    assert!(told(&little(2 * MIB)).contains("measuring needs 4 MiB of device memory, and 2 MiB"));
    assert!(
        told(&little(30 * MIB)).contains("no 20 MiB of memory left"),
        "{}",
        told(&little(30 * MIB))
    );
    assert_eq!(counters(device).current_bytes, 0);
}

#[test]
fn a_device_that_fails_is_an_error_and_holds_nothing() {
    for lost in [4, 9, 15, 40, 90] {
        let device = card(&format!("vram=1G,lost={lost}"));
        let result = measure(device, &[experts()], &little(16 * MIB), &|_, _| {});
        assert!(result.is_err(), "lost after {lost}: {result:?}");
        sim::revive(device.raw());
        assert_eq!(counters(device).current_bytes, 0, "lost after {lost}");
    }
}

#[test]
fn weights_on_the_host_are_more_than_caches_hold() {
    let gib = 1u64 << 30;
    assert_eq!(host_weights(32 * MIB, 64 * gib), 512 * MIB);
    assert_eq!(host_weights(384 * MIB, 64 * gib), 1536 * MIB);
    assert_eq!(host_weights(32 * MIB, 600 * MIB), 300 * MIB);
    assert_eq!(host_weights(32 * MIB, 0), 16 * MIB);
}
