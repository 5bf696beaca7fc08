//! Products with the weights of experts: each token with those that it was routed to.

mod cpu;
#[cfg(test)]
mod glu_tests;
mod gpu;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use self::gpu::GpuForm;
#[cfg(test)]
pub(super) use self::gpu::{NVIDIA, SOURCE};

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::kernel_params;
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, check, float_entry, size};
use crate::ops::expert_schedule::ExpertSchedule;
use crate::ops::matmul::{Form, MatrixParts, Precision, UNIT, parts, splits};
use crate::{Device, Result, Tensor};

/// The matrices of a layer's experts, all of one shape and format, made ready for [`expert_matmul`].
///
/// As a [`Weight`](crate::ops::Weight), once an expert. A stack may be larger than 4 GiB.
#[derive(Clone)]
pub struct ExpertWeight {
    experts: usize,
    rows: usize,
    columns: usize,
    format: MatrixFormat,
    form: Form,
}

impl ExpertWeight {
    /// Makes a stack `[experts, rows, columns]` ready, which is a matrix of `experts * rows` rows: how MLX and GGUF
    /// checkpoints store experts.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) where the matrix is no such stack,
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn stacked(matrix: &Matrix, experts: usize) -> Result<ExpertWeight> {
        check(OP, experts > 0 && matrix.rows().is_multiple_of(experts), || {
            format!("weight: got {matrix:?} for {experts} experts, wanted as many rows for each")
        })?;
        let form = match matrix.device().as_cpu() {
            Some(_) => Form::packed(std::slice::from_ref(matrix), experts)?,
            None => Form::Stored(Box::new(matrix.clone())),
        };
        Ok(ExpertWeight::new(matrix, experts, matrix.rows() / experts, form))
    }

    /// Makes one matrix an expert ready: how transformers stores most. A GPU gets a copy in one piece.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) where there is no matrix, or they differ in shape, format or device;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn separate(matrices: &[Matrix]) -> Result<ExpertWeight> {
        check(OP, !matrices.is_empty(), || "weight: got no experts, wanted one or more".into())?;
        let first = &matrices[0];
        for m in matrices {
            let alike = |m: &Matrix| (m.format(), m.rows(), m.columns());
            check(OP, alike(m) == alike(first) && m.device() == first.device(), || {
                format!("weight: got {m:?} beside {first:?}, wanted experts of one shape, format and device")
            })?;
        }
        let form = match first.device().as_cpu() {
            Some(_) => Form::packed(matrices, 1)?,
            None => Form::Stored(Box::new(Matrix::concat(matrices)?)),
        };
        Ok(ExpertWeight::new(first, matrices.len(), first.rows(), form))
    }

    fn new(matrix: &Matrix, experts: usize, rows: usize, form: Form) -> ExpertWeight {
        ExpertWeight { experts, rows, columns: matrix.columns(), format: matrix.format(), form }
    }

    /// How many experts there are.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Output features of each.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the matrices were stored.
    pub fn format(&self) -> MatrixFormat {
        self.format
    }

    /// The device they are on.
    pub fn device(&self) -> &Device {
        self.form.device()
    }

    /// Bytes that a product with all experts reads.
    pub fn bytes(&self) -> usize {
        self.form.bytes()
    }
}

impl fmt::Debug for ExpertWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}, {}]", self.format, self.experts, self.rows, self.columns)
    }
}

/// `out[t, s] = W[ids[t, s]] x[t]`, or `x[t, s]`, plus the expert's bias: every token with each of its experts.
///
/// `x` is `[tokens, columns]`, which all slots of a token share, or `[tokens, slots, columns]`, in f32, f16 or bf16 with any
/// offset and any stride between rows. `bias` is `[experts, rows]` in `x`'s type, contiguous. The result is
/// `[tokens, slots, rows]` in `x`'s type; an id that is no expert's gives zeros. Sums are f32, and `precision` is as for
/// [`matmul`](fn@crate::ops::matmul).
///
/// Rows of one expert are multiplied together, so that its weight is read once; how many there are does not change a row's
/// f32 result on the CPU. MLX calls this `gather_mm` and `gather_qmm`.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::formats::Mapped;
/// use silicide::ops::{self, ExpertWeight, Precision};
/// use silicide::{DType, Device, Matrix, MatrixFormat};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// // Two experts of one row each.
/// let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|w| w.to_le_bytes()).collect();
/// let format = MatrixFormat::Dense(DType::F32);
/// let matrix = Matrix::new(&device, format, 2, 2, &Mapped::copy_from(&bytes)?, None, None)?;
/// let weight = ExpertWeight::stacked(&matrix, 2)?;
/// let x = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let ids = device.tensor(&[1u32, 0], [1, 2])?;
/// let schedule = ops::expert_schedule(stream, &ids, 2)?;
/// let y = ops::expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [34.0, 12.0]);
/// # Ok(())
/// # }
/// ```
pub fn expert_matmul(
    stream: &mut Stream,
    x: &Tensor,
    weight: &ExpertWeight,
    schedule: &ExpertSchedule,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), [schedule.tokens(), schedule.slots(), weight.rows])?;
    expert_matmul_into(stream, x, weight, schedule, bias, precision, &out)?;
    Ok(out)
}

/// [`expert_matmul`] into `out`, which shares no memory with another tensor here.
pub fn expert_matmul_into(
    stream: &mut Stream,
    x: &Tensor,
    weight: &ExpertWeight,
    schedule: &ExpertSchedule,
    bias: Option<&Tensor>,
    precision: Precision,
    out: &Tensor,
) -> Result<()> {
    launch(OP, stream, x, (weight, None), schedule, bias, precision, out)
}

/// `activation(G[ids[t, s]] x) * (U[ids[t, s]] x)` for two stacks of one shape and format, where `x` is `x[t]` or
/// `x[t, s]`: the first half of gated experts, in one launch. Sums and the activation are f32, rounded once.
///
/// `x`, the schedule and the result are as for [`expert_matmul`]; there are no biases.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, or the stacks differ in shape or format.
///
/// ```
/// use silicide::ops::{self, ExpertWeight, Gate, Precision};
/// use silicide::{Device, Matrix};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// // Two experts of one row each.
/// let stack = |rows| ExpertWeight::stacked(&Matrix::from_tensor(&device.tensor::<f32>(rows, [2, 2])?)?, 2);
/// let (gate, up) = (stack(&[4.0, 0.0, 8.0, 0.0])?, stack(&[0.0, 3.0, 0.0, 5.0])?);
/// let x = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let ids = device.tensor(&[1u32, 0], [1, 2])?;
/// let schedule = ops::expert_schedule(stream, &ids, 2)?;
/// let y = ops::expert_matmul_glu(stream, &x, &gate, &up, &schedule, Gate::Silu, Precision::F32)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [400.0, 120.0]);
/// # Ok(())
/// # }
/// ```
pub fn expert_matmul_glu(
    stream: &mut Stream,
    x: &Tensor,
    gate: &ExpertWeight,
    up: &ExpertWeight,
    schedule: &ExpertSchedule,
    activation: Gate,
    precision: Precision,
) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), [schedule.tokens(), schedule.slots(), gate.rows])?;
    expert_matmul_glu_into(stream, x, gate, up, schedule, activation, precision, &out)?;
    Ok(out)
}

/// [`expert_matmul_glu`] into `out`, which shares no memory with another tensor here.
pub fn expert_matmul_glu_into(
    stream: &mut Stream,
    x: &Tensor,
    gate: &ExpertWeight,
    up: &ExpertWeight,
    schedule: &ExpertSchedule,
    activation: Gate,
    precision: Precision,
    out: &Tensor,
) -> Result<()> {
    let alike = |w: &ExpertWeight| (w.experts, w.rows, w.columns, w.format);
    check(GLU, alike(gate) == alike(up), || {
        format!("up: got {up:?}, wanted the gate's {gate:?}; take the two products by expert_matmul, then glu")
    })?;
    launch(GLU, stream, x, (gate, Some((up, activation))), schedule, None, precision, out)
}

/// Launches products with a stack, or with two of them as `glu`.
fn launch(
    op: &'static str,
    stream: &mut Stream,
    x: &Tensor,
    (weight, glu): (&ExpertWeight, Option<(&ExpertWeight, Gate)>),
    schedule: &ExpertSchedule,
    bias: Option<&Tensor>,
    precision: Precision,
    out: &Tensor,
) -> Result<()> {
    let (tokens, slots) = (schedule.tokens(), schedule.slots());
    let ExpertWeight { experts, rows, columns, .. } = *weight;
    for weight in [Some(weight), glu.map(|(up, _)| up)].into_iter().flatten() {
        check(op, weight.device() == stream.device(), || {
            format!("weight: it is on device {:?}, the stream on another {:?}", weight.device(), stream.device())
        })?;
    }
    check(op, schedule.experts() == experts, || {
        format!("schedule: got one for {} experts, wanted the weight's {experts}", schedule.experts())
    })?;
    let shared = x.shape()[..] == [tokens, columns];
    check(op, x.dtype().is_float() && (shared || x.shape()[..] == [tokens, slots, columns]), || {
        format!("x: got {x:?}, wanted floats [{tokens}, {columns}] or [{tokens}, {slots}, {columns}]")
    })?;
    let dtype = x.dtype();
    check(op, out.dtype() == dtype && out.shape()[..] == [tokens, slots, rows], || {
        format!("out: got {out:?}, wanted {dtype} [{tokens}, {slots}, {rows}]")
    })?;
    if let Some(bias) = bias {
        check(op, bias.dtype() == dtype && bias.shape()[..] == [experts, rows] && bias.is_contiguous(), || {
            format!("bias: got {bias:?}, wanted {dtype} [{experts}, {rows}], contiguous")
        })?;
    }
    if out.elements() == 0 {
        return Ok(());
    }
    let (x_rows, out_rows) = (Rows::of(op, "x", x)?, Rows::of(op, "out", out)?);
    // Rows of the weight that make an element.
    let sums = if glu.is_some() { 2 } else { 1 };
    size(op, "weight", experts * rows * sums)?;
    let grouped = schedule.grouped();
    let params = Params {
        code_stride: 0,
        pairs: size(op, "ids", tokens * slots)?,
        experts: size(op, "weight", experts)?,
        n: out_rows.len,
        k: x_rows.len,
        slots_of_x: if shared { slots as u32 } else { 1 },
        // Empty rows lie anywhere.
        x_stride: if x_rows.len == 0 { 0 } else { x_rows.stride },
        out_stride: out_rows.stride,
        group_size: 0,
        splits: splits(out_rows.len * sums as u32, x_rows.len),
        has_bias: bias.is_some().into(),
        is_grouped: grouped.is_some().into(),
    };
    let flops = 2 * tokens * slots * rows * sums * columns;
    let read = weight.bytes() / experts * experts.min(tokens * slots) * sums + x.elements() * dtype.size();
    let launch = |params: &Params| {
        Launch::new(op, params)
            .read(x)
            .read(schedule.ids())
            .read_optional(grouped.map(|g| &g.order))
            .read_optional(grouped.map(|g| &g.tiles))
    };
    match &weight.form {
        Form::Packed { layout, bytes } => {
            let features = stream.device().as_cpu().map(|cpu| cpu.features()).expect("only the CPU packs");
            let gate = glu.map(|(_, gate)| gate.code());
            let context = Arc::new(cpu::Context { layout: layout.clone(), precision, gate });
            let up = glu.map(|(up, _)| match &up.form {
                Form::Packed { bytes, .. } => bytes,
                Form::Stored(_) => unreachable!("the CPU's weights are packed"),
            });
            let launch = launch(&params)
                .read(bytes)
                .read_optional(bias)
                .write(out)
                .read_optional(up)
                .reads_bytes(read)
                .flops(flops)
                .context(&context)
                .choice(format!("cpu {} {features}", weight.format), context.reason());
            stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || unreachable!("the stream is the CPU's"))
        }
        Form::Stored(matrix) => {
            let whole = x_rows.len.is_multiple_of(UNIT) && x.vectors_align(4);
            let MatrixParts { defines, group_size } = parts(matrix, dtype, whole);
            let mut params = Params { code_stride: size(op, "weight", matrix.code_stride())?, group_size, ..params };
            let all_rows = params.n * sums as u32;
            let (form, why) = match gpu::tensor_cores(x, weight.format, whole, schedule, &params, all_rows, precision) {
                Ok(form) => (form, ""),
                Err(why) => (GpuForm::plain(grouped, params.splits), why),
            };
            params.splits = form.splits;
            let stored = |launch: Launch, matrix: &Matrix| {
                launch.read(matrix.codes()).read_optional(matrix.scales()).read_optional(matrix.biases())
            };
            let mut launch = stored(launch(&params), matrix).read_optional(bias).write(out);
            if let Some((up, _)) = glu {
                let Form::Stored(matrix) = &up.form else { unreachable!("a GPU's weights are stored") };
                launch = stored(launch, matrix);
            }
            let launch = launch
                .reads_bytes(read)
                .flops(flops)
                .threadgroup_memory(form.threadgroup_memory)
                .choice(format!("{} {}", form.entry, weight.format), why);
            stream.launch(
                launch,
                |_| unreachable!("the stream is a GPU's"),
                || Gpu {
                    source: form.source,
                    defines: defines + &glu.map_or_else(String::new, |(_, gate)| gate.define()),
                    entry: form.entry.into(),
                    threadgroups: [
                        all_rows.div_ceil(form.rows),
                        grouped.map_or(params.pairs, |g| g.tiles.dim(0) as u32),
                        grouped.map_or(1, |g| (g.rows as u32).div_ceil(form.pairs)),
                    ],
                    threads: [form.threads, 1, 1],
                },
            )
        }
    }
}

const OP: &str = "expert_matmul";
const GLU: &str = "expert_matmul_glu";

kernel_params! {
    /// Weights are n rows of k, of either stack where there are two; strides in elements, the weight's in bytes.
    struct Params {
        code_stride: u32,
        pairs: u32,
        experts: u32,
        n: u32,
        k: u32,
        /// Pairs that share a row of `x`.
        slots_of_x: u32,
        x_stride: u32,
        out_stride: u32,
        group_size: u32,
        /// Simdgroups that share the columns of a row where there are few pairs.
        splits: u32,
        has_bias: u32,
        is_grouped: u32,
    }
}
