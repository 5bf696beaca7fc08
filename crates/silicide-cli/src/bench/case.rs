//! What is timed: a name, a shape, and how to make one call with operands of its own.

use std::any::Any;

use silicide::formats::Mapped;
use silicide::ops::{ExpertWeight, Weight};
use silicide::{DType, Device, DeviceKind, Matrix, MatrixFormat, Result, Shape, Stream, Tensor, ops};

/// An op at one shape of one model.
pub(super) struct Case {
    /// As `silicide::ops` has it.
    pub(super) op: &'static str,
    pub(super) model: &'static str,
    pub(super) shape: String,
    /// What its operations are counted as, and how many there are.
    pub(super) arithmetic: Arithmetic,
    pub(super) flops: u64,
    make: Make,
}

/// Takes what a call needs.
type Make = Box<dyn Fn(&mut Setup) -> Result<Call>>;

/// Records or runs one call; tensors that the op made for itself are kept by who calls.
pub(super) type Call = Box<dyn Fn(&mut Stream) -> Result<Vec<Tensor>>>;

/// Which instructions bound a case that moves little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// None worth counting.
    None,
    /// Multiply-adds in f32.
    Vector,
    /// Products of matrices of bf16, on a CPU of f32: attention, whose operands are of those types.
    Scores,
    /// Products of matrices of bf16.
    Matrix,
    /// Products with codes: of bytes on a CPU that has such instructions, else of bf16.
    Codes,
}

impl Case {
    pub(super) fn new(
        op: &'static str,
        model: &'static str,
        shape: impl Into<String>,
        make: impl Fn(&mut Setup) -> Result<Call> + 'static,
    ) -> Case {
        Case { op, model, shape: shape.into(), arithmetic: Arithmetic::None, flops: 0, make: Box::new(make) }
    }

    /// Counts a multiply-add as two.
    pub(super) fn flops(self, arithmetic: Arithmetic, flops: usize) -> Case {
        Case { arithmetic, flops: flops as u64, ..self }
    }

    /// What `--filter` looks in.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.op, self.shape)
    }

    /// A call whose operands no other call has, until the pool has been gone round, and the bytes that it moves.
    pub(super) fn make(&self, setup: &mut Setup, copy: usize) -> Result<(Call, Moved)> {
        setup.copy = copy;
        setup.moved = Moved::default();
        setup.read.begin();
        setup.written.begin();
        let call = (self.make)(setup)?;
        Ok((call, setup.moved))
    }
}

/// A call of an op that writes where it is told.
pub(super) fn call(run: impl Fn(&mut Stream) -> Result<()> + 'static) -> Result<Call> {
    Ok(Box::new(move |stream| run(stream).map(|()| Vec::new())))
}

/// A call of an op that has no form for that.
pub(super) fn keep(run: impl Fn(&mut Stream) -> Result<Tensor> + 'static) -> Result<Call> {
    Ok(Box::new(move |stream| run(stream).map(|out| vec![out])))
}

/// Bytes that a call has to move at least, by the shapes of its operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// Where cases take their operands from: two rings of device memory, one to read and one to write, which are gone round,
/// so that what a call reads has left the caches since it was last touched.
pub(super) struct Setup {
    device: Device,
    stream: Stream,
    read: Ring,
    written: Ring,
    copy: usize,
    moved: Moved,
    weights: Option<Weights>,
}

/// Copies of one weight.
struct Weights {
    format: MatrixFormat,
    shape: [usize; 3],
    source: Source,
    copies: Vec<Box<dyn Any>>,
}

/// A matrix's bytes in host memory.
struct Source {
    codes: Mapped,
    scales: Option<Mapped>,
}

struct Ring {
    bytes: Tensor,
    next: usize,
    /// Where the operands of the call being made begin, and whether they have gone past the end since.
    first: usize,
    wrapped: bool,
}

/// Elements that the pattern of the readable ring repeats after.
const PATTERN: usize = 1 << 20;

impl Setup {
    /// `pool` is the bytes of a ring.
    pub(super) fn new(device: &Device, pool: usize) -> Result<Setup> {
        let mut stream = device.stream();
        let read = Ring::new(numbers(&mut stream, pool)?);
        let written = Ring::new(device.zeros(DType::U8, [pool])?);
        let moved = Moved::default();
        Ok(Setup { device: device.clone(), stream, read, written, copy: 0, moved, weights: None })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The type of activations: what models run in there by default.
    pub(super) fn float(&self) -> DType {
        activations(&self.device)
    }

    /// The type of keys and values.
    pub(super) fn kv(&self) -> DType {
        keys_and_values(&self.device)
    }

    /// Numbers from -1 to 1, that the call reads all of.
    pub(super) fn input(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let tensor = self.part(dtype, shape)?;
        self.reads(bytes(&tensor));
        Ok(tensor)
    }

    /// Numbers from -1 to 1, of which the call reads less than all; [`reads`](Self::reads) says how much.
    pub(super) fn part(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let len = shape.iter().product::<usize>() * dtype.size();
        if !self.read.has(len) {
            self.read = Ring::new(numbers(&mut self.stream, self.read.larger(len))?);
        }
        self.read.take(dtype, shape, len)
    }

    /// Memory that the call writes all of.
    pub(super) fn output(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let tensor = self.space(dtype, shape)?;
        self.writes(bytes(&tensor));
        Ok(tensor)
    }

    /// Memory of which the call writes less than all; [`writes`](Self::writes) says how much.
    pub(super) fn space(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let len = shape.iter().product::<usize>() * dtype.size();
        if !self.written.has(len) {
            self.written = Ring::new(self.device.zeros(DType::U8, [self.written.larger(len)])?);
        }
        self.written.take(dtype, shape, len)
    }

    /// Numbers from -1 to 1 that the call reads and replaces.
    pub(super) fn state(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let tensor = self.numbers_in_space(dtype, shape)?;
        self.reads(bytes(&tensor));
        self.writes(bytes(&tensor));
        Ok(tensor)
    }

    /// Numbers from -1 to 1 of which the call reads and replaces less than all.
    pub(super) fn numbers_in_space(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let from = self.part(dtype, shape)?;
        let to = self.space(dtype, *from.shape())?;
        ops::copy_into(&mut self.stream, &from, &to)?;
        self.stream.synchronize()?;
        Ok(to)
    }

    /// Rows of length one.
    pub(super) fn unit_rows(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let from = self.input(dtype, shape)?;
        let to = self.space(dtype, *from.shape())?;
        ops::l2_norm_into(&mut self.stream, &from, 1e-6, &to)?;
        self.stream.synchronize()?;
        Ok(to)
    }

    /// Numbers below `below` in no order, different ones in each copy.
    pub(super) fn ids(&mut self, count: usize, below: usize) -> Result<Tensor> {
        self.integers(&scattered(self.copy * count, count, below))
    }

    /// `0..count`.
    pub(super) fn positions(&mut self, count: usize) -> Result<Tensor> {
        self.integers(&(0..count as u32).collect::<Vec<_>>())
    }

    /// Small tensors of one axis, that the call reads.
    pub(super) fn integers(&mut self, values: &[u32]) -> Result<Tensor> {
        self.reads(4 * values.len());
        self.device.tensor(values, [values.len()])
    }

    /// Weights made ready for products.
    pub(super) fn weights<const N: usize>(
        &mut self,
        format: MatrixFormat,
        rows: usize,
        columns: usize,
    ) -> Result<[Weight; N]> {
        let mut weights = Vec::with_capacity(N);
        for i in 0..N {
            let copy = self.copy * N + i;
            weights.push(self.shared(format, [0, rows, columns], copy, |matrix| Weight::new(&matrix))?);
        }
        self.reads(N * stored_bytes(format, rows, columns));
        Ok(weights.try_into().expect("as many as were asked for"))
    }

    /// The weights of a layer's experts. Calls share a few stacks, since each takes other experts.
    pub(super) fn experts<const N: usize>(
        &mut self,
        format: MatrixFormat,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<[ExpertWeight; N]> {
        let bytes = N * stored_bytes(format, experts * rows, columns);
        let sets = self.read.bytes.elements().div_ceil(bytes).clamp(1, 4);
        let mut stacks = Vec::with_capacity(N);
        for i in 0..N {
            let copy = self.copy % sets * N + i;
            let make = |matrix| ExpertWeight::stacked(&matrix, experts);
            stacks.push(self.shared(format, [experts, rows, columns], copy, make)?);
        }
        Ok(stacks.try_into().expect("as many as were asked for"))
    }

    /// A matrix to look rows up in; calls share it, since each takes other rows.
    pub(super) fn table(&mut self, format: MatrixFormat, rows: usize, columns: usize) -> Result<Matrix> {
        self.shared(format, [1, rows, columns], 0, Ok)
    }

    /// Counts bytes that the call reads.
    pub(super) fn reads(&mut self, bytes: usize) {
        self.moved.read += bytes as u64;
    }

    /// Counts bytes that the call writes.
    pub(super) fn writes(&mut self, bytes: usize) {
        self.moved.written += bytes as u64;
    }

    /// Which of the calls is being made.
    pub(super) fn copy(&self) -> usize {
        self.copy
    }

    /// Copy `copy` of what is made of a matrix; cases of one format and shape that follow one another share it.
    fn shared<T: Clone + 'static>(
        &mut self,
        format: MatrixFormat,
        shape: [usize; 3],
        copy: usize,
        make: impl Fn(Matrix) -> Result<T>,
    ) -> Result<T> {
        let [experts, rows, columns] = shape;
        let rows = experts.max(1) * rows;
        if self.weights.as_ref().is_none_or(|w| w.format != format || w.shape != shape) {
            self.weights = None;
            let source = Source::new(format, rows, columns);
            self.weights = Some(Weights { format, shape, source, copies: Vec::new() });
        }
        let weights = self.weights.as_mut().expect("set above");
        while weights.copies.len() <= copy {
            let Source { codes, scales } = &weights.source;
            let biases = matches!(format, MatrixFormat::Quantized(silicide::quant::QuantFormat::Affine { .. }, _));
            let biases = scales.as_ref().filter(|_| biases);
            let matrix = Matrix::new(&self.device, format, rows, columns, codes, scales.as_ref(), biases)?;
            weights.copies.push(Box::new(make(matrix)?));
        }
        Ok(weights.copies[copy].downcast_ref::<T>().expect("one shape has one use").clone())
    }
}

impl Source {
    fn new(format: MatrixFormat, rows: usize, columns: usize) -> Source {
        let map = |bytes: Vec<u8>| Mapped::copy_from(&bytes).expect("memory for a weight");
        let pattern = pattern();
        let numbers = |len: usize| {
            let mut bytes = Vec::with_capacity(len);
            while bytes.len() < len {
                bytes.extend_from_slice(&pattern[..pattern.len().min(len - bytes.len())]);
            }
            bytes
        };
        match format {
            MatrixFormat::Dense(dtype) => Source { codes: map(numbers(rows * columns * dtype.size())), scales: None },
            MatrixFormat::Quantized(format, dtype) => {
                let codes = map(numbers(rows * format.row_bytes(columns)));
                let groups = rows * (columns / format.group_size());
                use silicide::quant::QuantFormat::{Affine, Ggml, Mxfp4, Mxfp8, Nvfp4};
                let scales = match format {
                    Affine { .. } => Some(map(numbers(groups * dtype.size()))),
                    // 2^-7 to 1 as powers of two, and ordinary numbers as e4m3.
                    Mxfp4 | Mxfp8 => Some(map((0..groups).map(|i| 120 + (i % 8) as u8).collect())),
                    Nvfp4 => Some(map((0..groups).map(|i| 0x30 + (i % 8) as u8).collect())),
                    Ggml(_) => None,
                };
                Source { codes, scales }
            }
        }
    }
}

impl Ring {
    fn new(bytes: Tensor) -> Ring {
        Ring { bytes, next: 0, first: 0, wrapped: false }
    }

    /// Operands of one call lie apart; those of different calls may meet.
    fn begin(&mut self) {
        (self.first, self.wrapped) = (self.next, false);
    }

    /// Where `len` bytes that no other operand of the call has begin, and whether they are past the end.
    fn place(&self, len: usize) -> Option<(usize, bool)> {
        let end = if self.wrapped { self.first } else { self.bytes.elements() };
        match self.next + len <= end {
            true => Some((self.next, self.wrapped)),
            false => (!self.wrapped && len <= self.first).then_some((0, true)),
        }
    }

    fn has(&self, len: usize) -> bool {
        self.place(len).is_some()
    }

    /// Bytes of a ring with room for a call that has no room for `len` in this one.
    fn larger(&self, len: usize) -> usize {
        self.bytes.elements().next_multiple_of(ALIGNMENT).max(len.next_multiple_of(ALIGNMENT)) * 2
    }

    fn take(&mut self, dtype: DType, shape: Shape, len: usize) -> Result<Tensor> {
        let (start, wrapped) = self.place(len).expect("the ring was made large enough");
        (self.next, self.wrapped) = ((start + len).next_multiple_of(ALIGNMENT), wrapped);
        Tensor::new(self.bytes.buffer().clone(), start, dtype, shape)
    }
}

const ALIGNMENT: usize = 256;

/// The type that models run in by default.
pub(super) fn activations(device: &Device) -> DType {
    if device.kind() == DeviceKind::Cpu { DType::F32 } else { DType::BF16 }
}

/// The type of keys and values by default.
pub(super) fn keys_and_values(device: &Device) -> DType {
    if device.kind() == DeviceKind::Cpu { DType::F16 } else { DType::BF16 }
}

/// `count` numbers below `below` from a place of a fixed sequence on, no two of a run of `below` alike where `below` is a
/// power of two.
pub(super) fn scattered(from: usize, count: usize, below: usize) -> Vec<u32> {
    (from..from + count).map(|i| ((i as u64 * 2_654_435_761 + 12_345) % below as u64) as u32).collect()
}

/// Bytes of a matrix as a checkpoint has it, scales and all.
pub(super) fn stored_bytes(format: MatrixFormat, rows: usize, columns: usize) -> usize {
    use silicide::quant::QuantFormat::{Affine, Ggml};
    match format {
        MatrixFormat::Dense(dtype) => rows * columns * dtype.size(),
        MatrixFormat::Quantized(format, dtype) => {
            let group = match format {
                Affine { .. } => 2 * dtype.size(),
                Ggml(_) => 0,
                _ => 1,
            };
            rows * (format.row_bytes(columns) + columns / format.group_size() * group)
        }
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elements() * tensor.dtype().size()
}

/// bf16 numbers from -1 to 1. Read as f32 or f16 they are ordinary numbers of that size too, and as codes they are any.
fn pattern() -> Vec<u8> {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let x = (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        ((x.to_bits() >> 16) as u16).to_le_bytes()
    };
    (0..PATTERN).flat_map(|_| next()).collect()
}

/// `len` bytes of the pattern.
fn numbers(stream: &mut Stream, len: usize) -> Result<Tensor> {
    let device = stream.device().clone();
    let pattern = pattern();
    let pattern = device.tensor(&pattern, [pattern.len()])?;
    let ring = device.zeros(DType::U8, [len])?;
    for start in (0..len).step_by(pattern.elements()) {
        let end = len.min(start + pattern.elements());
        ops::copy_into(stream, &pattern.slice(0, 0..end - start)?, &ring.slice(0, start..end)?)?;
    }
    stream.synchronize()?;
    Ok(ring)
}
