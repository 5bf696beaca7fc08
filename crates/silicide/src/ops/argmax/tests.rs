use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, on_every_device, on_every_schedule, rounded};

/// The definition: the first element that none is greater than, NaN being greatest.
fn reference(row: &[f32]) -> u32 {
    let nan = row.iter().position(|x| x.is_nan());
    let first = || (0..row.len()).find(|&i| row.iter().all(|&x| x <= row[i])).unwrap();
    nan.unwrap_or_else(first) as u32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..5,
        len in prop_oneof![Just(1), Just(31), Just(33), Just(65), Just(2047), Just(2048), Just(2049), Just(5000)],
        dtype in 0usize..3,
        coarse: bool,
        edges: bool,
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut x = rounded(dtype, &random.values(rows * len));
            if coarse {
                x.iter_mut().for_each(|x| *x = x.round());
            }
            if edges {
                let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -0.0];
                (0..rows).for_each(|_| x[random.below(rows * len)] = odd[random.below(odd.len())]);
            }
            let xt = random.tensor(device, dtype, &x, [rows, len]);
            let y = argmax(stream, &xt).unwrap();
            assert_eq!(y.to_vec::<u32>(stream).unwrap(), x.chunks(len).map(reference).collect::<Vec<_>>());
            if rows > 0 {
                let columns = argmax(stream, &xt.permute(&[1, 0]).unwrap()).unwrap().to_vec::<u32>(stream).unwrap();
                let column = |c: usize| (0..rows).map(|r| x[r * len + c]).collect::<Vec<_>>();
                assert_eq!(columns, (0..len).map(|c| reference(&column(c))).collect::<Vec<_>>());
            }
        });
    }
}

#[test]
fn any_schedule_finds_the_same() {
    let x: Vec<f32> = Random::new(1).values(2 * 4100).iter().map(|v| (v * 40.0).round()).collect();
    on_every_schedule(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [2, 4100]);
        let y = argmax(stream, &xt).unwrap().to_vec::<u32>(stream).unwrap();
        assert_eq!(y, x.chunks(4100).map(reference).collect::<Vec<_>>());
    });
}

#[test]
fn takes_long_rows_in_parts() {
    let len = 248_320;
    let mut x = vec![f32::NEG_INFINITY; 4 * len];
    // Equals in several parts, the least infinity alone, NaN in the last place, and one number.
    [2048, 4095, 200_000].iter().for_each(|&i| x[i] = 7.0);
    [3 * len - 1, 3 * len - 2].iter().for_each(|&i| x[i] = f32::NAN);
    x[4 * len - 1] = f32::MIN;
    on_every_device(|stream| {
        let xt = stream.device().tensor(&x, [4, len]).unwrap();
        let y = argmax(stream, &xt).unwrap().to_vec::<u32>(stream).unwrap();
        assert_eq!(y, [2048, 0, len as u32 - 2, len as u32 - 1]);
    });
}

#[test]
fn agrees_with_mlx_and_torch() {
    let golden = Golden::read("argmax");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for name in ["random", "ties", "one", "coarse"] {
            let y = argmax(stream, &golden.tensor(device, &format!("{name}.x"))).unwrap();
            let want = golden.tensor(device, &format!("{name}.argmax")).to_vec::<u32>(stream).unwrap();
            assert_eq!(y.to_vec::<u32>(stream).unwrap(), want, "{name}");
        }
    });
}

/// D-25: of equals the lowest index, of rows of -inf too.
#[test]
fn d_25_takes_rows_of_negative_infinity_and_equal_zeros() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let inf = f32::INFINITY;
        let x = device.tensor(&[-inf, -inf, -inf, -0.0, 0.0, -1.0], [2, 3]).unwrap();
        assert_eq!(argmax(stream, &x).unwrap().to_vec::<u32>(stream).unwrap(), [0, 0]);
        let flat = x.reshape([6]).unwrap();
        assert_eq!(argmax(stream, &flat).unwrap().to_vec::<u32>(stream).unwrap(), [3]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let empty = device.zeros(DType::F32, [2, 0]).unwrap();
    assert_eq!(
        argmax(stream, &empty).unwrap_err().to_string(),
        "argmax: x: got f32[2, 0], wanted a last axis of 1 or more"
    );
    let ids = device.zeros(DType::U32, [2, 4]).unwrap();
    assert!(argmax(stream, &ids).unwrap_err().to_string().contains("wanted rows of f32"));
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    assert!(argmax_into(stream, &x, &ids).unwrap_err().to_string().contains("out: got u32[2, 4], wanted u32[2]"));
}
