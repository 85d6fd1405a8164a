//! Costs of rollups in the consumer: a value added, small and large ones merged, bytes written and
//! read. `cargo bench -p shared --bench rollup`.
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shared::model::rollup::Rollup;

/// Response times in milliseconds around 20, the same in each run.
fn values(number: u32) -> Vec<f64> {
    let spread = |step: u32| f64::from(step.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
    (1..=number).map(|step| (20.0 * (2.0 * (spread(step) - 0.5)).exp() * 10.0).round() / 10.0).collect()
}

fn rollup(values: &[f64]) -> Rollup {
    let mut rollup = Rollup::default();
    for value in values {
        rollup.add(*value);
    }
    rollup
}

/// Makes a rollup with a value in each bin that a sketch can have.
fn widest() -> Rollup {
    let rising = (0..2_770).map(|bin| 1e-9 * (f64::from(bin) / 50.1 + 0.001).exp());
    rollup(&rising.flat_map(|value| [value, -value]).collect::<Vec<_>>())
}

fn add(c: &mut Criterion) {
    let values = values(1_000);
    let mut group = c.benchmark_group("add");
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("1000 values to one", |b| b.iter(|| rollup(black_box(&values))));
    group.bench_function("1 value to each of 1000", |b| {
        b.iter(|| values.iter().map(|value| rollup(&[*value])).collect::<Vec<_>>());
    });
    group.finish();
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    for (into, other) in [(1, 1), (1_000, 1), (1_000, 20), (100_000, 100_000)] {
        let (into, other) = (values(into), values(other));
        let name = format!("{} values into {}", other.len(), into.len());
        let (into, other) = (rollup(&into), rollup(&other));
        group.bench_function(name, |b| {
            b.iter_batched_ref(|| into.clone(), |into| into.merge(black_box(&other)), BatchSize::SmallInput);
        });
    }
    let (widest, other) = (widest(), rollup(&[1.0]));
    group.bench_function("1 value into the widest", |b| {
        b.iter_batched_ref(|| widest.clone(), |into| into.merge(black_box(&other)), BatchSize::SmallInput);
    });
    group.finish();
}

fn encode_and_decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("bytes");
    let small = [1, 20, 100_000].map(|number| (format!("{number} values"), rollup(&values(number))));
    for (name, rollup) in small.into_iter().chain([("the widest".into(), widest())]) {
        let bytes = rollup.encode();
        group.bench_function(format!("encode {name}"), |b| b.iter(|| black_box(&rollup).encode()));
        group.bench_function(format!("decode {name}"), |b| b.iter(|| Rollup::decode(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, add, merge, encode_and_decode);
criterion_main!(benches);
