use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The weights of `n` elements in element `i` of `m`, in f64.
fn weights(n: usize, m: usize, i: usize, options: Resize) -> Vec<f64> {
    let (count, cubic) = (n as f64, options.filter == ResizeFilter::Bicubic);
    let stretch = if options.antialias { (count / m as f64).max(1.0) } else { 1.0 };
    let at = match options.align_corners {
        true => i as f64 * (count - 1.0) / (m as f64 - 1.0).max(1.0),
        false => (i as f64 + 0.5) * count / m as f64 - 0.5,
    };
    let a = if options.antialias { -0.5 } else { -0.75 };
    let filter = |d: f64| match (cubic, d) {
        (false, d) => (1.0 - d).max(0.0),
        (_, d) if d <= 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0,
        (_, d) if d < 2.0 => a * (d.powi(3) - 5.0 * d.powi(2) + 8.0 * d - 4.0),
        _ => 0.0,
    };
    let mut weights = vec![0.0; n];
    for tap in (at - 2.0 * stretch).floor() as i64..=(at + 2.0 * stretch).ceil() as i64 {
        let inside = tap.clamp(0, n as i64 - 1);
        if inside == tap || !options.antialias {
            weights[inside as usize] += filter((tap as f64 - at).abs() / stretch);
        }
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn reference(x: &[f32], [h, w, dim]: [usize; 3], [height, width]: [usize; 2], options: Resize) -> Vec<f64> {
    let mut out = vec![0.0; height * width * dim];
    let columns: Vec<_> = (0..width).map(|k| weights(w, width, k, options)).collect();
    for row in 0..height {
        for (y, wy) in weights(h, height, row, options).into_iter().enumerate() {
            for (column, weights) in columns.iter().enumerate() {
                for (k, wx) in weights.iter().enumerate() {
                    for d in 0..dim {
                        out[(row * width + column) * dim + d] += wy * wx * x[(y * w + k) * dim + d] as f64;
                    }
                }
            }
        }
    }
    out
}

const KINDS: [(bool, bool); 3] = [(false, false), (true, false), (false, true)];
const FILTERS: [ResizeFilter; 2] = [ResizeFilter::Bilinear, ResizeFilter::Bicubic];

fn all_options() -> impl Iterator<Item = Resize> {
    FILTERS
        .into_iter()
        .flat_map(|filter| KINDS.map(|(align_corners, antialias)| Resize { filter, align_corners, antialias }))
}

fn side() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..12, Just(31), Just(33)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        shape in (side(), side(), prop_oneof![Just(1usize), Just(3), Just(31), Just(64), Just(65)]),
        size in (side(), side()),
        options in prop::sample::select(all_options().collect::<Vec<_>>()),
        dtype in 0usize..3,
        channels_first: bool,
        seed: u64,
    ) {
        let (dtype, (h, w, dim)) = (DType::FLOATS[dtype], shape);
        let mut random = Random::new(seed);
        let x = rounded(dtype, &random.values(h * w * dim));
        let want = reference(&x, [h, w, dim], size.into(), options);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let xt = match channels_first {
                false => random.tensor(device, dtype, &x, [h, w, dim]),
                true => {
                    let planes: Vec<f32> = (0..dim).flat_map(|d| (0..h * w).map(move |i| (d, i)))
                        .map(|(d, i)| x[i * dim + d]).collect();
                    random.tensor(device, dtype, &planes, [dim, h, w]).permute(&[1, 2, 0]).unwrap()
                }
            };
            let out = resize(stream, &xt, size.into(), options).unwrap();
            // Bicubic weights may be negative: terms are up to 2 by 1.3 squared.
            assert_close(dtype, &values_of(stream, &out), &want, 4.0);
            // Into a view with gaps.
            let wide = device.zeros(dtype, [size.0, size.1, dim + 3]).unwrap();
            let view = wide.slice(2, 2..2 + dim).unwrap();
            resize_into(stream, &xt, options, &view).unwrap();
            let rest = values_of(stream, &wide);
            let expected = values_of(stream, &out);
            for (pixel, out) in rest.chunks(dim + 3).zip(expected.chunks(dim)) {
                assert_eq!(&pixel[2..2 + dim], out);
                assert_eq!([pixel[0], pixel[1], pixel[2 + dim]], [0.0; 3]);
            }
        });
    }
}

/// torch's `interpolate`.
#[test]
fn gives_what_torch_gives() {
    let golden = Golden::read("resize");
    let exact_of = |case: &str| golden.exact_values(&format!("{case}.exact"));
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in golden.cases() {
            if case == "qwen3_vl" {
                continue;
            }
            let filter = if p["filter"] == "bicubic" { ResizeFilter::Bicubic } else { ResizeFilter::Bilinear };
            let flag = |name: &str| p[name].as_bool().unwrap();
            let options = Resize { filter, align_corners: flag("align_corners"), antialias: flag("antialias") };
            let x = golden.tensor(device, &format!("shared.{}", p["x"].as_str().unwrap()));
            let theirs = golden.tensor(device, &format!("{case}.out"));
            let out = resize(stream, &x, [theirs.dim(0), theirs.dim(1)], options).unwrap();
            let (ours, theirs) = (values_of(stream, &out), values_of(stream, &theirs));
            let exact = exact_of(&case);
            let error = |got: &[f32]| got.iter().zip(&exact).map(|(&g, e)| (g as f64 - e).abs()).fold(0.0, f64::max);
            let (o, t) = (error(&ours), error(&theirs));
            assert!(o <= t.max(1.5e-6), "{case}: ours {o}, theirs {t}");
        }
    });
}

/// transformers' interpolation of Qwen3-VL's position embeddings, in its tower's order.
#[test]
fn gives_the_position_embeddings_of_qwen3_vl() {
    let golden = Golden::read("resize");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = golden.tensor(device, "qwen3_vl.x");
        let options = Resize { align_corners: true, ..Resize::default() };
        let out = resize(stream, &x, [6, 10], options).unwrap();
        let blocks = out.reshape([3, 2, 5, 2, 5]).unwrap().permute(&[0, 2, 1, 3, 4]).unwrap();
        let out = crate::ops::copy(stream, &blocks).unwrap();
        let ours = values_of(stream, &out);
        assert_close(DType::F32, &ours, &golden.exact_values("qwen3_vl.exact"), 0.2);
        let theirs: Vec<f64> = golden.values("qwen3_vl.out").into_iter().map(f64::from).collect();
        assert_close(DType::F32, &ours, &theirs, 0.5);
    });
}

#[test]
fn the_same_size_is_the_same_grid() {
    let mut x = Random::new(3).values(5 * 7 * 3);
    x[9] = f32::NAN;
    x[40] = f32::INFINITY;
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let xt = device.tensor(&x, [5, 7, 3]).unwrap();
        for options in all_options() {
            let out = resize(stream, &xt, [5, 7], options).unwrap();
            let out = values_of(stream, &out);
            let bits = |x: &[f32]| x.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
            assert_eq!(bits(&out), bits(&x), "{options:?}");
        }
    });
}

#[test]
fn nan_and_infinity_reach_their_neighbours_alone() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut x = vec![1.0f32; 8 * 2];
        (x[6], x[7]) = (f32::NAN, f32::INFINITY);
        // Element 3 of 8 is read by elements 5, 6, 7 and 8 of 16.
        let xt = device.tensor(&x, [8, 1, 2]).unwrap();
        let out = resize(stream, &xt, [16, 1], Resize::default()).unwrap();
        let out = values_of(stream, &out);
        for (i, pixel) in out.chunks(2).enumerate() {
            let near = (5..9).contains(&i);
            assert_eq!((pixel[0].is_nan(), pixel[1].is_infinite()), (near, near), "{i}");
            assert!(near || pixel == [1.0, 1.0]);
        }
    });
}

#[test]
fn many_threads_give_what_one_gives() {
    let x = Random::new(5).values(48 * 48 * 64);
    let run = |threads: usize, options: Resize| {
        let device = Device::cpu_with(crate::device::CpuOptions { threads, ..Default::default() });
        let stream = &mut device.stream();
        let xt = tensor_of(&device, DType::F32, &x, [48, 48, 64]);
        let out = resize(stream, &xt, [37, 70], options).unwrap();
        out.to_vec::<f32>(stream).unwrap()
    };
    for options in all_options() {
        assert!(run(1, options) == run(3, options), "{options:?}");
    }
}

/// Of so many columns that places are more than 32 bits hold.
#[test]
fn a_long_row_stays_as_it_is() {
    on_every_device(|stream| {
        let x = Random::new(4).values(33_000);
        let xt = stream.device().tensor(&x, [1, 33_000, 1]).unwrap();
        let out = resize(stream, &xt, [1, 33_000], Resize::default()).unwrap();
        assert_eq!(out.to_vec::<f32>(stream).unwrap(), x);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [4, 4, 3]).unwrap();
    let both = Resize { align_corners: true, antialias: true, ..Resize::default() };
    let error = resize(stream, &x, [2, 2], both).unwrap_err().to_string();
    assert_eq!(error, "resize: antialias: got it with align_corners, wanted one of them");
    let flat = device.zeros(DType::F32, [4, 12]).unwrap();
    let error = resize(stream, &flat, [2, 2], Resize::default()).unwrap_err().to_string();
    assert_eq!(error, "resize: x: got f32[4, 12], wanted [height, width, dim] of f32, f16 or bf16");
    let out = device.zeros(DType::F32, [2, 2, 4]).unwrap();
    let error = resize_into(stream, &x, Resize::default(), &out).unwrap_err().to_string();
    assert_eq!(error, "resize: out: got f32[2, 2, 4], wanted f32[height, width, 3]");
    let empty = device.zeros(DType::F32, [0, 4, 3]).unwrap();
    let error = resize(stream, &empty, [2, 2], Resize::default()).unwrap_err().to_string();
    assert!(error.starts_with("resize: x: got f32[0, 4, 3], wanted elements"), "{error}");
    assert_eq!(resize(stream, &empty, [0, 2], Resize::default()).unwrap().elements(), 0);
}
