use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, on_every_device};

/// A tensor's bytes, row-major.
fn bytes_of(stream: &mut Stream, t: &Tensor) -> Vec<u8> {
    let dense = copy(stream, t).unwrap();
    let all = Tensor::new(dense.buffer().clone(), 0, DType::U8, [dense.byte_range().len()]).unwrap();
    all.to_vec(stream).unwrap()
}

/// The value of an element: an integer exactly, a float as f64.
#[derive(Clone, Copy, Debug)]
enum Value {
    Float(f64),
    Integer(i64),
}

fn value(dtype: DType, b: &[u8]) -> Value {
    match dtype {
        DType::F32 => Value::Float(f32::from_le_bytes(b.try_into().unwrap()) as f64),
        DType::F16 => Value::Float(half::f16::from_le_bytes(b.try_into().unwrap()).to_f64()),
        DType::BF16 => Value::Float(half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64()),
        DType::U8 => Value::Integer(b[0] as i64),
        DType::I8 => Value::Integer(b[0] as i8 as i64),
        DType::U16 => Value::Integer(u16::from_le_bytes(b.try_into().unwrap()) as i64),
        DType::U32 => Value::Integer(u32::from_le_bytes(b.try_into().unwrap()) as i64),
        DType::I32 => Value::Integer(i32::from_le_bytes(b.try_into().unwrap()) as i64),
        DType::I64 => Value::Integer(i64::from_le_bytes(b.try_into().unwrap())),
        DType::Bool => Value::Integer((b[0] != 0) as i64),
    }
}

/// The definition: the bytes that `v` becomes.
fn reference(v: Value, to: DType) -> Vec<u8> {
    let float = match v {
        Value::Float(x) => x as f32,
        Value::Integer(n) => n as f32,
    };
    let within = |low: i128, high: i128| match v {
        Value::Integer(n) => n,
        Value::Float(x) if x.is_nan() => 0,
        Value::Float(x) if x >= high as f64 => high as i64,
        Value::Float(x) if x <= low as f64 => low as i64,
        Value::Float(x) => x.trunc() as i64,
    };
    match to {
        DType::F32 => float.to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(float).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(float).to_le_bytes().to_vec(),
        DType::U8 => (within(0, 255) as u8).to_le_bytes().to_vec(),
        DType::I8 => (within(-128, 127) as i8).to_le_bytes().to_vec(),
        DType::U16 => (within(0, 65535) as u16).to_le_bytes().to_vec(),
        DType::U32 => (within(0, u32::MAX as i128) as u32).to_le_bytes().to_vec(),
        DType::I32 => (within(i32::MIN as i128, i32::MAX as i128) as i32).to_le_bytes().to_vec(),
        DType::I64 => within(i64::MIN as i128, i64::MAX as i128).to_le_bytes().to_vec(),
        DType::Bool => vec![match v {
            Value::Float(x) => x != 0.0,
            Value::Integer(n) => n != 0,
        } as u8],
    }
}

#[track_caller]
fn assert_cast(from: DType, to: DType, x: &[u8], y: &[u8]) {
    for (i, (x, y)) in x.chunks(from.size()).zip(y.chunks(to.size())).enumerate() {
        let (v, want) = (value(from, x), reference(value(from, x), to));
        let both_nan =
            matches!((value(to, y), value(to, &want)), (Value::Float(a), Value::Float(b)) if a.is_nan() && b.is_nan());
        assert!(
            y == want || both_nan,
            "element {i}: {from} {v:?} became {to} {:?}, wanted {:?}",
            value(to, y),
            value(to, &want)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn follows_the_definition_for_any_bits(
        from in 0usize..10,
        to in 0usize..10,
        rows in 0usize..4,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(64), Just(65), Just(1025)],
        small: bool,
        turned: bool,
        seed: u64,
    ) {
        let (from, to) = (DType::ALL[from], DType::ALL[to]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            // Packets want rows of fours.
            let gap = random.below(3) * if len == 64 { 4 } else { 1 };
            let size = from.size();
            // Any bits that the type may have, or numbers that most types hold.
            let bytes: Vec<u8> = (0..rows * (len + gap))
                .flat_map(|_| match small {
                    false if from == DType::Bool => vec![random.next() as u8 & 1],
                    false => (0..size).map(|_| random.next() as u8).collect::<Vec<_>>(),
                    true => reference(Value::Float((random.value() * 100.0) as f64), from),
                })
                .collect();
            let whole = device.tensor_from_bytes(&bytes, from, [rows, len + gap]).unwrap();
            let mut x = whole.slice(1, gap..len + gap).unwrap();
            if turned {
                x = x.permute(&[1, 0]).unwrap();
            }
            let y = cast(stream, &x, to).unwrap();
            assert_eq!((y.dtype(), y.shape()), (to, x.shape()));
            assert_cast(from, to, &bytes_of(stream, &x), &bytes_of(stream, &y));
        });
    }
}

/// To the bit, but for NaN, of which there are many.
#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("cast");
    let cases = golden.cases();
    assert_eq!(cases.len(), DType::ALL.len() * DType::ALL.len());
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let x = golden.tensor(device, &format!("{case}.x"));
            let want = golden.tensor(device, &format!("{case}.out"));
            let to = want.dtype();
            let got = cast(stream, &x, to).unwrap();
            let from = x.dtype();
            let [x, got, want] = [x, got, want].map(|t| bytes_of(stream, &t));
            let results = got.chunks(to.size()).zip(want.chunks(to.size()));
            for (x, (got, want)) in x.chunks(from.size()).zip(results) {
                let (x, got_value, want_value) = (value(from, x), value(to, got), value(to, want));
                let nan = |v| matches!(v, Value::Float(x) if x.is_nan());
                let same = got == want || nan(got_value) && nan(want_value);
                assert!(same, "{case}: {x:?} became {got_value:?}, wanted {want_value:?}");
            }
        }
    });
}

#[test]
fn holds_at_the_ends_of_every_range() {
    let x = [
        0.5f32,
        -0.5,
        254.9,
        255.0,
        256.0,
        -129.0,
        65504.0,
        65520.0,
        2147483520.0,
        2147483648.0,
        4294967040.0,
        4294967296.0,
        9.2233715e18,
        9.223372e18,
        -9.3e18,
        1e-45,
        3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -0.0,
    ];
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let t = device.tensor(&x, [x.len()]).unwrap();
        for to in DType::ALL {
            let y = cast(stream, &t, to).unwrap();
            assert_cast(DType::F32, to, bytemuck::cast_slice(&x), &bytes_of(stream, &y));
        }
    });
}

#[test]
fn may_write_in_place_where_sizes_are_equal() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[1.5f32, -7.0, 3e9], [3]).unwrap();
        let out = Tensor::new(x.buffer().clone(), 0, DType::I32, [3]).unwrap();
        cast_into(stream, &x, &out).unwrap();
        assert_eq!(out.to_vec::<i32>(stream).unwrap(), [1, -7, i32::MAX]);
    });
}

#[test]
fn the_kernel_knows_the_same_types() {
    let names = DType::ALL.map(|d| format!("{d:?}")).join(", ");
    assert_eq!(DTYPE_DECLARATION, format!("enum class DType : uint {{ {names} }};"));
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [4]).unwrap();
    let y = device.zeros(DType::F16, [5]).unwrap();
    assert_eq!(cast_into(stream, &x, &y).unwrap_err().to_string(), "cast: out: got f16[5], wanted [4]");
    let overlapping = Tensor::new(x.buffer().clone(), 0, DType::F16, [4]).unwrap();
    assert!(cast_into(stream, &x, &overlapping).is_err());
}
