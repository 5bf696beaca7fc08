use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Random, on_every_device, on_every_schedule};

/// Pairs in the order of their experts, and each of them in one tile of its expert.
fn check_schedule(stream: &mut Stream, ids: &[u32], slots: usize, experts: usize, rows: usize, dtype: DType) {
    // A view that begins inside its buffer.
    let padded = [&[u32::MAX; 3], ids].concat();
    let whole = stream.device().tensor_from_bytes(bytemuck::cast_slice(&padded), dtype, [padded.len()]).unwrap();
    let view = whole.slice(0, 3..padded.len()).unwrap().reshape([ids.len() / slots, slots]).unwrap();
    let schedule = schedule(stream, &view, experts, Some(rows)).unwrap();
    let Some(Grouped { order, tiles, .. }) = schedule.grouped() else {
        assert!(ids.is_empty());
        return;
    };
    let order = order.to_vec::<u32>(stream).unwrap();
    let expert = |pair: u32| ids[pair as usize].min(experts as u32);
    let mut want: Vec<u32> = (0..ids.len() as u32).collect();
    want.sort_by_key(|&pair| expert(pair));
    assert_eq!(order, want);
    let mut next = 0;
    for tile in tiles.to_vec::<u32>(stream).unwrap().chunks(3) {
        let &[of, first, count] = tile else { unreachable!("three each") };
        assert!(count as usize <= rows);
        if count > 0 {
            assert_eq!(first, next, "tiles follow each other");
            next = first + count;
            assert!(order[first as usize..next as usize].iter().all(|&pair| expert(pair) == of));
        }
    }
    assert_eq!(next as usize, ids.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn groups_by_expert(
        tokens in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), 1usize..200],
        slots in 1usize..9,
        experts in prop_oneof![Just(0usize), Just(1), Just(60), Just(128), 1usize..70],
        rows in prop_oneof![Just(FEW), Just(MANY), Just(1), Just(5000)],
        crowded: bool,
        signed: bool,
        seed: u64,
    ) {
        let random = &mut Random::new(seed);
        // A few of no expert; where it is crowded one expert has most.
        let mut id = || match random.below(10) {
            0 => [experts as u32, u32::MAX, experts as u32 + 5][random.below(3)],
            1..7 if crowded => experts as u32 / 2,
            _ => random.below(experts.max(1)) as u32,
        };
        let ids: Vec<u32> = (0..tokens * slots).map(|_| id()).collect();
        let dtype = if signed { DType::I32 } else { DType::U32 };
        on_every_device(|stream| check_schedule(stream, &ids, slots, experts, rows, dtype));
    }
}

#[test]
fn any_schedule_groups_alike() {
    let ids: Vec<u32> = (0..90).map(|i| i * 7 % 13).collect();
    on_every_schedule(|stream| check_schedule(stream, &ids, 3, 11, FEW, DType::U32));
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let ids = device.zeros(DType::F32, [2, 2]).unwrap();
    let error = expert_schedule(stream, &ids, 4).unwrap_err().to_string();
    assert_eq!(error, "expert_schedule: ids: got f32[2, 2], wanted u32 or i32 [tokens, slots], contiguous");
    let ids = device.zeros(DType::U32, [4, 2]).unwrap().slice(1, 0..1).unwrap();
    assert!(expert_schedule(stream, &ids, 4).unwrap_err().to_string().contains("contiguous"));
}
