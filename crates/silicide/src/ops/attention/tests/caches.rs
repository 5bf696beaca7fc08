//! Rings and pages.

use super::*;

/// D-20: a ring that has wrapped is its positions and not its rows, with room to spare beside the window or without.
#[test]
fn d_20_a_wrapped_ring_is_the_cache_that_was_not_wrapped() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(20);
        let (heads, kv_heads, dim, total) = (4, 2, 48, 203);
        for dtype in [DType::F32, DType::BF16] {
            let make = |random: &mut Random, n, heads| {
                tensor_of(device, dtype, &random.values(n * heads * dim), [n, heads, dim])
            };
            let (k, v) = (make(&mut random, total, kv_heads), make(&mut random, total, kv_heads));
            for (queries, window, rows) in [(1, 16, 16), (1, 16, 23), (5, 16, 20), (40, 16, 55), (40, 33, 90)] {
                let ring = [0, 1]
                    .map(|_| tensor_of(device, dtype, &vec![f32::NAN; rows * kv_heads * dim], [rows, kv_heads, dim]));
                let mut written = 0;
                while written + queries <= total {
                    let range = written..written + queries;
                    written += queries;
                    let part = |t: &Tensor| t.slice(0, range.clone()).unwrap();
                    let positions =
                        device.tensor(&range.clone().map(|p| p as u32).collect::<Vec<_>>(), [queries]).unwrap();
                    let (layout, [kc, vc]) = (CacheLayout::Ring, &ring);
                    crate::ops::kv_write_with(stream, &part(&k), &part(&v), &positions, layout, kc, vc).unwrap();
                    // Not every step attends: the first, one past the first wrap, and the last.
                    if range.start != 0
                        && !(range.start..range.end + queries).contains(&(rows + 1))
                        && written + queries <= total
                    {
                        continue;
                    }
                    let q = make(&mut random, queries, heads);
                    let mask = Mask::Positions(&positions);
                    let options =
                        Attention { scale: 0.3, mask, window: Some(window), softcap: None, sinks: None, cache: layout };
                    let wrapped = attention(stream, &q, kc, vc, options).unwrap();
                    let options = Attention { cache: CacheLayout::Rows, ..options };
                    let plain = attention(stream, &q, &k, &v, options).unwrap();
                    let (wrapped, plain) = (values_of(stream, &wrapped), values_of(stream, &plain));
                    if device.as_cpu().is_some() {
                        assert_eq!(wrapped, plain);
                    }
                    // A GPU shares keys out by the rows of the cache.
                    let plain: Vec<f64> = plain.iter().map(|&x| x as f64).collect();
                    assert_close(dtype, &wrapped, &plain, if queries > 16 && dtype != DType::F32 { 1e3 } else { 2.0 });
                }
            }
        }
    });
}

/// A chunk and then one token at a time, as mlx-lm's RotatingKVCache has them, in a ring of as many rows.
#[test]
fn d_20_a_ring_gives_what_a_rotating_cache_of_mlx_lm_gives() {
    let golden = Golden::read("attention");
    let cases = golden.cases();
    let p = &cases.iter().find(|(case, _)| case == "rotating").unwrap().1;
    let [window, rows, chunk] = ["window", "rows", "chunk"].map(|name| p[name].as_u64().unwrap() as usize);
    assert_eq!(rows, window + chunk - 1);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let [q, k, v, exact] = ["q", "k", "v", "exact"].map(|name| {
            let t = golden.tensor(device, &format!("rotating.{name}"));
            t.reshape([t.dim(1), t.dim(2), t.dim(3)]).unwrap().permute(&[1, 0, 2]).unwrap()
        });
        let [kc, vc] = [0, 1].map(|_| device.zeros(DType::F32, [rows, k.dim(1), k.dim(2)]).unwrap());
        let mut start = 0;
        while start < q.dim(0) {
            let tokens = start..start + if start == 0 { chunk } else { 1 };
            start = tokens.end;
            let part = |t: &Tensor| t.slice(0, tokens.clone()).unwrap();
            let positions =
                device.tensor(&tokens.clone().map(|p| p as u32).collect::<Vec<_>>(), [tokens.len()]).unwrap();
            let cache = CacheLayout::Ring;
            crate::ops::kv_write_with(stream, &part(&k), &part(&v), &positions, cache, &kc, &vc).unwrap();
            let mask = Mask::Positions(&positions);
            let scale = p["scale"].as_f64().unwrap() as f32;
            let options = Attention { scale, mask, window: Some(window), softcap: None, sinks: None, cache };
            let out = attention(stream, &part(&q), &kc, &vc, options).unwrap();
            let want = crate::ops::copy(stream, &part(&exact)).unwrap();
            let want: Vec<f64> = values_of(stream, &want).iter().map(|&x| x as f64).collect();
            assert_close(DType::F32, &values_of(stream, &out), &want, 4.0);
        }
    });
}

#[test]
fn a_ring_has_the_newest_of_its_positions_that_queries_have_come_to() {
    on_every_device(|stream| {
        let ring = Case { queries: 3, keys: 300, dim: 64, cache: Kept::Ring(70), shows: Shows::From(150), ..PLAIN };
        check_case(stream, &ring);
        for (queries, shows) in [(1, 69), (1, 70), (1, 0), (3, -2), (3, -3), (20, 100), (80, 90)] {
            for (types, window) in [(0, None), (4, Some(9)), (8, Some(64))] {
                check_case(stream, &Case { queries, shows: Shows::From(shows), types, window, sinks: true, ..ring });
            }
        }
        check_case(stream, &Case { queries: 2, cache: Kept::Ring(1), ..ring });
        check_case(stream, &Case { queries: 20, cache: Kept::Ring(7), types: 8, head_major: true, ..ring });
    });
}

#[test]
fn pages_are_found_by_their_table_and_may_be_missing() {
    on_every_device(|stream| {
        let pages = Case { queries: 3, keys: 300, dim: 64, shows: Shows::From(150), ..PLAIN };
        for (types, (size, holes)) in
            [(16, false), (16, true), (1, true), (7, true), (512, false)].into_iter().enumerate()
        {
            for queries in [1, 3, 40] {
                let cache = Kept::Pages(size, holes);
                check_case(stream, &Case { queries, cache, types: types * 2, ..pages.clone() });
                let shows = Shows::From(-2);
                check_case(
                    stream,
                    &Case { queries, cache, types: types * 2, shows, window: Some(9), sinks: true, ..pages.clone() },
                );
            }
        }
        check_case(stream, &Case { cache: Kept::Pages(16, true), head_major: true, window: Some(40), ..pages.clone() });
        // Positions past the table, and a cache without a page.
        check_case(stream, &Case { cache: Kept::Pages(16, false), keys: 128, queries: 20, types: 8, ..pages });
        let device = &stream.device().clone();
        let (q, k) = (device.zeros(DType::F32, [2, 1, 4]).unwrap(), device.zeros(DType::F32, [0, 16, 1, 4]).unwrap());
        let (table, positions) = (device.tensor(&[0u32; 3], [3]).unwrap(), device.tensor(&[0u32, 40], [2]).unwrap());
        let (mask, cache) = (Mask::Positions(&positions), CacheLayout::Pages(&table));
        let options = Attention { scale: 1.0, mask, window: None, softcap: None, sinks: None, cache };
        let out = attention(stream, &q, &k, &k, options).unwrap();
        assert_eq!(values_of(stream, &out), [0.0; 8]);
    });
}
