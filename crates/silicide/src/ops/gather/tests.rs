use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, bytes_of, on_every_device, rounded, values_of};

/// Where an index of a row-major shape lies, and back.
fn index_of(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        index[axis] = i % shape[axis];
        i /= shape[axis];
    }
    index
}

fn place(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |at, (&i, &d)| at * d + if d == 1 { 0 } else { i })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rows_follow_the_definition(
        dims in proptest::collection::vec(prop_oneof![Just(1usize), Just(2), Just(31), Just(33), 0usize..6], 1..=3),
        ids_dims in proptest::collection::vec(prop_oneof![Just(1usize), Just(3), 0usize..9], 1..=2),
        dtype in 0usize..3,
        (turned, signed) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(dims.iter().product()));
            let mut xt = random.tensor(device, dtype, &x, Shape::new(&dims).unwrap());
            let (rows, width) = (dims[0], dims[1..].iter().product::<usize>());
            // Some past the last row, some negative.
            let ids: Vec<u32> = (0..ids_dims.iter().product()).map(|_| random.below(rows + 3) as u32).collect();
            let ids: Vec<u32> = ids.iter().map(|&id| if id as usize == rows { u32::MAX } else { id }).collect();
            let kind = if signed { DType::I32 } else { DType::U32 };
            let shape = Shape::new(&ids_dims).unwrap();
            let mut it = device.tensor_from_bytes(bytemuck::cast_slice(&ids), kind, shape).unwrap();
            if turned && dims.len() == 3 {
                // The rows turned around, which the result shows.
                xt = xt.permute(&[0, 2, 1]).unwrap();
            }
            let mut ids_order: Vec<usize> = (0..ids.len()).collect();
            if turned && ids_dims.len() == 2 {
                it = it.permute(&[1, 0]).unwrap();
                ids_order = (0..ids.len()).map(|i| i % ids_dims[0] * ids_dims[1] + i / ids_dims[0]).collect();
            }
            let y = gather(stream, &xt, &it).unwrap();
            assert_eq!(y.shape().rank(), dims.len() + ids_dims.len() - 1);
            let y = values_of(stream, &y);
            let column = |c: usize| if turned && dims.len() == 3 { c % dims[1] * dims[2] + c / dims[1] } else { c };
            let want: Vec<f32> = ids_order
                .iter()
                .flat_map(|&i| (0..width).map(move |c| (i, c)))
                .map(|(i, c)| if (ids[i] as usize) < rows { x[ids[i] as usize * width + column(c)] } else { 0.0 })
                .collect();
            assert_eq!(y, want);
        });
    }

    #[test]
    fn elements_follow_the_definition(
        dims in proptest::collection::vec(prop_oneof![Just(1usize), Just(2), Just(33), 0usize..6], 1..=3),
        axis in 0usize..3,
        along in prop_oneof![Just(1usize), Just(31), 0usize..5],
        (x_ones, ones) in any::<(u32, u32)>(),
        dtype in 0usize..3,
        seed: u64,
    ) {
        let (axis, dtype) = (axis % dims.len(), DType::FLOATS[dtype]);
        let some = |bits: u32| dims.iter().enumerate().map(move |(i, &d)| if i != axis && bits >> i & 1 == 1 { 1 } else { d });
        let x_dims: Vec<usize> = some(x_ones).collect();
        let mut dims: Vec<usize> = some(ones).collect();
        dims[axis] = along;
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(x_dims.iter().product()));
            let xt = random.tensor(device, dtype, &x, Shape::new(&x_dims).unwrap());
            let indices: Vec<u32> = (0..dims.iter().product()).map(|_| random.below(x_dims[axis] + 2) as u32).collect();
            let it = device.tensor(&indices, Shape::new(&dims).unwrap()).unwrap();
            let y = take_along_axis(stream, &xt, &it, axis).unwrap();
            let shape = *y.shape();
            let want = |i: usize| {
                let mut index = index_of(i, &shape);
                index[axis] = indices[place(&index, &dims)] as usize;
                // An axis of size 1 is repeated, but not the one looked up.
                if index[axis] < x_dims[axis] { x[place(&index, &x_dims)] } else { 0.0 }
            };
            assert_eq!(values_of(stream, &y), (0..y.elements()).map(want).collect::<Vec<_>>());
        });
    }
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("gather");
    let cases = golden.cases();
    assert_eq!(cases.len(), 24);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let [x, indices, want] = ["x", "indices", "out"].map(|n| golden.tensor(device, &format!("{case}.{n}")));
            let got = match p["axis"].as_u64() {
                Some(axis) => take_along_axis(stream, &x, &indices, axis as usize),
                None => gather(stream, &x, &indices),
            };
            let got = got.unwrap();
            assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case}");
            assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{case}");
        }
    });
}

#[test]
fn writes_to_views_and_leaves_the_gaps() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&(0..64i64).collect::<Vec<_>>(), [8, 8]).unwrap();
        let ids = device.tensor(&[7i32, -1, 0, i32::MIN], [4]).unwrap();
        let whole = device.tensor(&[9i64; 40], [4, 10]).unwrap();
        gather_into(stream, &x, &ids, &whole.slice(1, 1..9).unwrap()).unwrap();
        let got = whole.to_vec::<i64>(stream).unwrap();
        for (row, id) in got.chunks(10).zip([7, -1, 0, -1]) {
            assert_eq!((row[0], row[9]), (9, 9));
            let want = (0..8).map(|i| if id < 0 { 0 } else { id * 8 + i });
            assert!(row[1..9].iter().copied().eq(want));
        }
    });
}

#[test]
fn nothing_to_look_up_gives_zeros() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let ids = device.tensor(&[0u32, 5], [2]).unwrap();
        let x = device.zeros(DType::F16, [0, 3]).unwrap();
        let y = gather(stream, &x, &ids).unwrap();
        assert_eq!(values_of(stream, &y), [0.0; 6]);
        let y = take_along_axis(stream, &x, &ids.reshape([2, 1]).unwrap(), 0).unwrap();
        assert_eq!(values_of(stream, &y), [0.0; 6]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [3, 4]).unwrap();
    let ids = device.zeros(DType::U32, [3, 2]).unwrap();
    let error = gather(stream, &x, &x).unwrap_err().to_string();
    assert_eq!(error, "gather: ids: got f32[3, 4], wanted u32 or i32 of one axis or more");
    let scalar = device.zeros(DType::F32, []).unwrap();
    assert!(gather(stream, &scalar, &ids).unwrap_err().to_string().contains("x: got f32[]"));
    let many = device.zeros(DType::U32, [1; 8]).unwrap();
    assert!(gather(stream, &x, &many).unwrap_err().to_string().contains("too many axes"));
    let error = take_along_axis(stream, &x, &ids, 2).unwrap_err().to_string();
    assert_eq!(error, "take_along_axis: axis: got 2, wanted one of [3, 4]");
    assert!(
        take_along_axis(stream, &x, &ids.reshape([6]).unwrap(), 0).unwrap_err().to_string().contains("as many axes")
    );
    assert!(take_along_axis(stream, &x, &ids, 0).unwrap_err().to_string().contains("equal or 1"));
    assert!(gather_into(stream, &x, &ids, &x).unwrap_err().to_string().contains("wanted f32[3, 2, 4]"));
}
