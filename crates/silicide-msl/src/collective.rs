//! What the lanes of a simdgroup compute together.

use half::{bf16, f16};

use crate::abi::{BALLOT, MULTIPLY, MULTIPLY_16, REDUCE, Request, SHUFFLE};

/// Lanes of a simdgroup.
pub(crate) const LANES: usize = 32;

/// What a lane reads from one that takes no part: undefined in Metal, a NaN here, so that its use shows.
const NOTHING: [u32; 10] = [u32::MAX; 10];

/// Answers the requests of the lanes that take part. All have the same `op`.
pub(crate) fn answer(requests: &mut [Option<Request>; LANES]) {
    let Some(first) = requests.iter().flatten().next().copied() else { return };
    match first.op {
        REDUCE => reduce(requests, first.arg),
        SHUFFLE => shuffle(requests),
        BALLOT => ballot(requests),
        MULTIPLY => multiply(requests),
        MULTIPLY_16 => multiply_16(requests, first.arg),
        _ => {}
    }
}

fn reduce(requests: &mut [Option<Request>; LANES], arg: u32) {
    let (kind, operation, element) = (arg >> 12 & 15, arg >> 8 & 15, arg & 255);
    let combine = |a: u32, b: u32| match element {
        0 => combine_float(operation, f32::from_bits(a), f32::from_bits(b)).to_bits(),
        1 => combine_int(operation, a as i32, b as i32) as u32,
        _ => combine_uint(operation, a, b),
    };
    let values: [Option<u32>; LANES] = std::array::from_fn(|lane| requests[lane].map(|request| request.value[0]));
    let mut results = [0; LANES];
    match kind {
        // Scans go lane by lane.
        1 | 2 => {
            let mut sum = match (element, operation) {
                (0, 1) => 1f32.to_bits(),
                (_, 1) => 1,
                _ => 0,
            };
            for (value, result) in values.into_iter().zip(&mut results) {
                let Some(value) = value else { continue };
                let next = combine(sum, value);
                *result = if kind == 1 { sum } else { next };
                sum = next;
            }
        }
        // Pairs of lanes at growing distances, as the hardware does, so float sums round as a tree.
        _ => {
            let width = if kind == 3 { 4 } else { LANES };
            let mut tree = values;
            let mut distance = 1;
            while distance < width {
                let before = tree;
                tree = std::array::from_fn(|lane| match (before[lane & !distance], before[lane | distance]) {
                    (Some(a), Some(b)) => Some(combine(a, b)),
                    (a, b) => a.or(b),
                });
                distance *= 2;
            }
            results = tree.map(|value| value.unwrap_or(0));
        }
    }
    for (request, result) in requests.iter_mut().zip(results) {
        if let Some(request) = request {
            request.value[0] = result;
        }
    }
}

fn combine_float(operation: u32, a: f32, b: f32) -> f32 {
    match operation {
        0 => a + b,
        1 => a * b,
        2 => a.min(b),
        _ => a.max(b),
    }
}

fn combine_int(operation: u32, a: i32, b: i32) -> i32 {
    match operation {
        2 => a.min(b),
        3 => a.max(b),
        _ => combine_uint(operation, a as u32, b as u32) as i32,
    }
}

fn combine_uint(operation: u32, a: u32, b: u32) -> u32 {
    match operation {
        0 => a.wrapping_add(b),
        1 => a.wrapping_mul(b),
        2 => a.min(b),
        3 => a.max(b),
        4 => a & b,
        5 => a | b,
        _ => a ^ b,
    }
}

fn shuffle(requests: &mut [Option<Request>; LANES]) {
    let before = *requests;
    let first = before.iter().position(Option::is_some).unwrap_or(0);
    for (lane, request) in requests.iter_mut().enumerate() {
        let Some(request) = request else { continue };
        let (mode, by) = (request.arg >> 8, (request.arg & 255) as usize);
        // A quad is four neighbouring lanes.
        let (base, width) = if mode >= 8 { (lane & !3, 4) } else { (0, LANES) };
        let here = lane - base;
        let source = match mode & 7 {
            0 => Some(by),
            1 => Some(here ^ by),
            // Lanes that would read past the end keep their own value.
            2 => Some(here.checked_sub(by).unwrap_or(here)),
            3 => Some(if here + by < width { here + by } else { here }),
            4 => Some((here + width - by % width) % width),
            5 => Some((here + by) % width),
            _ => Some(first),
        };
        let source = source.filter(|&source| source < width).and_then(|source| before[base + source]);
        request.value = source.map_or(NOTHING, |source| source.value);
    }
}

fn ballot(requests: &mut [Option<Request>; LANES]) {
    let mask = |test: fn(&Request) -> bool| {
        requests.iter().enumerate().fold(0, |mask, (lane, r)| mask | u32::from(r.as_ref().is_some_and(test)) << lane)
    };
    let (yes, active) = (mask(|request| request.value[0] != 0), mask(|_| true));
    for request in requests.iter_mut().flatten() {
        request.value[..2].copy_from_slice(&[yes, active]);
    }
}

/// Row and first column of the two matrix elements that a lane holds.
pub(crate) fn matrix_position(lane: usize) -> (usize, usize) {
    ((lane >> 4 & 1) * 4 + (lane >> 1 & 3), (lane >> 3 & 1) * 4 + (lane & 1) * 2)
}

/// D = A B + C for 8x8 matrices; each lane brings two elements of each and takes two of D.
fn multiply(requests: &mut [Option<Request>; LANES]) {
    let mut matrices = [[[0f32; 8]; 8]; 3];
    for (lane, request) in requests.iter().enumerate() {
        let (row, column) = matrix_position(lane);
        let value = request.map_or(NOTHING, |request| request.value);
        for (matrix, pair) in matrices.iter_mut().zip(value[..6].chunks_exact(2)) {
            matrix[row][column] = f32::from_bits(pair[0]);
            matrix[row][column + 1] = f32::from_bits(pair[1]);
        }
    }
    let [a, b, c] = matrices;
    for (lane, request) in requests.iter_mut().enumerate() {
        let (row, column) = matrix_position(lane);
        let element = |column: usize| (0..8).fold(c[row][column], |sum, k| sum + a[row][k] * b[k][column]).to_bits();
        if let Some(request) = request {
            request.value[..2].copy_from_slice(&[element(column), element(column + 1)]);
        }
    }
}

/// D = A B + C for A of 16x16 and B of 16x8, of half (0) or bfloat (1), as NVIDIA's `mma.m16n8k16` lays them out: a lane brings four pairs of
/// A, two of B and four elements of C, and takes four of D. Sums are rounded once.
fn multiply_16(requests: &mut [Option<Request>; LANES], element: u32) {
    let pair = |word: u32| {
        let value = |bits: u16| match element {
            0 => f16::from_bits(bits).to_f64(),
            _ => bf16::from_bits(bits).to_f64(),
        };
        [value(word as u16), value((word >> 16) as u16)]
    };
    let mut a = [[0f64; 16]; 16];
    let mut b = [[0f64; 8]; 16];
    for (lane, request) in requests.iter().enumerate() {
        let value = request.map_or(NOTHING, |request| request.value);
        let (row, column) = (lane / 4, lane % 4 * 2);
        for i in 0..4 {
            let at = column + i / 2 * 8;
            a[row + i % 2 * 8][at..at + 2].copy_from_slice(&pair(value[i]));
        }
        for i in 0..2 {
            let [first, second] = pair(value[4 + i]);
            b[column + i * 8][row] = first;
            b[column + i * 8 + 1][row] = second;
        }
    }
    for (lane, request) in requests.iter_mut().enumerate() {
        let Some(request) = request else { continue };
        for i in 0..4 {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let sum =
                (0..16).fold(f64::from(f32::from_bits(request.value[6 + i])), |sum, k| sum + a[row][k] * b[k][column]);
            request.value[i] = (sum as f32).to_bits();
        }
    }
}
