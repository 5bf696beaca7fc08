use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{
    Golden, Random, assert_close, bytes_of, on_every_device, on_every_schedule, rounded, tensor_of, values_of,
};

const ALL: [Cumsum; 4] = [
    Cumsum { exclusive: false, reverse: false },
    Cumsum { exclusive: false, reverse: true },
    Cumsum { exclusive: true, reverse: false },
    Cumsum { exclusive: true, reverse: true },
];

/// The definition, by any addition.
fn reference<T: Copy>(row: &[T], zero: T, add: impl Fn(T, T) -> T, options: Cumsum) -> Vec<T> {
    let mut sums = Vec::new();
    let mut sum = zero;
    let mut order: Vec<T> = row.to_vec();
    if options.reverse {
        order.reverse();
    }
    for x in order {
        let before = sum;
        sum = add(sum, x);
        sums.push(if options.exclusive { before } else { sum });
    }
    if options.reverse {
        sums.reverse();
    }
    sums
}

fn wanted(x: &[f32], len: usize, options: Cumsum) -> Vec<f64> {
    let wide: Vec<f64> = x.iter().map(|&x| x as f64).collect();
    wide.chunks(len.max(1)).flat_map(|row| reference(row, 0.0, |a, b| a + b, options)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(1025), Just(5000)],
        dtype in 0usize..3,
        options in 0usize..4,
        (in_place, turned) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let (dtype, options) = (DType::FLOATS[dtype], ALL[options]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * len));
            let xt = match turned {
                // Rows whose elements are apart.
                true => {
                    let columns: Vec<f32> = (0..rows * len).map(|i| x[i % rows * len + i / rows]).collect();
                    random.tensor(device, dtype, &columns, [len, rows]).permute(&[1, 0]).unwrap()
                }
                false => random.tensor(device, dtype, &x, [rows, len]),
            };
            let out = if in_place { xt.clone() } else { stream.empty(dtype, [rows, len]).unwrap() };
            cumsum_into(stream, &xt, options, &out).unwrap();
            assert_close(dtype, &values_of(stream, &out), &wanted(&x, len, options), 0.1 * len as f64);
        });
    }

    #[test]
    fn integers_wrap(
        len in prop_oneof![Just(1usize), Just(33), Just(1025), Just(20_000)],
        options in 0usize..4,
        signed: bool,
        seed: u64,
    ) {
        let options = ALL[options];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x: Vec<u32> = (0..2 * len).map(|_| random.next() as u32).collect();
            let dtype = if signed { DType::I32 } else { DType::U32 };
            let xt = device.tensor_from_bytes(bytemuck::cast_slice(&x), dtype, [2, len]).unwrap();
            let y = cumsum(stream, &xt, options).unwrap();
            let want: Vec<u32> = x.chunks(len).flat_map(|row| reference(row, 0, u32::wrapping_add, options)).collect();
            assert_eq!(bytes_of(stream, &y), bytemuck::cast_slice::<u32, u8>(&want));
        });
    }
}

/// Past the chunks of a threadgroup and of a thread, and past the length that is summed in one launch.
#[test]
fn rows_of_any_length() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let on_cpu = device.kind() == DeviceKind::Cpu;
        let most = if on_cpu { 1_200_007 } else { 150_001 };
        for (i, len) in [8191, 8192, 8193, 65_537, most].into_iter().enumerate() {
            let options = ALL[i % 4];
            let mut random = Random::new(i as u64);
            // Whole numbers, whose sums are exact in any order.
            let x: Vec<f32> = random.values(2 * len).iter().map(|x| x.round()).collect();
            let xt = random.tensor(device, DType::F32, &x, [2, len]);
            let want: Vec<f32> = wanted(&x, len, options).iter().map(|&w| w as f32).collect();
            assert!(cumsum(stream, &xt, options).unwrap().to_vec::<f32>(stream).unwrap() == want, "{len}");
            cumsum_into(stream, &xt, options, &xt).unwrap();
            assert!(xt.to_vec::<f32>(stream).unwrap() == want, "{len} in place");
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    let x: Vec<f32> = Random::new(1).values(2 * 9001).iter().map(|x| x.round()).collect();
    on_every_schedule(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [2, 9001]);
        let y = cumsum(stream, &xt, Cumsum { exclusive: true, reverse: true }).unwrap();
        let want: Vec<f32> = wanted(&x, 9001, ALL[3]).iter().map(|&w| w as f32).collect();
        assert!(y.to_vec::<f32>(stream).unwrap() == want);
    });
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("cumsum");
    let cases = golden.cases();
    assert_eq!(cases.len(), 32);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let flag = |name: &str| p[name].as_bool().unwrap();
            let options = Cumsum { exclusive: flag("exclusive"), reverse: flag("reverse") };
            let x = golden.tensor(device, &format!("shared.{}", p["x"].as_str().unwrap()));
            let y = cumsum(stream, &x, options).unwrap();
            if !x.dtype().is_float() {
                let want = golden.tensor(device, &format!("{case}.out"));
                assert_eq!(bytes_of(stream, &y), bytes_of(stream, &want), "{case}");
                continue;
            }
            let every = p["every"].as_u64().unwrap() as usize;
            let size = values_of(stream, &x).iter().filter(|x| x.is_finite()).map(|x| x.abs() as f64).sum::<f64>();
            let y: Vec<f32> =
                values_of(stream, &y).chunks(x.dim(-1)).flat_map(|row| row.iter().step_by(every).copied()).collect();
            for name in ["exact", "out"].into_iter().filter(|name| golden.has(&format!("{case}.{name}"))) {
                let want: Vec<f64> = golden.values(&format!("{case}.{name}")).iter().map(|&w| w as f64).collect();
                assert_close(x.dtype(), &y, &want, 0.1 * size / x.elements().div_ceil(x.dim(-1)) as f64);
            }
        }
    });
}

/// What follows a NaN or an infinity feels it, what comes before does not; where it lies in another chunk too.
#[test]
fn nan_and_infinities_reach_what_follows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut x = vec![1.0f32; 20_000];
        (x[10], x[9_000], x[18_000]) = (f32::INFINITY, 2.0, f32::NEG_INFINITY);
        let xt = tensor_of(device, DType::F32, &x, [x.len()]);
        for options in ALL {
            let got = cumsum(stream, &xt, options).unwrap().to_vec::<f32>(stream).unwrap();
            let want = wanted(&x, x.len(), options);
            let same = got.iter().zip(&want).all(|(&g, &w)| g as f64 == w || g.is_nan() && w.is_nan());
            assert!(same, "{options:?}");
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::I64, [3]).unwrap();
    let error = cumsum(stream, &x, Cumsum::default()).unwrap_err().to_string();
    assert_eq!(error, "cumsum: x: got i64[3], wanted rows of f32, f16, bf16, i32 or u32");
    let x = device.zeros(DType::F32, [3]).unwrap();
    let out = device.zeros(DType::F16, [3]).unwrap();
    assert!(cumsum_into(stream, &x, Cumsum::default(), &out).unwrap_err().to_string().contains("out: got f16[3]"));
}
