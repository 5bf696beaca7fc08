use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::ops::top_k;
use crate::testing::{Golden, Random, bytes_of, on_every_device, on_every_schedule, rounded, values_of};

/// The definition: a stable order with NaN the greatest.
fn reference(row: &[f32], order: Order) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..row.len() as u32).collect();
    indices.sort_by(|&a, &b| {
        let (a, b) = (row[a as usize], row[b as usize]);
        let rising = a.is_nan().cmp(&b.is_nan()).then(a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal));
        if order == Order::Ascending { rising } else { rising.reverse() }
    });
    indices
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(257), Just(2049), Just(5000)],
        dtype in 0usize..3,
        (coarse, edges, turned, falling) in any::<(bool, bool, bool, bool)>(),
        seed: u64,
    ) {
        let (dtype, order) = (DType::FLOATS[dtype], if falling { Order::Descending } else { Order::Ascending });
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut x = rounded(dtype, &random.values(rows * len));
            if coarse {
                x.iter_mut().for_each(|x| *x = x.round());
            }
            if edges && !x.is_empty() {
                let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -0.0];
                let n = x.len();
                (0..4 * rows).for_each(|_| x[random.below(n)] = odd[random.below(odd.len())]);
            }
            let xt = match turned {
                true => {
                    let columns: Vec<f32> = (0..rows * len).map(|i| x[i % rows * len + i / rows]).collect();
                    random.tensor(device, dtype, &columns, [len, rows]).permute(&[1, 0]).unwrap()
                }
                false => random.tensor(device, dtype, &x, [rows, len]),
            };
            let indices = argsort(stream, &xt, order).unwrap();
            let want: Vec<u32> = x.chunks(len.max(1)).flat_map(|row| reference(row, order)).collect();
            assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want);
            // To the bit: -0 stays what it is.
            let sorted = sort(stream, &xt, order).unwrap();
            let sorted = values_of(stream, &sorted);
            let want = want.iter().enumerate().map(|(i, &index)| x[i / len * len + index as usize]);
            assert!(sorted.iter().zip(want).all(|(s, w)| s.to_bits() == w.to_bits() || s.is_nan() && w.is_nan()));
        });
    }

    #[test]
    fn integers_of_any_bits(len in prop_oneof![Just(1usize), Just(33), Just(3000)], signed: bool, falling: bool, seed: u64) {
        let order = if falling { Order::Descending } else { Order::Ascending };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x: Vec<u32> = (0..len).map(|i| if i % 3 == 0 { 7 } else { random.next() as u32 }).collect();
            let dtype = if signed { DType::I32 } else { DType::U32 };
            let xt = device.tensor_from_bytes(bytemuck::cast_slice(&x), dtype, [len]).unwrap();
            let value = |i: u32| if signed { x[i as usize] as i32 as i64 } else { x[i as usize] as i64 };
            let mut want: Vec<u32> = (0..len as u32).collect();
            want.sort_by_key(|&i| if falling { -value(i) } else { value(i) });
            assert_eq!(argsort(stream, &xt, order).unwrap().to_vec::<u32>(stream).unwrap(), want);
            let sorted: Vec<u32> = want.iter().map(|&i| x[i as usize]).collect();
            let got = sort(stream, &xt, order).unwrap();
            assert_eq!(bytes_of(stream, &got), bytemuck::cast_slice::<u32, u8>(&sorted));
        });
    }
}

/// D-25: of equals the lowest index comes first in either order, and what fills blocks up never stands among the indices.
#[test]
fn d_25_equals_keep_their_order_and_the_last_of_all_keeps_its_place() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for value in [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for len in [1, 33, 257, 2500] {
                let x = device.tensor(&vec![value; 2 * len], [2, len]).unwrap();
                let want: Vec<u32> = (0..2 * len as u32).map(|i| i % len as u32).collect();
                for order in [Order::Ascending, Order::Descending] {
                    assert_eq!(argsort(stream, &x, order).unwrap().to_vec::<u32>(stream).unwrap(), want, "{value}");
                }
            }
        }
    });
}

/// At the ends of blocks and runs, and shared out over threads.
#[test]
fn rows_of_any_length() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let most = if device.kind() == DeviceKind::Cpu { 300_001 } else { 33_001 };
        for (i, len) in [2047, 2048, 2049, 4096, 4097, 8200, 16_384, most].into_iter().enumerate() {
            let mut random = Random::new(i as u64);
            let x: Vec<f32> = random.values(len).iter().map(|x| (x * 500.0).round()).collect();
            let xt = random.tensor(device, DType::F32, &x, [1, len]);
            let order = [Order::Ascending, Order::Descending][i % 2];
            let got = argsort(stream, &xt, order).unwrap().to_vec::<u32>(stream).unwrap();
            assert!(got == reference(&x, order), "{len}");
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    let x: Vec<f32> = Random::new(1).values(2 * 4100).iter().map(|x| (x * 20.0).round()).collect();
    on_every_schedule(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [2, 4100]);
        let got = argsort(stream, &xt, Order::Descending).unwrap().to_vec::<u32>(stream).unwrap();
        let want: Vec<u32> = x.chunks(4100).flat_map(|row| reference(row, Order::Descending)).collect();
        assert!(got == want);
    });
}

#[test]
fn agrees_with_mlx_and_torch() {
    let golden = Golden::read("sort");
    let cases = golden.cases();
    assert_eq!(cases.len(), 12);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let x = golden.tensor(device, &format!("{case}.x"));
            for (name, order) in [("rising", Order::Ascending), ("falling", Order::Descending)] {
                let want = golden.tensor(device, &format!("{case}.{name}")).to_vec::<u32>(stream).unwrap();
                assert_eq!(argsort(stream, &x, order).unwrap().to_vec::<u32>(stream).unwrap(), want, "{case} {name}");
            }
            if golden.has(&format!("{case}.sorted")) {
                let want = golden.tensor(device, &format!("{case}.sorted"));
                let got = sort(stream, &x, Order::Ascending).unwrap();
                assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{case}");
            }
        }
    });
}

/// The first of sorted rows are the greatest: past 64 a GPU sorts, and says so.
#[test]
fn the_greatest_of_many_are_the_first_sorted() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(8);
        let x: Vec<f32> = random.values(2 * 2500).iter().map(|x| (x * 50.0).round()).collect();
        let xt = random.tensor(device, DType::F32, &x, [2, 2500]);
        for k in [64, 65, 1000] {
            let ((values, indices), plan) = {
                let (plan, result) = stream.record(|s| top_k(s, &xt, k)).unwrap();
                (result, plan)
            };
            stream.replay(&plan).unwrap();
            let want: Vec<u32> =
                x.chunks(2500).flat_map(|row| reference(row, Order::Descending)[..k].to_vec()).collect();
            assert_eq!(indices.to_vec::<u32>(stream).unwrap(), want);
            let want: Vec<f32> = want.iter().enumerate().map(|(i, &at)| x[i / k * 2500 + at as usize]).collect();
            assert_eq!(values.to_vec::<f32>(stream).unwrap(), want);
            let sorts = plan.launches().iter().any(|l| l.chosen().why.contains("past 64"));
            assert_eq!(sorts, k > 64 && device.kind() != DeviceKind::Cpu);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::U8, [3]).unwrap();
    let error = argsort(stream, &x, Order::Ascending).unwrap_err().to_string();
    assert_eq!(error, "argsort: x: got u8[3], wanted rows of f32, f16, bf16, i32 or u32");
    let x = device.zeros(DType::F32, [3]).unwrap();
    assert!(argsort_into(stream, &x, Order::Ascending, &x).unwrap_err().to_string().contains("wanted u32[3]"));
    assert!(sort_into(stream, &x, Order::Ascending, &x).unwrap_err().to_string().contains("memory of its own"));
    let scalar = device.zeros(DType::F32, []).unwrap();
    assert!(sort(stream, &scalar, Order::Ascending).is_err());
}
