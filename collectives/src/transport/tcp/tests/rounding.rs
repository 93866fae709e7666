//! Values that round: the same everywhere and every time, and as near as promised.

use super::*;

/// Bytes of a random sort that round: of both signs, over some magnitudes.
fn noise(seed: u64, rank: usize, index: usize) -> f32 {
    let mut state = seed ^ ((rank as u64) << 40) ^ index as u64;
    for _ in 0..3 {
        state = (state ^ (state >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * (1 << (state % 20)) as f32
}

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| format!("{value:?}").parse::<f64>().unwrap().to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn results_are_equal_everywhere_and_every_time(
        world in 2usize..9,
        algorithm in 0usize..4,
        count in 0usize..4000,
        seed in any::<u64>(),
    ) {
        let options = always(ALGORITHMS[algorithm]);
        let once = || run(world, &options, |rank| {
            let mut data: Vec<f32> = (0..count).map(|index| noise(seed, rank.rank, index)).collect();
            all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
            bits(&data)
        });
        let results = once();
        prop_assert!(results.iter().all(|result| *result == results[0]));
        prop_assert_eq!(&once()[0], &results[0]);
    }

    /// The bound that [`Compression::Bf16`] states.
    #[test]
    fn compressed_sums_are_equal_everywhere_and_as_near_as_promised(
        world in 2usize..9,
        algorithm in 1usize..4,
        count in 0usize..4000,
        mean in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let algorithm = ALGORITHMS[algorithm];
        let options = TcpOptions { compression: Some(Compression::Bf16), ..always(algorithm) };
        let op = if mean { ReduceOp::Mean } else { ReduceOp::Sum };
        let results = run(world, &options, |rank| {
            let mut data: Vec<f32> = (0..count).map(|index| noise(seed, rank.rank, index)).collect();
            all_reduce(rank, &mut data, op).unwrap();
            data
        });
        prop_assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
        let roundings = match algorithm {
            Algorithm::Ring => world as u32,
            Algorithm::Tree => world.ilog2() + 1,
            _ => world.next_power_of_two().ilog2() + 2,
        };
        let divisor = if mean { world as f64 } else { 1.0 };
        for (index, result) in results[0].iter().enumerate() {
            let inputs = (0..world).map(|rank| f64::from(noise(seed, rank, index)));
            let magnitude: f64 = inputs.clone().map(f64::abs).sum();
            let exact = inputs.sum::<f64>() / divisor;
            let bound = ((1.0 + 1.0 / 256.0f64).powi(roundings as i32) - 1.0) * magnitude / divisor;
            prop_assert!((f64::from(*result) - exact).abs() <= bound + magnitude * 1e-6 + 1e-30);
            prop_assert_eq!(bf16::from_f32(*result).to_f32(), *result);
        }
    }
}
