use super::*;
use crate::Device;
use crate::ops::{Unary, unary};
use crate::testing::{Golden, Random, assert_close, bytes_of, on_every_device, values_of};

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("fill");
    let cases = golden.cases();
    assert_eq!(cases.len(), 30);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let want = golden.tensor(device, &format!("{case}.out"));
            let number = |name: &str| p[name].as_f64().unwrap();
            let bound = |name: &str| p[name].as_str().unwrap().parse::<f32>().unwrap();
            let got = match case.split('_').next().unwrap() {
                "arange" => arange(stream, want.dtype(), number("start"), number("step"), number("count") as usize),
                "full" => full(stream, want.dtype(), *want.shape(), number("value")),
                _ => {
                    let clamp = Unary::Clamp { min: bound("min"), max: bound("max") };
                    unary(stream, clamp, &golden.tensor(device, &format!("{case}.x")))
                }
            };
            let got = got.unwrap();
            assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case}");
            if want.dtype().is_float() {
                let (got, want) = (values_of(stream, &got), values_of(stream, &want));
                let same = got.iter().zip(&want).all(|(g, w)| g == w || g.is_nan() && w.is_nan());
                assert!(same, "{case}: got {got:?}, wanted {want:?}");
            } else {
                assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{case}");
            }
        }
    });
}

#[test]
fn fills_views_of_every_type_and_leaves_the_gaps() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for dtype in DType::ALL {
            for len in [1, 31, 33, 65, 5000] {
                let whole = device.zeros(dtype, [3, len + 2]).unwrap();
                let view = whole.slice(1, 1..len + 1).unwrap();
                full_into(stream, 1.0, &view.permute(&[1, 0]).unwrap()).unwrap();
                let one = full(stream, dtype, [], 1.0).unwrap();
                let one = bytes_of(stream, &one);
                let got = bytes_of(stream, &whole);
                for (i, got) in got.chunks(dtype.size()).enumerate() {
                    let inside = (1..=len).contains(&(i % (len + 2)));
                    assert!(if inside { got == one } else { got.iter().all(|&b| b == 0) }, "{dtype} {len} at {i}");
                }
            }
        }
    });
}

#[test]
fn steps_follow_the_definition() {
    on_every_device(|stream| {
        let mut random = Random::new(3);
        for dtype in DType::FLOATS {
            for count in [0, 1, 33, 3000] {
                let (start, step) = (random.value(), random.value());
                let got = arange(stream, dtype, start.into(), step.into(), count).unwrap();
                let want: Vec<f64> = (0..count).map(|i| start as f64 + i as f64 * step as f64).collect();
                assert_close(dtype, &values_of(stream, &got), &want, 4.0);
            }
        }
        let got = arange(stream, DType::I64, -9007199254740993.0, 4294967297.0, 5000).unwrap();
        let want: Vec<i64> = (0..5000).map(|i| -9007199254740992 + i * 4294967297).collect();
        assert_eq!(got.to_vec::<i64>(stream).unwrap(), want);
        let got = arange(stream, DType::U8, 250.0, 3.0, 4).unwrap();
        assert_eq!(got.to_vec::<u8>(stream).unwrap(), [250, 253, 0, 3]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let mut error = |dtype, value| full(stream, dtype, [2], value).unwrap_err().to_string();
    assert_eq!(error(DType::U8, 256.0), "full: value: got 256, wanted a whole number that u8 holds");
    assert!(error(DType::I32, 0.5).contains("got 0.5"));
    assert!(error(DType::Bool, 2.0).contains("bool holds"));
    assert!(error(DType::I64, f64::NAN).contains("got NaN"));
    assert!(error(DType::I64, 2f64.powi(63)).contains("i64 holds"));
    assert!(arange(stream, DType::Bool, 0.0, 1.0, 2).unwrap_err().to_string().contains("got bool"));
    assert!(arange(stream, DType::I32, 0.0, 0.5, 2).unwrap_err().to_string().contains("step: got 0.5"));
}
