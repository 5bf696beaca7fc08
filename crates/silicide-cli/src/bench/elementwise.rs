//! Ops on elements and on places: arithmetic, conversion, copies, lookups.

use silicide::ops::{self, Binary, Compare, Gate, Resize, Unary};
use silicide::{DType, Tensor};

use super::case::{Case, Setup, call, keep};
use super::models::{ANY, Dims, LLAMA, QWEN_27B, QWEN_35B, VISION};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [1, 512, 4096] {
        cases.push(glu(LLAMA, tokens));
    }
    cases.push(glu_halves(QWEN_35B, 8 * 4096));
    let hidden = LLAMA.hidden;
    for tokens in [1, 8192] {
        cases.push(binary("add", Binary::Add, tokens, hidden));
    }
    cases.push(Case::new("binary", LLAMA.name, "mul, 8192 x 4096 by a row", |s| {
        let (a, b) = (s.input(s.float(), [8192, 4096])?, s.input(s.float(), [4096])?);
        let out = s.output(s.float(), [8192, 4096])?;
        call(move |stream| ops::binary_into(stream, Binary::Mul, &a, &b, &out))
    }));
    for tokens in [1, 8192] {
        cases.push(unary("silu", Unary::Silu, tokens, hidden));
    }
    for (name, function) in [
        ("exp", Unary::Exp),
        ("gelu_erf", Unary::GeluErf),
        ("clamp", Unary::Clamp { min: -0.5, max: 0.5 }),
        ("softcap", Unary::Softcap { cap: 30.0 }),
    ] {
        cases.push(unary(name, function, 8192, hidden));
    }
    for (from, to) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::F32, DType::F16)] {
        cases.push(cast(from, to, 8192, hidden));
    }
    cases.push(cast(DType::BF16, DType::F32, 1, QWEN_27B.vocab));
    cases.extend(copies());
    cases.extend(choices());
    cases.extend(lookups());
    for (from, to) in [(48, [64, 96]), (48, [192, 192])] {
        cases.push(resize(from, to, 1152));
    }
    cases
}

fn glu(model: Dims, tokens: usize) -> Case {
    let dim = model.intermediate;
    Case::new("glu", model.name, format!("silu, {tokens} x {dim}"), move |s| {
        let (gate, up) = (s.input(s.float(), [tokens, dim])?, s.input(s.float(), [tokens, dim])?);
        let out = s.output(s.float(), [tokens, dim])?;
        call(move |stream| ops::glu_into(stream, Gate::Silu, &gate, &up, &out))
    })
}

fn glu_halves(model: Dims, rows: usize) -> Case {
    let dim = model.intermediate;
    Case::new("glu_halves", model.name, format!("silu, {rows} x 2 x {dim}"), move |s| {
        let x = s.input(s.float(), [rows, 2 * dim])?;
        s.writes(rows * dim * s.float().size());
        keep(move |stream| ops::glu_halves(stream, Gate::Silu, &x))
    })
}

fn binary(name: &str, op: Binary, tokens: usize, dim: usize) -> Case {
    Case::new("binary", LLAMA.name, format!("{name}, {tokens} x {dim}"), move |s| {
        let (a, b) = (s.input(s.float(), [tokens, dim])?, s.input(s.float(), [tokens, dim])?);
        let out = s.output(s.float(), [tokens, dim])?;
        call(move |stream| ops::binary_into(stream, op, &a, &b, &out))
    })
}

fn unary(name: &str, function: Unary, tokens: usize, dim: usize) -> Case {
    Case::new("unary", LLAMA.name, format!("{name}, {tokens} x {dim}"), move |s| {
        let (x, out) = (s.input(s.float(), [tokens, dim])?, s.output(s.float(), [tokens, dim])?);
        call(move |stream| ops::unary_into(stream, function, &x, &out))
    })
}

fn cast(from: DType, to: DType, tokens: usize, dim: usize) -> Case {
    Case::new("cast", ANY, format!("{from} to {to}, {tokens} x {dim}"), move |s| {
        let (x, out) = (s.input(from, [tokens, dim])?, s.output(to, [tokens, dim])?);
        call(move |stream| ops::cast_into(stream, &x, &out))
    })
}

fn copies() -> Vec<Case> {
    let copy = |shape: &'static str, view: fn(&Tensor) -> silicide::Result<Tensor>| {
        Case::new("copy", ANY, shape, move |s| {
            let x = view(&s.input(s.float(), [8192, 32, 128])?)?;
            let out = s.output(s.float(), *x.shape())?;
            call(move |stream| ops::copy_into(stream, &x, &out))
        })
    };
    vec![
        copy("8192 x 4096", |x| Ok(x.clone())),
        copy("8192 x 32 x 128, heads first", |x| x.permute(&[1, 0, 2])),
        copy("8192 x 4096, transposed", |x| x.reshape([8192, 4096])?.permute(&[1, 0])),
        Case::new("concat", ANY, "2 of 8192 x 2048, along rows", |s| {
            let (a, b) = (s.input(s.float(), [8192, 2048])?, s.input(s.float(), [8192, 2048])?);
            s.writes(8192 * 4096 * s.float().size());
            keep(move |stream| ops::concat(stream, &[&a, &b], 1))
        }),
        Case::new("full", ANY, "8192 x 4096", |s| {
            let out = s.output(s.float(), [8192, 4096])?;
            call(move |stream| ops::full_into(stream, 0.5, &out))
        }),
        Case::new("arange", ANY, "f32, 2^24", |s| {
            s.writes(4 << 24);
            keep(|stream| ops::arange(stream, DType::F32, 0.0, 1.0, 1 << 24))
        }),
    ]
}

fn choices() -> Vec<Case> {
    /// Bytes of 0 and 1.
    fn flags(s: &mut Setup, rows: usize, columns: usize) -> silicide::Result<Tensor> {
        s.reads(rows * columns);
        let bytes: Vec<u8> = (0..rows * columns).map(|i| (i * 7 % 3 == 0).into()).collect();
        s.device().tensor_from_bytes(&bytes, DType::Bool, [rows, columns])
    }
    vec![
        Case::new("compare", ANY, "less than a number, 8192 x 4096", |s| {
            let (a, out) = (s.input(s.float(), [8192, 4096])?, s.output(DType::Bool, [8192, 4096])?);
            call(move |stream| ops::compare_into(stream, Compare::Less, &a, 0.25, &out))
        }),
        Case::new("select", ANY, "a mask, 4096 x 4096", |s| {
            let (condition, a) = (flags(s, 4096, 4096)?, s.input(s.float(), [4096, 4096])?);
            let out = s.output(s.float(), [4096, 4096])?;
            call(move |stream| ops::select_into(stream, &condition, &a, f32::NEG_INFINITY, &out))
        }),
    ]
}

fn lookups() -> Vec<Case> {
    let gather = |ids: usize| {
        Case::new("gather", LLAMA.name, format!("{ids} rows of [32768, 4096]"), move |s| {
            let (x, ids_of_copy) = (s.part(s.float(), [32768, 4096])?, s.ids(ids, 32768)?);
            s.reads(ids * 4096 * s.float().size());
            let out = s.output(s.float(), [ids, 4096])?;
            call(move |stream| ops::gather_into(stream, &x, &ids_of_copy, &out))
        })
    };
    let take = |rows: usize, n: usize, taken: usize| {
        Case::new("take_along_axis", ANY, format!("{taken} of {n}, {rows} rows"), move |s| {
            let (x, indices) = (s.part(DType::F32, [rows, n])?, s.ids(rows * taken, n)?.reshape([rows, taken])?);
            s.reads(4 * rows * taken);
            let out = s.output(DType::F32, [rows, taken])?;
            call(move |stream| ops::take_along_axis_into(stream, &x, &indices, 1, &out))
        })
    };
    vec![gather(1), gather(8192), take(4096, 256, 8), take(64, QWEN_27B.vocab, 100_000)]
}

fn resize(from: usize, [height, width]: [usize; 2], dim: usize) -> Case {
    Case::new("resize", VISION, format!("{from} x {from} to {height} x {width}, {dim} channels"), move |s| {
        let (x, out) = (s.input(s.float(), [from, from, dim])?, s.output(s.float(), [height, width, dim])?);
        call(move |stream| ops::resize_into(stream, &x, Resize::default(), &out))
    })
}
