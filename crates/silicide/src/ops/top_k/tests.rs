use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, on_every_device, on_every_schedule, rounded, values_of};

/// The definition: indices by falling value, NaN first, stable.
fn reference(row: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (row[a as usize], row[b as usize]);
        b.is_nan().cmp(&a.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
    });
    order.truncate(k);
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(1025), Just(2047), Just(2048), Just(2049), Just(5000)],
        k in prop_oneof![Just(0usize), Just(1), Just(8), Just(64), Just(65), 0usize..200],
        dtype in 0usize..3,
        order in 0..3,
        coarse: bool,
        edges: bool,
        seed: u64,
    ) {
        let (dtype, k) = (DType::FLOATS[dtype], k.min(len));
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut x = rounded(dtype, &random.values(rows * len));
            if coarse {
                x.iter_mut().for_each(|x| *x = x.round());
            }
            // Rising rows raise the bar at every element.
            match order {
                0 => x.sort_by(f32::total_cmp),
                1 => x.sort_by(|a, b| b.total_cmp(a)),
                _ => {}
            }
            if edges {
                let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -0.0];
                (0..3 * rows).for_each(|_| x[random.below(rows * len)] = odd[random.below(odd.len())]);
            }
            let xt = random.tensor(device, dtype, &x, [rows, len]);
            let (values, indices) = top_k(stream, &xt, k).unwrap();
            assert_eq!(values.shape()[..], [rows, k]);
            let want: Vec<u32> = x.chunks(len).flat_map(|row| reference(row, k)).collect();
            assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want);
            let at = |(i, &index): (usize, &u32)| x[i / k * len + index as usize].to_bits();
            let values: Vec<u32> = values_of(stream, &values).iter().map(|v| v.to_bits()).collect();
            let want: Vec<u32> = want.iter().enumerate().map(at).collect();
            let nan = |bits: &u32| f32::from_bits(*bits).is_nan();
            assert!(values.iter().zip(&want).all(|(v, w)| v == w || nan(v) && nan(w)));
        });
    }
}

#[test]
fn sorts_a_whole_row() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = Random::new(5).values(700);
        let t = device.tensor(&x, [700]).unwrap();
        let (_, indices) = top_k(stream, &t, 700).unwrap();
        assert_eq!(indices.to_vec::<u32>(stream).unwrap(), reference(&x, 700));
    });
}

#[test]
fn any_schedule_finds_the_same() {
    let x: Vec<f32> = Random::new(1).values(2 * 2050).iter().map(|v| (v * 20.0).round()).collect();
    on_every_schedule(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [2, 2050]);
        let (_, indices) = top_k(stream, &xt, 33).unwrap();
        let want: Vec<u32> = x.chunks(2050).flat_map(|row| reference(row, 33)).collect();
        assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want);
    });
}

#[test]
fn takes_long_rows_in_parts() {
    let len = 248_320;
    let mut random = Random::new(3);
    let mut x: Vec<f32> = random.values(len).iter().map(|v| v.round()).collect();
    x.resize(2 * len, f32::NEG_INFINITY);
    // Of a row with less that is finite than is asked for, the rest are the first of infinities.
    (0..9).for_each(|_| x[len + random.below(len)] = random.value());
    x[len - 1] = f32::NAN;
    on_every_device(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [2, len]);
        for k in [1, 33] {
            let (_, indices) = top_k(stream, &xt, k).unwrap();
            let want: Vec<u32> = x.chunks(len).flat_map(|row| reference(row, k)).collect();
            assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want, "{k}");
        }
    });
}

#[test]
fn lists_of_a_row_are_joined_more_than_once() {
    // More parts than one threadgroup merges, the last of fewer elements than are asked for.
    let len = 256 * PART + 5;
    let x: Vec<f32> = (0..len).map(|i| (i % 1000) as f32).collect();
    on_every_device(|stream| {
        let xt = stream.device().tensor(&x, [len]).unwrap();
        let (_, indices) = top_k(stream, &xt, 17).unwrap();
        assert_eq!(indices.to_vec::<u32>(stream).unwrap(), (0..17).map(|i| 1000 * i + 999).collect::<Vec<u32>>());
    });
}

#[test]
fn agrees_with_torch() {
    let golden = Golden::read("argmax");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for name in ["random", "ties", "one", "coarse"] {
            let tensor = |part: &str| golden.tensor(device, &format!("{name}.{part}"));
            let want = tensor("top_indices");
            let (values, indices) = top_k(stream, &tensor("x"), want.dim(-1)).unwrap();
            assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want.to_vec::<u32>(stream).unwrap(), "{name}");
            let values = values.to_vec::<f32>(stream).unwrap();
            assert_eq!(values, tensor("top_values").to_vec::<f32>(stream).unwrap(), "{name}");
        }
    });
}

/// D-25: of equals the lowest index, indices of the row alone, and no more of them than it has.
#[test]
fn d_25_equals_and_rows_of_negative_infinity_have_the_lowest_indices() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for value in [1.0, f32::NEG_INFINITY] {
            for len in [33, 300] {
                let x = device.tensor(&vec![value; 2 * len], [2, len]).unwrap();
                for k in [5, 33] {
                    let (_, indices) = top_k(stream, &x, k).unwrap();
                    let want: Vec<u32> = (0..k as u32).chain(0..k as u32).collect();
                    assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want);
                }
                assert!(top_k(stream, &x, len + 1).is_err());
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    assert_eq!(top_k(stream, &x, 5).unwrap_err().to_string(), "top_k: k: got 5, wanted 4 or less for f32[2, 4]");
    let scalar = device.zeros(DType::F32, []).unwrap();
    assert!(top_k(stream, &scalar, 1).unwrap_err().to_string().contains("wanted rows"));
    let values = device.zeros(DType::F32, [2, 2]).unwrap();
    assert!(top_k_into(stream, &x, &values, &values).unwrap_err().to_string().contains("indices: got f32[2, 2]"));
}
