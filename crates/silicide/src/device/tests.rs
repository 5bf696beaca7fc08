//! Memory, views of it and the order of work on it, where others went wrong.

use crate::ops::{Binary, Unary, binary_into, rms_norm, unary, unary_into};
use crate::testing::{Random, on_every_device};
use crate::{DType, Tensor};

/// D-30: a view of a view is read and written where it lies, and is as large as it is and not as its buffer.
#[test]
fn d_30_views_of_views_are_where_and_as_large_as_they_say() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let whole = device.tensor(&(0..60).map(|i| i as f32).collect::<Vec<_>>(), [60]).unwrap();
        let view = whole.slice(0, 10..50).unwrap().slice(0, 5..25).unwrap().slice(0, 3..7).unwrap();
        assert_eq!(view.to_vec::<f32>(stream).unwrap(), [18.0, 19.0, 20.0, 21.0]);
        assert_eq!((view.elements(), view.byte_range()), (4, 72..88));
        stream.write(&view, &[-1.0f32, -2.0, -3.0, -4.0]).unwrap();
        let all = whole.to_vec::<f32>(stream).unwrap();
        assert_eq!(all[17..23], [17.0, -1.0, -2.0, -3.0, -4.0, 22.0]);

        // There is room in the buffer, but not in the view.
        let x = device.zeros(DType::F32, [2, 8]).unwrap();
        assert!(rms_norm(stream, &x, &view, 1e-5).is_err());
        assert!(stream.write(&view, &[0.0f32; 5]).is_err());
        assert!(stream.read(&view, &mut [0.0f32; 5]).is_err());
        assert!(view.reshape([5]).is_err());
        assert!(Tensor::new(whole.buffer().clone(), whole.buffer().len() - 12, DType::F32, [4]).is_err());

        // The host reads what work before it has written.
        let y = unary(stream, Unary::Neg, &view).unwrap();
        assert_eq!(y.to_vec::<f32>(stream).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    });
}

/// D-31: slices add up, and one that does not fit its view is an error, even where the buffer goes on.
#[test]
fn d_31_slices_add_up_and_say_where_they_do_not_fit() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let whole = device.tensor(&(0..24).collect::<Vec<i32>>(), [4, 6]).unwrap();
        let view = whole.slice(0, 1..3).unwrap().slice(1, 2..5).unwrap();
        assert_eq!(view.slice(0, 1..2).unwrap().slice(1, 1..3).unwrap().to_vec::<i32>(stream).unwrap(), [15, 16]);
        #[allow(clippy::reversed_empty_ranges)]
        for (axis, range) in [(0, 0..3), (0, 2..3), (1, 3..4), (1, 2..1), (2, 0..1), (0, 0..usize::MAX)] {
            assert!(view.slice(axis, range.clone()).is_err(), "{range:?} of axis {axis}");
        }
        assert_eq!(view.slice(0, 2..2).unwrap().elements(), 0);
    });
}

/// D-32: memory that is used again is large enough for its next user, is used by no other, and not before earlier work is done.
#[test]
fn d_32_memory_is_used_again_where_it_fits_and_nothing_lives_in_it() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(1);
        let mut live: Vec<Tensor> = Vec::new();
        for _ in 0..300 {
            // Sizes that are no powers of two, and just past one.
            let len = [3000, 4097, 1023, 1025, 5][random.below(5)] + random.below(40);
            let t = stream.empty(DType::U8, [len]).unwrap();
            assert!(t.buffer().len() >= len);
            // A view keeps the memory that its tensor lets go.
            let view = t.slice(0, len / 2..len).unwrap();
            drop(t);
            assert!(live.iter().all(|other| !other.buffer().is_same(view.buffer())));
            live.push(view);
            if live.len() > 6 {
                live.swap_remove(random.below(6));
            }
        }

        let x = device.tensor(&random.values(5000), [5000]).unwrap();
        let first = unary(stream, Unary::Neg, &x).unwrap();
        let memory = first.buffer().clone();
        let second = unary(stream, Unary::Neg, &first).unwrap();
        drop(first);
        let held = stream.empty(DType::F32, [5000]).unwrap();
        assert!(!held.buffer().is_same(&memory), "a handle is left");
        drop((held, memory));
        let others: Vec<Tensor> = (0..3).map(|_| unary(stream, Unary::Abs, &x).unwrap()).collect();
        let want = x.to_vec::<f32>(stream).unwrap();
        assert_eq!(second.to_vec::<f32>(stream).unwrap(), want);
        for other in others {
            assert!(other.to_vec::<f32>(stream).unwrap().iter().zip(&want).all(|(a, b)| *a == b.abs()));
        }
    });
}

/// D-33: views of one buffer that are apart wait for nothing; those that overlap by an element do.
#[test]
fn d_33_views_that_are_apart_need_no_barrier() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let whole = device.tensor(&[1.0f32; 96], [96]).unwrap();
        let part = |from: usize| whole.slice(0, from..from + 32).unwrap();
        for (second, barriers) in [(64, 0), (32, 0), (31, 1), (0, 1)] {
            let (plan, ()) = stream
                .record(|s| {
                    binary_into(s, Binary::Add, &part(0), 1.0, &part(0))?;
                    unary_into(s, Unary::Neg, &part(second), &part(second))
                })
                .unwrap();
            assert_eq!(plan.barriers(), barriers, "from {second}");
        }
        // And without one the results are those of one after the other.
        let (plan, ()) = stream
            .record(|s| {
                binary_into(s, Binary::Add, &part(0), 1.0, &part(0))?;
                unary_into(s, Unary::Neg, &part(31), &part(31))
            })
            .unwrap();
        stream.replay(&plan).unwrap();
        let got = whole.to_vec::<f32>(stream).unwrap();
        assert!(got[..31].iter().all(|&x| x == 2.0) && got[31] == -2.0 && got[32..63].iter().all(|&x| x == -1.0));
        assert!(got[63..].iter().all(|&x| x == 1.0));
    });
}
