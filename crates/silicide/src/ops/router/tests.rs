use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, on_every_device, on_every_schedule, rounded};

/// The scores of one token's experts in f64, and what they are chosen by.
fn scores_and_choice(logits: &[f32], options: &Router, bias: Option<&[f32]>) -> (Vec<f64>, Vec<f64>) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let mut scores: Vec<f64> = logits
        .iter()
        .map(|&x| match options.score {
            _ if x.is_nan() => f64::NAN,
            RouterScore::Softmax if x == f32::NEG_INFINITY => 0.0,
            RouterScore::Softmax => (x as f64 - most).exp(),
            RouterScore::Sigmoid => 1.0 / (1.0 + (-x as f64).exp()),
            RouterScore::SqrtSoftplus => ((x as f64).max(0.0) + (-x.abs() as f64).exp().ln_1p()).sqrt(),
        })
        .collect();
    let total: f64 = scores.iter().sum();
    if options.score == RouterScore::Softmax && total != 0.0 {
        scores.iter_mut().for_each(|s| *s /= total);
    }
    let mut choice: Vec<f64> = scores.iter().enumerate().map(|(i, s)| s + bias.map_or(0.0, |b| b[i] as f64)).collect();
    let sums = options.groups.is_some_and(|g| g.score == GroupScore::SumOfTopTwo);
    if bias.is_none() && !sums {
        // Logits order as their scores, and have no ties by rounding.
        choice = logits.iter().map(|&x| x as f64).collect();
    }
    (scores, choice)
}

/// The indices of the greatest, in falling order; of equals the first is first, and NaN before all.
fn best(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (values[a], values[b]);
        b.is_nan().cmp(&a.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
    });
    order.truncate(k);
    order
}

/// The score of each group.
fn judge(choice: &[f64], groups: ExpertGroups) -> Vec<f64> {
    let two = |members: &[f64]| {
        let two = best(members, 2);
        match groups.score {
            GroupScore::SumOfTopTwo => members[two[0]] + members[two[1]],
            GroupScore::Max => members[two[0]],
        }
    };
    choice.chunks(choice.len() / groups.n_group).map(two).collect()
}

/// Whether no rounding of f32 can decide which groups are open.
fn groups_are_apart(logits: &[f32], options: &Router, bias: Option<&[f32]>) -> bool {
    let Some(groups) = options.groups else { return true };
    let mut judged = judge(&scores_and_choice(logits, options, bias).1, groups);
    judged.sort_by(|a, b| b.total_cmp(a));
    judged.get(groups.topk_group).is_none_or(|next| judged[groups.topk_group - 1] - next > 1e-5)
}

/// The definition in f64: ids and weights of one token.
fn reference(
    logits: &[f32],
    options: &Router,
    bias: Option<&[f32]>,
    expert_scale: Option<&[f32]>,
) -> (Vec<u32>, Vec<f64>) {
    let (scores, choice) = scores_and_choice(logits, options, bias);
    let mut open = vec![true; logits.len()];
    if let Some(groups) = options.groups {
        let size = logits.len() / groups.n_group;
        let groups = best(&judge(&choice, groups), groups.topk_group);
        open.iter_mut().enumerate().for_each(|(i, open)| *open = groups.contains(&(i / size)));
    }
    let ids: Vec<usize> = best(&choice, logits.len()).into_iter().filter(|&i| open[i]).take(options.top_k).collect();
    let mut weights: Vec<f64> = ids.iter().map(|&i| scores[i]).collect();
    if options.renormalize {
        let sum = weights.iter().sum::<f64>() + 1e-20;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    for (w, &i) in weights.iter_mut().zip(&ids) {
        *w *= options.routed_scale as f64 * expert_scale.map_or(1.0, |s| s[i] as f64);
    }
    (ids.into_iter().map(|i| i as u32).collect(), weights)
}

#[track_caller]
fn assert_routes(
    stream: &mut Stream,
    logits: &Tensor,
    values: &[f32],
    options: Router,
    bias: Option<&[f32]>,
    expert_scale: Option<&[f32]>,
) {
    let device = &stream.device().clone();
    let experts = logits.dim(-1);
    let on_device = |x: Option<&[f32]>| x.map(|x| device.tensor(x, [experts]).unwrap());
    let (bias_t, scale_t) = (on_device(bias), on_device(expert_scale));
    let options = Router { selection_bias: bias_t.as_ref(), per_expert_scale: scale_t.as_ref(), ..options };
    let (ids, weights) = router(stream, logits, options).unwrap();
    assert_eq!(ids.dim(-1), options.top_k);
    let (ids, weights) = (ids.to_vec::<u32>(stream).unwrap(), weights.to_vec::<f32>(stream).unwrap());
    let want: Vec<_> = values.chunks(experts).map(|row| reference(row, &options, bias, expert_scale)).collect();
    assert_eq!(ids, want.iter().flat_map(|(ids, _)| ids.clone()).collect::<Vec<_>>(), "{options:?}");
    for (&w, want) in weights.iter().zip(want.iter().flat_map(|(_, w)| w)) {
        let same = w.is_nan() && want.is_nan() || (w as f64 - want).abs() <= 2e-6 * want.abs() + 1e-37;
        assert!(same, "got {w}, wanted {want}: {options:?}");
    }
}

/// Values that are far enough apart for f32 and f64 to order what is made from them alike: a shuffle of a range.
fn apart(random: &mut Random, n: usize, range: f32) -> Vec<f32> {
    let mut values: Vec<f32> = (0..n).map(|i| (i as f32 + 0.5) * range / n as f32 - range / 2.0).collect();
    (1..n).rev().for_each(|i| values.swap(i, random.below(i + 1)));
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn follows_the_definition(
        tokens in prop_oneof![Just(0usize), Just(1), Just(31), 1usize..7],
        experts in prop_oneof![Just(1usize), Just(31), Just(33), Just(40), Just(60), Just(65), Just(128), Just(512)],
        top_k in prop_oneof![Just(1usize), Just(8), Just(33), 0usize..40],
        dtype in 0usize..3,
        score in 0usize..3,
        has_bias: bool,
        has_scale: bool,
        renormalize: bool,
        seed: u64,
    ) {
        let top_k = top_k.min(experts);
        let score = [RouterScore::Softmax, RouterScore::Sigmoid, RouterScore::SqrtSoftplus][score];
        on_every_device(|stream| {
            let random = &mut Random::new(seed);
            let dtype = DType::FLOATS[dtype];
            // Ties of logits are told from one another by place; with a bias there are none.
            let values: Vec<f32> = match has_bias {
                true => (0..tokens).flat_map(|_| vec![random.value(); experts]).collect(),
                false => (0..tokens * experts).map(|_| (random.value() * 8.0).round() / 4.0).collect(),
            };
            let values = rounded(dtype, &values);
            let bias = has_bias.then(|| apart(random, experts, 3.0));
            let expert_scale = has_scale.then(|| random.values(experts));
            let logits = random.tensor(&stream.device().clone(), dtype, &values, [tokens, experts]);
            let options = Router { top_k, score, renormalize, routed_scale: 2.5, ..Router::default() };
            assert_routes(stream, &logits, &values, options, bias.as_deref(), expert_scale.as_deref());
        });
    }

    #[test]
    fn follows_the_definition_in_groups(
        n_group in prop_oneof![Just(1usize), Just(3), Just(8), Just(33)],
        size in 2usize..9,
        topk_group in 1usize..9,
        top_k in 1usize..9,
        max: bool,
        has_bias: bool,
        score in 0usize..2,
        seed: u64,
    ) {
        let (topk_group, experts) = (topk_group.min(n_group), n_group * size);
        let top_k = top_k.min(topk_group * size);
        let group_score = if max { GroupScore::Max } else { GroupScore::SumOfTopTwo };
        let random = &mut Random::new(seed);
        let bias = has_bias.then(|| apart(random, experts, 2.0));
        // Beside a bias scores are all the same, so that sums seldom come close.
        let values: Vec<f32> = match has_bias {
            true => vec![0.5; 3 * experts],
            false => (0..3).flat_map(|_| apart(random, experts, 4.0)).collect(),
        };
        let groups = Some(ExpertGroups { n_group, topk_group, score: group_score });
        let score = [RouterScore::Softmax, RouterScore::Sigmoid][score];
        let options = Router { top_k, score, groups, ..Router::default() };
        prop_assume!(values.chunks(experts).all(|row| groups_are_apart(row, &options, bias.as_deref())));
        on_every_device(|stream| {
            let random = &mut Random::new(seed);
            let logits = random.tensor(&stream.device().clone(), DType::F32, &values, [3, experts]);
            assert_routes(stream, &logits, &values, options, bias.as_deref(), None);
        });
    }
}

/// Sixty experts are among them, and every weight is checked.
#[test]
fn agrees_with_transformers_and_mlx_lm() {
    let golden = Golden::read("router");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, params) in golden.cases() {
            let optional = |name: &str| {
                let name = format!("{case}.{name}");
                golden.has(&name).then(|| golden.tensor(device, &name))
            };
            let (bias, expert_scale) = (optional("bias"), optional("expert_scale"));
            let options = Router {
                top_k: params["top_k"].as_u64().unwrap() as usize,
                score: match params["score"].as_str().unwrap() {
                    "softmax" => RouterScore::Softmax,
                    "sigmoid" => RouterScore::Sigmoid,
                    _ => RouterScore::SqrtSoftplus,
                },
                selection_bias: bias.as_ref(),
                groups: params["groups"].as_array().map(|groups| ExpertGroups {
                    n_group: groups[0].as_u64().unwrap() as usize,
                    topk_group: groups[1].as_u64().unwrap() as usize,
                    score: if groups[2] == "max" { GroupScore::Max } else { GroupScore::SumOfTopTwo },
                }),
                renormalize: params["renormalize"].as_bool().unwrap(),
                routed_scale: params["routed_scale"].as_f64().unwrap() as f32,
                per_expert_scale: expert_scale.as_ref(),
            };
            let (ids, weights) = router(stream, &golden.tensor(device, &format!("{case}.logits")), options).unwrap();
            let want = golden.tensor(device, &format!("{case}.ids"));
            assert_eq!(ids.to_vec::<u32>(stream).unwrap(), want.to_vec::<u32>(stream).unwrap(), "{case}");
            let weights = weights.to_vec::<f32>(stream).unwrap();
            for (w, want) in weights.into_iter().zip(golden.exact_values(&format!("{case}.exact"))) {
                assert!((w as f64 - want).abs() <= 1e-6 * want.abs(), "{case}: got {w}, wanted {want}");
            }
        }
    });
}

/// D-07: numbers of experts that are no powers of two lose none.
#[test]
fn d_07_sixty_experts_keep_their_weights() {
    on_every_device(|stream| {
        let random = &mut Random::new(2);
        for experts in [20, 33, 40, 60] {
            let values = apart(random, 3 * experts, 9.0);
            let logits = random.tensor(&stream.device().clone(), DType::F32, &values, [3, experts]);
            // All of them, so that each shows.
            for top_k in [8, experts] {
                assert_routes(stream, &logits, &values, Router { top_k, ..Router::default() }, None, None);
            }
        }
    });
}

/// D-06: the choice does not hang on which thread is first.
#[test]
fn d_06_any_schedule_routes_alike() {
    on_every_schedule(|stream| {
        let random = &mut Random::new(1);
        let values = apart(random, 5 * 65, 9.0);
        let logits = random.tensor(&stream.device().clone(), DType::F32, &values, [5, 65]);
        let groups = Some(ExpertGroups { n_group: 5, topk_group: 3, score: GroupScore::Max });
        assert_routes(stream, &logits, &values, Router { top_k: 6, groups, ..Router::default() }, None, None);
    });
}

#[test]
fn nan_infinities_and_scores_that_vanish() {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let rows = [[1.0, NAN, 2.0, 3.0], [-INF; 4], [0.0, -INF, 1.0, -INF], [-200.0; 4], [-0.0, 0.0, -0.0, -1.0]];
        let values = rows.concat();
        let logits = device.tensor(&values, [rows.len(), 4]).unwrap();
        for score in [RouterScore::Softmax, RouterScore::Sigmoid] {
            for renormalize in [true, false] {
                let options = Router { top_k: 3, score, renormalize, ..Router::default() };
                assert_routes(stream, &logits, &values, options, None, None);
            }
        }
        // An infinity has no softmax, but a place.
        let logits = device.tensor(&[1.0, INF, 2.0], [1, 3]).unwrap();
        let (ids, weights) = router(stream, &logits, Router { top_k: 2, ..Router::default() }).unwrap();
        assert_eq!(ids.to_vec::<u32>(stream).unwrap(), [1, 2]);
        assert!(weights.to_vec::<f32>(stream).unwrap().iter().all(|w| w.is_nan()));
    });
}

/// D-17: the scale of each expert comes after the renormalisation, and `top_k` has no limit but the experts.
#[test]
fn d_17_weights_are_not_renormalised_after_the_scale_of_each_expert() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let scale: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let scale = device.tensor(&scale, [40]).unwrap();
        let logits = device.zeros(DType::F32, [1, 40]).unwrap();
        let options = Router { top_k: 40, per_expert_scale: Some(&scale), ..Router::default() };
        let (_, weights) = router(stream, &logits, options).unwrap();
        let sum: f32 = weights.to_vec::<f32>(stream).unwrap().iter().sum();
        assert!((sum - 19.5).abs() < 1e-4, "{sum}");
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let logits = device.zeros(DType::F32, [2, 12]).unwrap();
    let mut message = |options: Router| router(stream, &logits, options).unwrap_err().to_string();
    let some = Router::default();
    assert_eq!(message(Router { top_k: 13, ..some }), "router: top_k: got 13, wanted at most the 12 experts");
    let groups = |n_group, topk_group, score| Some(ExpertGroups { n_group, topk_group, score });
    assert_eq!(
        message(Router { groups: groups(5, 1, GroupScore::Max), ..some }),
        "router: groups: got 5 groups of 12 experts, wanted groups of one size"
    );
    assert_eq!(
        message(Router { groups: groups(12, 2, GroupScore::SumOfTopTwo), ..some }),
        "router: groups: got 12 groups of 12 experts, wanted two experts in each to sum"
    );
    assert_eq!(
        message(Router { top_k: 4, groups: groups(4, 1, GroupScore::Max), ..some }),
        "router: groups: got 1 of 4 groups of 3, wanted 4 experts in them"
    );
    let bias = device.zeros(DType::BF16, [12]).unwrap();
    assert_eq!(
        message(Router { selection_bias: Some(&bias), ..some }),
        "router: selection_bias: got bf16[12], wanted f32 [12], contiguous"
    );
    let integers = device.zeros(DType::U32, [2, 12]).unwrap();
    let error = router(stream, &integers, some).unwrap_err().to_string();
    assert_eq!(error, "router: logits: got u32[2, 12], wanted floats [.., experts]");
    let many = device.zeros(DType::F32, [1, 4097]).unwrap();
    assert!(router(stream, &many, some).unwrap_err().to_string().contains("at most 4096 experts"));
    let ids = device.zeros(DType::U32, [2, 1]).unwrap();
    let error = router_into(stream, &logits, some, &ids, &ids).unwrap_err().to_string();
    assert_eq!(error, "router: weights: got u32[2, 1], wanted f32[2, 1], contiguous");
}
