//! Multi-section rotary embedding.

use bytemuck::Pod;

use crate::device::Device;
use crate::mlx_native::{CommandEncoder, DType, KernelRegistry, MlxBuffer, MlxDevice, Result, check};
pub use crate::ops::RopeMultiMode;
use crate::{Tensor, ops};

/// The sizes and conventions of one dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeMultiParams {
    /// Elements of a head: even.
    pub head_dim: u32,
    /// Elements of a head that turn: even, at most `head_dim`. For [`RopeMultiMode::Vision`] those of one of the two axes,
    /// `head_dim / 2`, as in ggml.
    pub rope_dim: u32,
    /// Heads a token.
    pub n_heads: u32,
    /// Tokens.
    pub seq_len: u32,
    /// Pair `p` turns by `freq_base^(-2p / rope_dim)` from one position to the next.
    pub freq_base: f32,
    /// How the pairs are shared out among the position axes.
    pub mode: RopeMultiMode,
    /// Pairs of each axis; they repeat where their sum is less than `rope_dim / 2`.
    pub sections: [u32; 4],
}

/// Adds `rope_multi_f32`, `rope_multi_bf16` and `rope_multi_f16`. [`KernelRegistry::new`] has done so already.
pub fn register(registry: &mut KernelRegistry) {
    for name in ["rope_multi_f32", "rope_multi_bf16", "rope_multi_f16"] {
        registry.register(name);
    }
}

/// Encodes a multi-section rotary embedding of `input`, `seq_len * n_heads` rows of `head_dim`, into `output`.
///
/// Pair `p`, elements `p` and `p + head_dim / 2`, turns by the position of its axis; the elements of pairs from
/// `rope_dim / 2` on stay as they are. `input` and `output` are f32, bf16 or f16, and may be one buffer. `positions` is
/// `4 * seq_len` in i32 or u32: times, heights, widths, extras. The three small buffers hold what `params` says, as
/// [`build_rope_multi_buffers`] lays it out.
///
/// # Errors
///
/// [`MlxError::InvalidArgument`](crate::mlx_native::MlxError::InvalidArgument) where sizes, types, values, devices or the small buffers do not fit.
pub fn dispatch_rope_multi(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &Device,
    input: &MlxBuffer,
    output: &MlxBuffer,
    positions: &MlxBuffer,
    params_buf: &MlxBuffer,
    rope_params_buf: &MlxBuffer,
    sections_buf: &MlxBuffer,
    params: RopeMultiParams,
) -> Result<()> {
    validate(&params, input, output, positions)?;
    let Layout { floats, words, sections } = Layout::of(&params);
    check_contents("params_buf", params_buf, floats)?;
    check_contents("rope_params_buf", rope_params_buf, words)?;
    check_contents("sections_buf", sections_buf, sections)?;
    check(encoder.stream.device() == device, || "rope_multi: got an encoder and a device that are not one".into())?;

    let rope = registry.rope_multi(device, &params)?;
    let [tokens, heads, dim] = [params.seq_len, params.n_heads, params.head_dim].map(|n| n as usize);
    let rows = |b: &MlxBuffer| Tensor::new(b.buffer().clone(), 0, b.dtype(), [tokens, heads, dim]);
    let (x, out) = (rows(input)?, rows(output)?);
    let positions_tensor = Tensor::new(positions.buffer().clone(), 0, positions.dtype(), [4, tokens])?;
    let mark = output.mark_written("rope_multi: output")?;
    ops::rope_multi_into(&mut encoder.stream, &x, &positions_tensor, rope, &out)?;
    encoder.hold(mark, [input, output, positions]);
    Ok(())
}

/// The three small buffers of [`dispatch_rope_multi`]: `[freq_base, head_dim, rope_dim, 0]` in f32, and in u32
/// `[n_heads, mode, seq_len, 0]` and the sections.
pub fn build_rope_multi_buffers(
    device: &MlxDevice,
    params: RopeMultiParams,
) -> Result<(MlxBuffer, MlxBuffer, MlxBuffer)> {
    fn filled<T: Pod>(device: &MlxDevice, dtype: DType, values: [T; 4]) -> Result<MlxBuffer> {
        let mut buffer = device.alloc_buffer(16, dtype, vec![4])?;
        buffer.as_mut_slice::<T>()?.copy_from_slice(&values);
        Ok(buffer)
    }
    let Layout { floats, words, sections } = Layout::of(&params);
    let floats = filled(device, DType::F32, floats)?;
    Ok((floats, filled(device, DType::U32, words)?, filled(device, DType::U32, sections)?))
}

/// The contents of the small buffers.
struct Layout {
    floats: [f32; 4],
    words: [u32; 4],
    sections: [u32; 4],
}

impl Layout {
    fn of(p: &RopeMultiParams) -> Layout {
        Layout {
            floats: [p.freq_base, p.head_dim as f32, p.rope_dim as f32, 0.0],
            words: [p.n_heads, p.mode as u32, p.seq_len, 0],
            sections: p.sections,
        }
    }
}

/// Parameters are stated twice, and must not disagree.
fn check_contents<T: Pod + PartialEq + std::fmt::Debug>(name: &str, buffer: &MlxBuffer, want: [T; 4]) -> Result<()> {
    let got = buffer.as_slice::<T>()?;
    check(got.get(..4) == Some(&want[..]), || {
        format!("rope_multi: {name}: got {:?}, wanted what the parameters say, {want:?}", &got[..got.len().min(4)])
    })
}

fn validate(p: &RopeMultiParams, input: &MlxBuffer, output: &MlxBuffer, positions: &MlxBuffer) -> Result<()> {
    let check = |ok: bool, message: &dyn Fn() -> String| check(ok, || format!("rope_multi: {}", message()));
    for (name, n) in
        [("head_dim", p.head_dim), ("rope_dim", p.rope_dim), ("n_heads", p.n_heads), ("seq_len", p.seq_len)]
    {
        check(n > 0, &|| format!("{name}: got 0, wanted more"))?;
    }
    for (name, n) in [("head_dim", p.head_dim), ("rope_dim", p.rope_dim)] {
        check(n % 2 == 0, &|| format!("{name}: got {n}, wanted an even number"))?;
    }
    check(p.rope_dim <= p.head_dim, &|| {
        format!("rope_dim: got {}, wanted at most head_dim, which is {}", p.rope_dim, p.head_dim)
    })?;
    check(p.mode != RopeMultiMode::Vision || p.rope_dim == p.head_dim / 2, &|| {
        format!(
            "rope_dim: got {}, wanted that of one axis in VISION mode, head_dim / 2 = {}",
            p.rope_dim,
            p.head_dim / 2
        )
    })?;
    check(p.freq_base.is_finite() && p.freq_base > 0.0, &|| {
        format!("freq_base: got {}, wanted a finite positive number", p.freq_base)
    })?;

    let elements =
        (p.seq_len as usize).checked_mul(p.n_heads as usize).and_then(|n| n.checked_mul(p.head_dim as usize));
    for (name, buffer) in [("input", input), ("output", output)] {
        check(Some(buffer.element_count()) == elements, &|| {
            let wanted = elements.map_or("more than memory holds".into(), |n| n.to_string());
            format!(
                "{name}: got {} elements, wanted seq_len {} * n_heads {} * head_dim {} = {wanted}",
                buffer.element_count(),
                p.seq_len,
                p.n_heads,
                p.head_dim
            )
        })?;
    }
    check(input.dtype() == output.dtype(), &|| {
        format!("output: got {}, wanted input's {}", output.dtype(), input.dtype())
    })?;
    check(input.dtype().is_float(), &|| format!("input: got {}, wanted f32, bf16 or f16", input.dtype()))?;
    check(positions.element_count() == 4 * p.seq_len as usize, &|| {
        let (got, wanted) = (positions.element_count(), 4 * p.seq_len as usize);
        format!("positions: got {got} elements, wanted 4 * seq_len {} = {wanted}", p.seq_len)
    })?;
    check(matches!(positions.dtype(), DType::I32 | DType::U32), &|| {
        format!("positions: got {}, wanted i32 or u32", positions.dtype())
    })
}
