use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, on_every_device, on_every_schedule};
use crate::{DType, Device, Shape};

/// The bytes of a view's elements in row-major order, by the definition of strides.
fn bytes_of(data: &[u8], t: &Tensor) -> Vec<u8> {
    let size = t.dtype().size();
    let mut bytes = Vec::new();
    for mut i in 0..t.elements() {
        let mut element = 0;
        for axis in (0..t.rank()).rev() {
            element += i % t.shape()[axis] * t.strides()[axis];
            i /= t.shape()[axis];
        }
        let start = t.offset() + element * size;
        bytes.extend_from_slice(&data[start..start + size]);
    }
    bytes
}

/// All bytes of a buffer.
fn contents(stream: &mut Stream, t: &Tensor) -> Vec<u8> {
    let whole = Tensor::new(t.buffer().clone(), 0, DType::U8, [t.buffer().len()]).unwrap();
    whole.to_vec(stream).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn moves_every_element_and_no_other(
        dims in proptest::collection::vec(prop_oneof![Just(1usize), Just(2), Just(3), Just(17), Just(32), Just(65), 0usize..6], 0..=4),
        dtype in 0usize..10,
        even: bool,
        seed: u64,
    ) {
        let dtype = DType::ALL[dtype];
        prop_assume!(dims.iter().product::<usize>() < 20_000);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            // A permuted slice of a larger tensor; the same for the output.
            let mut view = |stream: &mut Stream| {
                let mut order: Vec<usize> = (0..dims.len()).collect();
                for i in (1..order.len()).rev() {
                    order.swap(i, random.below(i + 1));
                }
                let lead: Vec<usize> = order.iter().map(|_| random.below(3) * if even { 4 } else { 1 }).collect();
                let whole: Vec<usize> = order.iter().zip(&lead).map(|(&a, l)| dims[a] + 2 * l).collect();
                let mut t = device.zeros(dtype, Shape::new(&whole).unwrap()).unwrap();
                let bytes: Vec<u8> = (0..t.buffer().len()).map(|_| random.next() as u8).collect();
                let all = Tensor::new(t.buffer().clone(), 0, DType::U8, [bytes.len()]).unwrap();
                stream.write(&all, &bytes).unwrap();
                for (axis, &l) in lead.iter().enumerate() {
                    t = t.slice(axis, l..l + dims[order[axis]]).unwrap();
                }
                let mut inverse = vec![0; order.len()];
                order.iter().enumerate().for_each(|(i, &a)| inverse[a] = i);
                (bytes, t.permute(&inverse).unwrap())
            };
            let (x_bytes, x) = view(stream);
            let (out_before, out) = view(stream);
            copy_into(stream, &x, &out).unwrap();
            let want = bytes_of(&x_bytes, &x);
            let out_after = contents(stream, &out);
            assert_eq!(bytes_of(&out_after, &out), want);
            // What lies between the output's elements is as it was.
            let changed = out_before.iter().zip(&out_after).filter(|(a, b)| a != b).count();
            assert!(changed <= want.len());
            copy_into(stream, &x, &out).unwrap();
            let dense = copy(stream, &x).unwrap();
            assert!(dense.is_contiguous());
            assert_eq!(&contents(stream, &dense)[..want.len()], want);
        });
    }
}

/// By squares in threadgroup memory: whole ones and those at the edges, of lines that pack and of others.
#[test]
fn turns_matrices() {
    let shapes = [
        (DType::U8, [1, 144, 272]),
        (DType::F16, [2, 72, 136]),
        (DType::F32, [3, 36, 68]),
        (DType::I64, [1, 18, 34]),
        (DType::I8, [1, 131, 150]),
        (DType::U16, [2, 67, 129]),
        (DType::I32, [1, 17, 65]),
        (DType::I64, [2, 17, 33]),
    ];
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(9);
        for (dtype, [n, rows, columns]) in shapes {
            let bytes: Vec<u8> = (0..n * rows * columns * dtype.size()).map(|_| random.next() as u8).collect();
            let x = device.tensor_from_bytes(&bytes, dtype, [n, rows, columns]).unwrap();
            // The matrices outside, and within: a gap between the output's lines.
            let turned = x.permute(&[0, 2, 1]).unwrap();
            let got = copy(stream, &turned).unwrap();
            assert_eq!(contents(stream, &got)[..bytes.len()], bytes_of(&bytes, &turned), "{dtype} {rows} x {columns}");
            let turned = x.permute(&[2, 0, 1]).unwrap();
            let gap = 16 / dtype.size();
            let whole = device.zeros(dtype, [columns, n, rows + gap]).unwrap();
            let out = whole.slice(2, 0..rows).unwrap();
            copy_into(stream, &turned, &out).unwrap();
            let after = contents(stream, &whole);
            assert_eq!(bytes_of(&after, &out), bytes_of(&bytes, &turned), "{dtype} {rows} x {columns}, a gap");
            let rest = whole.slice(2, rows..rows + gap).unwrap();
            assert!(bytes_of(&after, &rest).iter().all(|&b| b == 0), "{dtype} {rows} x {columns}, past the end");
        }
    });
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("copy");
    let cases = golden.cases();
    assert_eq!(cases.len(), 5 * DType::ALL.len());
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let list = |name: &str| serde_json::from_value::<Vec<usize>>(p[name].clone()).unwrap();
            let slices: Vec<[usize; 2]> = serde_json::from_value(p["slices"].clone()).unwrap();
            let mut x = golden.tensor(device, &format!("{case}.x")).permute(&list("order")).unwrap();
            for (axis, [from, to]) in slices.into_iter().enumerate() {
                x = x.slice(axis, from..to).unwrap();
            }
            let got = copy(stream, &x.broadcast_to(Shape::new(&list("shape")).unwrap()).unwrap()).unwrap();
            let want = golden.tensor(device, &format!("{case}.out"));
            assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case}");
            let bytes = got.byte_range().len();
            assert_eq!(contents(stream, &got)[..bytes], contents(stream, &want)[..bytes], "{case}");
        }
    });
}

/// The recipe of [`copy`]'s documentation is what transformers' processors of Qwen2-VL do.
#[test]
fn views_of_images_are_patches() {
    let golden = Golden::read("patches");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for case in ["image", "video"] {
            let x = golden.tensor(device, &format!("{case}.x"));
            let want = golden.tensor(device, &format!("{case}.out"));
            let (frames, patch, merge) = (2, 3, 2);
            let [given, channels, height, width] = x.shape()[..] else { panic!("{x:?}") };
            let (down, across) = (height / (merge * patch), width / (merge * patch));
            let rows = down * across * merge * merge;
            let out = device.zeros(DType::I32, *want.shape()).unwrap();
            for step in 0..given.div_ceil(frames) {
                let some = x.slice(0, step * frames..given.min((step + 1) * frames)).unwrap();
                let some = some.reshape([some.dim(0), channels, down, merge, patch, across, merge, patch]).unwrap();
                let some = some.broadcast_to([frames, channels, down, merge, patch, across, merge, patch]).unwrap();
                let blocks = some.permute(&[2, 5, 3, 6, 1, 0, 4, 7]).unwrap();
                let out = out.slice(0, step * rows..(step + 1) * rows).unwrap();
                copy_into(stream, &blocks, &out.reshape(*blocks.shape()).unwrap()).unwrap();
            }
            assert_eq!(out.to_vec::<i32>(stream).unwrap(), want.to_vec::<i32>(stream).unwrap(), "{case}");
        }
    });
}

#[test]
fn broadcasts_and_concatenates() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let row = device.tensor(&[1i64, 2, 3], [3]).unwrap();
        let wide = copy(stream, &row.broadcast_to([2, 3]).unwrap()).unwrap();
        assert_eq!(wide.to_vec::<i64>(stream).unwrap(), [1, 2, 3, 1, 2, 3]);

        let other = device.tensor(&[7i64, 8], [2, 1]).unwrap();
        let joined = concat(stream, &[&wide, &other, &wide], 1).unwrap();
        assert_eq!(joined.shape()[..], [2, 7]);
        assert_eq!(joined.to_vec::<i64>(stream).unwrap(), [1, 2, 3, 7, 1, 2, 3, 1, 2, 3, 8, 1, 2, 3]);
        let stacked = concat(stream, &[&wide, &wide], 0).unwrap();
        assert_eq!(stacked.shape()[..], [4, 3]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [4, 4]).unwrap();
    let y = device.zeros(DType::F16, [4, 4]).unwrap();
    assert_eq!(copy_into(stream, &x, &y).unwrap_err().to_string(), "copy: out: got f16[4, 4], wanted f32[4, 4]");
    let turned = x.permute(&[1, 0]).unwrap();
    assert!(copy_into(stream, &turned, &x).is_err());
    assert!(copy_into(stream, &x, &x).unwrap_err().to_string().contains("memory of its own"));
    assert!(concat(stream, &[], 0).is_err());
    assert!(concat(stream, &[&x, &y], 0).unwrap_err().to_string().contains("in axis 0 only"));
    assert!(concat(stream, &[&x], 2).unwrap_err().to_string().contains("axis: got 2"));
}
