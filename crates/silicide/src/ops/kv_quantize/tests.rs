use proptest::prelude::*;

use super::*;
use crate::ops::{Hadamard, hadamard_signs, hadamard_transform};
use crate::testing::{
    Golden, Random, assert_close, bytes_of, on_every_device, on_every_schedule, rounded, tensor_of, values_of,
};

const BITS: [u32; 4] = [4, 5, 6, 8];

/// A row behind the rotation, from the definition of the transform.
fn rotated(x: &[f32], signs: Option<&[u32]>) -> Vec<f64> {
    let term = |i: usize, k: usize| {
        let turned = signs.is_some_and(|words| words[k / 32] >> (k % 32) & 1 == 1);
        if turned != ((i & k).count_ones() % 2 == 1) { -(x[k] as f64) } else { x[k] as f64 }
    };
    (0..x.len()).map(|i| (0..x.len()).map(|k| term(i, k)).sum::<f64>() / (x.len() as f64).sqrt()).collect()
}

/// And back.
fn restored(y: &[f64], signs: Option<&[u32]>) -> Vec<f64> {
    let element = |i: usize| {
        let terms = y.iter().enumerate().map(|(k, y)| if (i & k).count_ones() % 2 == 1 { -y } else { *y });
        let turned = signs.is_some_and(|words| words[i / 32] >> (i % 32) & 1 == 1);
        terms.sum::<f64>() / (y.len() as f64).sqrt() * if turned { -1.0 } else { 1.0 }
    };
    (0..y.len()).map(element).collect()
}

/// Code `i` is bits `bits * i` and following.
fn unpacked(bytes: &[u8], bits: u32) -> Vec<usize> {
    let bit = |i: usize| (bytes[i / 8] >> (i % 8) & 1) as usize;
    let codes = bytes.len() * 8 / bits as usize;
    (0..codes).map(|c| (0..bits as usize).map(|b| bit(c * bits as usize + b) << b).sum()).collect()
}

/// A cache whose rows lie apart, heads first or slots first, at multiples of `gap`; all bytes `0xaa` and all norms 9.
fn caches(
    device: &Device,
    codec: &KvCodec,
    heads: usize,
    capacity: usize,
    turned: bool,
    gap: usize,
) -> (Tensor, Tensor) {
    let bytes = codec.row_bytes();
    let (first, second) = if turned { (capacity, heads) } else { (heads, capacity) };
    let all = bytes.next_multiple_of(gap) + 2 * gap;
    let codes = vec![0xaau8; first * second * all];
    let codes = device.tensor(&codes, [first, second, all]).unwrap().slice(2, gap..gap + bytes).unwrap();
    let order: &[usize] = if turned { &[1, 0, 2] } else { &[0, 1, 2] };
    let norms = match codec.norms {
        1 => device.tensor(&vec![9.0f32; first * (second + 1)], [first, second + 1]).unwrap().slice(1, 0..second),
        n => device.tensor(&vec![9.0f32; first * second * 3], [first, second, 3]).unwrap().slice(2, 0..n),
    };
    let norms = norms.unwrap();
    (codes.permute(order).unwrap(), norms.permute(&order[..norms.rank()]).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        tokens in 0usize..5,
        heads in 1usize..6,
        (log, bits, norms) in (6u32..10, 0usize..4, 1usize..3),
        (dtype, out_dtype) in (0usize..3, 0usize..3),
        (turned, signed, outlier) in any::<(bool, bool, bool)>(),
        seed: u64,
    ) {
        let form = Form { tokens, heads, capacity: 7, dim: 1 << log, bits: BITS[bits], norms, gap: if turned { 4 } else { 16 } };
        follows(form, DType::FLOATS[dtype], DType::FLOATS[out_dtype], [turned, signed, outlier], seed);
    }
}

/// Of the form for tensor cores, whose rows have 16 bits, each number at least once; and the others of 33 rows.
#[test]
fn many_rows_follow_the_definition() {
    for (i, dim) in [64, 128, 256, 512].into_iter().enumerate() {
        for (j, bits) in BITS.into_iter().enumerate() {
            for norms in 1..=2 {
                let form = Form { tokens: 33 + j, heads: 1 + (i + j) % 3, capacity: 37, dim, bits, norms, gap: 16 };
                let dtype = DType::FLOATS[if i == 3 { 0 } else { 1 + (i + j + norms) % 2 }];
                follows(form, dtype, dtype, [j % 2 == 0, norms == 1 || i % 2 == 0, i % 2 == 0], 1);
            }
        }
    }
}

/// So many rows that those of one head come in blocks, of which a simdgroup takes one or, of one form, several. The codes are any.
#[test]
fn many_rows_are_read_back() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(5);
        let (heads, processors) = (3, device.processors().unwrap_or(1) as usize);
        for (i, dim) in [64, 128, 256].into_iter().enumerate() {
            for (j, bits) in BITS.into_iter().enumerate() {
                for norms in 1..=2 {
                    let blocks = processors * if (i, j, norms) == (0, 0, 1) { 36 } else { 9 };
                    let rows = 8 * blocks.div_ceil(heads) + 5;
                    let signs = (j % 2 == 0).then(|| hadamard_signs(device, dim, 1).unwrap());
                    let words = signs.as_ref().map(|signs| signs.to_vec::<u32>(stream).unwrap());
                    let codec =
                        KvCodec::new(device, dim, KvCodecOptions { bits, signs: signs.as_ref(), norms }).unwrap();
                    let bytes = codec.row_bytes();
                    let gap = bytes.next_multiple_of(16) + 16;
                    let stored: Vec<u8> = (0..heads * rows * gap).map(|_| random.below(256) as u8).collect();
                    let codes = device.tensor(&stored, [heads, rows, gap]).unwrap().slice(2, 0..bytes).unwrap();
                    let mut sizes: Vec<f32> = random.values(heads * rows * norms).iter().map(|x| x.abs()).collect();
                    (sizes[0], sizes[norms * 9]) = (0.0, f32::NAN);
                    let kept = match norms {
                        1 => device.tensor(&sizes, [heads, rows]),
                        _ => device.tensor(&sizes, [heads, rows, norms]),
                    };
                    let kept = kept.unwrap();

                    let levels = codebook::lloyd_max(bits);
                    let decoded = |row: usize| -> Vec<f64> {
                        let parts = sizes[row * norms..][..norms].iter();
                        let parts = parts.flat_map(|&size| std::iter::repeat_n(size as f64, dim / norms));
                        let unit = 1.0 / ((dim / norms) as f64).sqrt();
                        let codes = unpacked(&stored[row * gap..][..bytes], bits);
                        codes.into_iter().zip(parts).map(|(code, size)| levels[code] * size * unit).collect()
                    };
                    let dtype = DType::FLOATS[1 + (i + j + norms) % 2];
                    for domain in [KvDomain::Original, KvDomain::Rotated] {
                        let back = kv_dequantize(stream, &codes, &kept, &codec, domain, dtype).unwrap();
                        let back = values_of(stream, &back);
                        // The first rows, the last of each head, and others between.
                        for row in (0..heads * rows).filter(|row| *row < 12 || row % rows + 9 > rows || row % 61 == 0) {
                            let mut want = decoded(row);
                            let size = want.iter().fold(0.0f64, |m, y| m.max(y.abs()));
                            if domain == KvDomain::Original {
                                want = restored(&want, words.as_deref());
                            }
                            assert_close(dtype, &back[row * dim..][..dim], &want, size);
                        }
                    }
                }
            }
        }
    });
}

#[derive(Clone, Copy)]
struct Form {
    tokens: usize,
    heads: usize,
    capacity: usize,
    dim: usize,
    bits: u32,
    norms: usize,
    gap: usize,
}

/// Whether codes are the nearest and norms those of rows, and whether both give rows back.
fn follows(form: Form, dtype: DType, out_dtype: DType, [turned, signed, outlier]: [bool; 3], seed: u64) {
    let Form { tokens, heads, capacity, dim, bits, norms, gap } = form;
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(seed);
        let mut x = random.values(tokens * heads * dim);
        if outlier {
            x.iter_mut().step_by(dim).for_each(|x| *x *= 50.0);
        }
        let x = rounded(dtype, &x);
        // A part of wider rows, as keys lie in a product of queries, keys and values.
        let xt = random.tensor_by(if gap == 16 { 8 } else { 1 }, device, dtype, &x, [tokens, heads, dim]);
        let signs = signed.then(|| hadamard_signs(device, dim, seed).unwrap());
        let words = signs.as_ref().map(|s| s.to_vec::<u32>(stream).unwrap());
        let codec = KvCodec::new(device, dim, KvCodecOptions { bits, signs: signs.as_ref(), norms }).unwrap();
        let (codes, kept) = caches(device, &codec, heads, capacity, turned, gap);
        let slots: Vec<u32> = (0..tokens as u32).map(|t| capacity as u32 - 1 - t).collect();
        kv_quantize(stream, &xt, &device.tensor(&slots, [tokens]).unwrap(), &codec, &codes, &kept).unwrap();

        let (bytes, got_norms) = (bytes_of(stream, &codes), values_of(stream, &kept));
        let levels = codebook::lloyd_max(bits);
        let mut decoded = Vec::new();
        for (i, (row, got)) in bytes.chunks(codec.row_bytes()).zip(got_norms.chunks(norms)).enumerate() {
            let (head, slot) = (i / capacity, i % capacity);
            let got_codes = unpacked(row, bits);
            let Some(token) = slots.iter().position(|&s| s as usize == slot) else {
                assert!(row.iter().all(|&b| b == 0xaa) && got.iter().all(|&n| n == 9.0));
                let unit = 9.0 / ((dim / norms) as f64).sqrt();
                decoded.extend(got_codes.iter().map(|&c| levels[c] * unit));
                continue;
            };
            let y = rotated(&x[(token * heads + head) * dim..][..dim], words.as_deref());
            for ((y, codes), &got) in y.chunks(dim / norms).zip(got_codes.chunks(dim / norms)).zip(got) {
                let norm = y.iter().map(|y| y * y).sum::<f64>().sqrt();
                assert!((got as f64 - norm).abs() <= 1e-6 * norm, "norm {got}, wanted {norm}");
                let unit = norm / (y.len() as f64).sqrt();
                for (y, &code) in y.iter().zip(codes) {
                    let y = y / unit;
                    // Nearest, to within rounding.
                    let nearest = levels.iter().map(|c| (y - c).abs()).fold(f64::INFINITY, f64::min);
                    assert!((y - levels[code]).abs() <= nearest + 2e-5, "{y} has code {code}");
                }
                decoded.extend(codes.iter().map(|&c| levels[c] * unit));
            }
        }

        for domain in [KvDomain::Original, KvDomain::Rotated] {
            let out = device.zeros(out_dtype, [capacity, heads, dim]).unwrap().permute(&[1, 0, 2]).unwrap();
            kv_dequantize_into(stream, &codes, &kept, &codec, domain, &out).unwrap();
            let want: Vec<f64> = match domain {
                KvDomain::Rotated => decoded.clone(),
                KvDomain::Original => decoded.chunks(dim).flat_map(|y| restored(y, words.as_deref())).collect(),
            };
            let size = decoded.iter().fold(1.0f64, |m, y| m.max(y.abs()));
            assert_close(out_dtype, &values_of(stream, &out), &want, size);
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    let x = Random::new(1).values(3 * 3 * 64);
    let mut first: Option<(Vec<u8>, Vec<f32>, Vec<f32>)> = None;
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let codec = KvCodec::new(device, 64, KvCodecOptions { bits: 5, signs: None, norms: 2 }).unwrap();
        let (codes, norms) = codec.cache(3, 4).unwrap();
        let slots = device.tensor(&[2u32, 0, 3], [3]).unwrap();
        kv_quantize(stream, &tensor_of(device, DType::F32, &x, [3, 3, 64]), &slots, &codec, &codes, &norms).unwrap();
        let back = kv_dequantize(stream, &codes, &norms, &codec, KvDomain::Original, DType::F32).unwrap();
        let got = (bytes_of(stream, &codes), values_of(stream, &norms), values_of(stream, &back));
        let error = got.2[2 * 64..3 * 64].iter().zip(&x).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        assert!(error < 0.01 * x[..64].iter().map(|x| x * x).sum::<f32>(), "{error}");
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got);
    });
}

#[test]
fn gives_the_codes_of_exact_arithmetic() {
    let golden = Golden::read("kv_quantize");
    let cases: Vec<_> = golden.cases().into_iter().filter(|(case, _)| case.starts_with("rows_")).collect();
    assert_eq!(cases.len(), 7);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let number = |name: &str| p[name].as_u64().unwrap() as usize;
            let name = |name: &str| format!("{case}.{name}");
            let (bits, dim, norms) = (number("bits") as u32, number("dim"), number("norms"));
            let (x, signs) = (golden.tensor(device, &name("x")), golden.tensor(device, &name("signs")));
            let options = KvCodecOptions { bits, signs: Some(&signs), norms };
            let codec = KvCodec::new(device, dim, options).unwrap();
            let (codes, kept) = codec.cache(3, 1).unwrap();
            kv_quantize(stream, &x, &device.tensor(&[0u32], [1]).unwrap(), &codec, &codes, &kept).unwrap();
            let want = golden.tensor(device, &name("codes"));
            assert_eq!(bytes_of(stream, &codes), bytes_of(stream, &want), "{case}");
            let want = golden.exact_values(&name("norms"));
            let size = want.iter().fold(0.0, |m: f64, n| m.max(*n));
            assert_close(DType::F32, &values_of(stream, &kept), &want, size);
            for (domain, want) in [(KvDomain::Rotated, "rotated"), (KvDomain::Original, "exact")] {
                let back = kv_dequantize(stream, &codes, &kept, &codec, domain, DType::F32).unwrap();
                assert_close(DType::F32, &values_of(stream, &back), &golden.exact_values(&name(want)), size);
            }
        }
    });
}

/// D-23: 5 and 6 bits take 5 and 6 bits, and 8 bits have the error of levels that are the best.
#[test]
fn d_23_normal_rows_have_the_least_error() {
    // Sums of uniform numbers are near enough to normal once they are rotated.
    let (rows, dim) = (32, 512);
    let mut random = Random::new(1);
    let x: Vec<f32> = (0..rows * dim).map(|_| random.values(6).iter().sum()).collect();
    let least = [(4, 9.501e-3), (5, 2.505e-3), (6, 6.442e-4), (8, 4.119e-5)];
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (bits, least) in least {
            let signs = hadamard_signs(device, dim, 1).unwrap();
            let codec = KvCodec::new(device, dim, KvCodecOptions { bits, signs: Some(&signs), norms: 1 }).unwrap();
            assert_eq!(8 * codec.row_bytes(), dim * bits as usize);
            let (codes, norms) = codec.cache(1, rows).unwrap();
            let slots: Vec<u32> = (0..rows as u32).collect();
            let slots = device.tensor(&slots, [rows]).unwrap();
            kv_quantize(stream, &tensor_of(device, DType::F32, &x, [rows, 1, dim]), &slots, &codec, &codes, &norms)
                .unwrap();
            let back = kv_dequantize(stream, &codes, &norms, &codec, KvDomain::Original, DType::F32).unwrap();
            let back = values_of(stream, &back);
            let error: f64 = back.iter().zip(&x).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
            let error = error / x.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
            assert!((error / least - 1.0).abs() < 0.05, "{bits} bits: {error}, wanted {least}");
        }
    });
}

/// D-23: each norm sums its own half and no lane of the other.
#[test]
fn d_23_two_norms_are_those_of_the_halves() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        // Rotated, the halves are the sum and the difference of the halves, over the root of 2.
        let mut x = vec![0.0f32; 512];
        (x[0], x[256]) = (5.0, 3.0);
        let codec = KvCodec::new(device, 512, KvCodecOptions { bits: 8, signs: None, norms: 2 }).unwrap();
        let (codes, norms) = codec.cache(1, 1).unwrap();
        let xt = device.tensor(&x, [1, 1, 512]).unwrap();
        kv_quantize(stream, &xt, &device.tensor(&[0u32], [1]).unwrap(), &codec, &codes, &norms).unwrap();
        let got = values_of(stream, &norms);
        assert!((got[0] - 8.0 / 2f32.sqrt()).abs() < 1e-5 && (got[1] - 2.0 / 2f32.sqrt()).abs() < 1e-5, "{got:?}");
    });
}

#[test]
fn zeros_stay_zeros_and_what_is_not_finite_becomes_nan() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        // Few rows, and so many that tensor cores take them.
        for (dtype, rows) in [(DType::F32, 6), (DType::BF16, 40)] {
            let dim = 64;
            let mut x = vec![1.0f32; rows * dim];
            x[..dim].fill(0.0);
            x[dim + 7] = f32::NAN;
            x[2 * dim + 63] = f32::INFINITY;
            (x[3 * dim], x[3 * dim + 1]) = (f32::NEG_INFINITY, f32::INFINITY);
            x[4 * dim] = 2e19;
            let x = tensor_of(device, dtype, &x, [rows, 1, dim]);
            let slots = device.tensor(&(0..rows as u32).collect::<Vec<_>>(), [rows]).unwrap();
            for bits in BITS {
                let codec = KvCodec::new(device, dim, KvCodecOptions { bits, ..Default::default() }).unwrap();
                let (codes, norms) = codec.cache(1, rows).unwrap();
                kv_quantize(stream, &x, &slots, &codec, &codes, &norms).unwrap();
                let norms_got = values_of(stream, &norms);
                assert_eq!(norms_got[0], 0.0);
                assert!(norms_got[1..5].iter().all(|n| n.is_nan()), "{norms_got:?}");
                assert!(norms_got[5..].iter().all(|n| (n - 8.0).abs() < 1e-5));
                for domain in [KvDomain::Original, KvDomain::Rotated] {
                    let back = kv_dequantize(stream, &codes, &norms, &codec, domain, DType::F16).unwrap();
                    let back = values_of(stream, &back);
                    assert!(back[..dim].iter().all(|&y| y == 0.0));
                    assert!(back[dim..5 * dim].iter().all(|y| y.is_nan()));
                    assert!(back[5 * dim..].iter().all(|y| y.is_finite()));
                }
            }
        }
    });
}

#[test]
fn rotated_queries_and_keys_have_the_same_products() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (q, k) = (Random::new(1).values(128), Random::new(2).values(128));
        let signs = hadamard_signs(device, 128, 3).unwrap();
        let codec = KvCodec::new(device, 128, KvCodecOptions { bits: 8, signs: Some(&signs), norms: 1 }).unwrap();
        let (codes, norms) = codec.cache(1, 1).unwrap();
        let slot = device.tensor(&[0u32], [1]).unwrap();
        kv_quantize(stream, &device.tensor(&k, [1, 1, 128]).unwrap(), &slot, &codec, &codes, &norms).unwrap();
        let key = kv_dequantize(stream, &codes, &norms, &codec, KvDomain::Rotated, DType::F32).unwrap();
        let options = Hadamard { signs_before: Some(&signs), ..Default::default() };
        let query = hadamard_transform(stream, &device.tensor(&q, [1, 128]).unwrap(), options).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (got, want) = (dot(&values_of(stream, &query), &values_of(stream, &key)), dot(&q, &k));
        let size = dot(&q, &q).sqrt() * dot(&k, &k).sqrt();
        assert!((got - want).abs() < 2e-3 * size, "{got}, wanted {want}");
    });
}

#[test]
fn a_slot_outside_the_cache_writes_nothing() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let codec = KvCodec::new(device, 64, KvCodecOptions::default()).unwrap();
        let (codes, norms) = codec.cache(1, 2).unwrap();
        let x = device.tensor(&vec![1.0f32; 3 * 64], [3, 1, 64]).unwrap();
        let slots = device.tensor(&[-1i32, 1, 2], [3]).unwrap();
        kv_quantize(stream, &x, &slots, &codec, &codes, &norms).unwrap();
        let bytes = bytes_of(stream, &codes);
        assert!(bytes[..32].iter().all(|&b| b == 0) && bytes[32..].iter().any(|&b| b != 0));
        let norms = values_of(stream, &norms);
        assert!(norms[0] == 0.0 && (norms[1] - 8.0).abs() < 1e-5);
    });
}

#[test]
fn a_ring_keeps_the_newest_tokens() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let codec = KvCodec::new(device, 64, KvCodecOptions::default()).unwrap();
        let (codes, norms) = codec.cache(1, 3).unwrap();
        let x: Vec<f32> = (0..5 * 64).map(|i| (1 + i / 64) as f32).collect();
        let positions = device.tensor(&[-1i32, 4, 5, 7, 6], [5]).unwrap();
        let x = device.tensor(&x, [5, 1, 64]).unwrap();
        kv_quantize_with(stream, &x, &positions, CacheLayout::Ring, &codec, &codes, &norms).unwrap();
        // Positions 6, 7 and 5; 4 lies under 7, and -1 is none.
        assert_close(DType::F32, &values_of(stream, &norms), &[40.0, 32.0, 24.0], 40.0);
    });
}

/// More rows than a GPU has simdgroups for, which take others then.
#[test]
fn many_tokens_fill_a_ring() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (tokens, rows) = (8300, 8290);
        let codec = KvCodec::new(device, 64, KvCodecOptions::default()).unwrap();
        let (codes, norms) = codec.cache(1, rows).unwrap();
        let x: Vec<f32> = (0..tokens * 64).map(|i| (1 + i / 64) as f32).collect();
        let x = device.tensor(&x, [tokens, 1, 64]).unwrap();
        let positions = device.tensor(&(0..tokens as u32).rev().collect::<Vec<_>>(), [tokens]).unwrap();
        kv_quantize_with(stream, &x, &positions, CacheLayout::Ring, &codec, &codes, &norms).unwrap();
        let norms = values_of(stream, &norms);
        for position in tokens - rows..tokens {
            let (got, wanted) = (norms[position % rows], 8.0 * (tokens - position) as f32);
            assert!((got - wanted).abs() <= 1e-5 * wanted, "position {position}: {got}, wanted {wanted}");
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let new = |dim, options| KvCodec::new(&device, dim, options).unwrap_err().to_string();
    assert_eq!(new(96, KvCodecOptions::default()), "KvCodec: head_dim: got 96, wanted 64, 128, 256 or 512");
    assert!(new(64, KvCodecOptions { bits: 7, ..Default::default() }).contains("bits: got 7, wanted 4, 5, 6 or 8"));
    assert!(new(64, KvCodecOptions { norms: 3, ..Default::default() }).contains("norms: got 3, wanted 1 or 2"));
    let signs = hadamard_signs(&device, 128, 1).unwrap();
    let options = KvCodecOptions { signs: Some(&signs), ..Default::default() };
    assert!(new(64, options).contains("signs: got u32[4], wanted u32[2]"));

    let codec = KvCodec::new(&device, 64, KvCodecOptions::default()).unwrap();
    let (codes, norms) = codec.cache(2, 4).unwrap();
    let x = device.zeros(DType::F32, [1, 2, 64]).unwrap();
    let slot = device.zeros(DType::U32, [1]).unwrap();
    let mut error = |x: &Tensor, slots: &Tensor, codes: &Tensor, norms: &Tensor| {
        kv_quantize(stream, x, slots, &codec, codes, norms).unwrap_err().to_string()
    };
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    assert!(error(&zeros(DType::F32, [1, 2, 32]), &slot, &codes, &norms).contains("wanted [tokens, heads, 64]"));
    assert!(error(&zeros(DType::F32, [1, 3, 64]), &slot, &codes, &norms).contains("wanted the same heads"));
    assert!(error(&x, &zeros(DType::F32, [1, 1, 1]), &codes, &norms).contains("wanted i32 or u32 [1]"));
    assert!(error(&x, &slot, &zeros(DType::U8, [2, 4, 40]), &norms).contains("wanted u8 [heads, capacity, 32]"));
    assert!(
        error(&x, &slot, &codes, &zeros(DType::F32, [2, 4, 1])).contains("norms: got f32[2, 4, 1], wanted f32 [2, 4]")
    );
    let uneven = zeros(DType::U8, [2, 4, 34]).slice(2, 2..34).unwrap();
    assert!(error(&x, &slot, &uneven, &norms).contains("multiples of 4 bytes"));
    let out = zeros(DType::F32, [2, 3, 64]);
    let error = kv_dequantize_into(stream, &codes, &norms, &codec, KvDomain::Rotated, &out).unwrap_err().to_string();
    assert!(error.contains("wanted the same heads and capacity"), "{error}");
    let error = kv_dequantize(stream, &norms, &norms, &codec, KvDomain::Rotated, DType::F32).unwrap_err().to_string();
    assert!(error.contains("codes: got f32[2, 4]"), "{error}");
}
