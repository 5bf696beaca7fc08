//! What the ops' tests share: devices, random tensors with awkward views, comparison and golden vectors.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::device::{CpuOptions, CudaOptions, EmulatedOptions};
use crate::formats::Mapped;
use crate::quant::{GgmlFormat, QuantFormat, QuantView};
use crate::{DType, Device, Matrix, MatrixFormat, Shape, Stream, Tensor};

/// Runs `test` on every device here: the CPU with three threads, the emulated devices with checks under shuffled schedules,
/// Metal on a Mac, and an NVIDIA GPU, with its own kernels and without.
pub(crate) fn on_every_device(mut test: impl FnMut(&mut Stream)) {
    test(&mut Device::cpu_with(CpuOptions { threads: 3, ..CpuOptions::default() }).stream());
    on_schedules(0..2, Device::emulated_metal, &mut test);
    on_schedules(0..1, Device::emulated_cuda, &mut test);
    for device in cuda() {
        eprintln!("cuda, {}", device.description());
        test(&mut device.stream());
    }
    #[cfg(target_os = "macos")]
    test(&mut Device::metal().expect("a Mac has a Metal device").stream());
}

/// Runs `test` on the emulated devices with checks, under as many shuffled schedules as a kernel whose threads work
/// together has to bear.
pub(crate) fn on_every_schedule(mut test: impl FnMut(&mut Stream)) {
    on_schedules(0..8, Device::emulated_metal, &mut test);
    on_schedules(0..2, Device::emulated_cuda, &mut test);
}

/// Where clang is missing the device is left out, unless `SILICIDE_REQUIRE_EMULATED` says that it must be there.
fn on_schedules(
    seeds: Range<u64>,
    emulated: impl Fn(EmulatedOptions) -> crate::Result<Device>,
    test: &mut dyn FnMut(&mut Stream),
) {
    for seed in seeds {
        match emulated(EmulatedOptions { checks: true, seed: Some(seed), ..EmulatedOptions::default() }) {
            Ok(device) => {
                // Shown where the test fails.
                eprintln!("{device:?}, schedule {seed}");
                test(&mut device.stream());
            }
            Err(e) if std::env::var_os("SILICIDE_REQUIRE_EMULATED").is_some() => panic!("{e}"),
            Err(e) => eprintln!("left out: {e}"),
        }
    }
}

/// The NVIDIA GPU, opened once: with its own kernels, and with shared ones alone. `SILICIDE_REQUIRE_CUDA` says that it must be there.
fn cuda() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    let open = |shared_kernels| match Device::cuda_with(CudaOptions { shared_kernels, ..CudaOptions::default() }) {
        Err(e) if std::env::var_os("SILICIDE_REQUIRE_CUDA").is_some() => panic!("{e}"),
        device => device.ok(),
    };
    DEVICES.get_or_init(|| [false, true].into_iter().filter_map(open).collect())
}

/// A small deterministic generator (SplitMix64), so that a failure can be repeated from its seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A number from about -2 to 2, exact in every floating-point type after rounding to it.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    /// A tensor of `dtype` holding `values` (rounded to it) as a view that starts some elements into its buffer and,
    /// where there are rows, has a gap after each. Half of them lie as vectors want them.
    pub(crate) fn tensor(&mut self, device: &Device, dtype: DType, values: &[f32], shape: impl Into<Shape>) -> Tensor {
        let unit = [1, 8][self.below(2)];
        self.tensor_by(unit, device, dtype, values, shape)
    }

    /// [`tensor`](Self::tensor) whose start and gaps are multiples of `unit`.
    pub(crate) fn tensor_by(
        &mut self,
        unit: usize,
        device: &Device,
        dtype: DType,
        values: &[f32],
        shape: impl Into<Shape>,
    ) -> Tensor {
        let shape = shape.into();
        let len = shape.last().copied().unwrap_or(1);
        let (lead, gap) = (unit * self.below(4), unit * self.below(4));
        let rows = shape.iter().rev().skip(1).product::<usize>();
        let mut padded = vec![f32::NAN; lead + rows * (len + gap)];
        for row in 0..rows {
            padded[lead + row * (len + gap)..][..len].copy_from_slice(&values[row * len..][..len]);
        }
        let whole = tensor_of(device, dtype, &padded, [padded.len()]);
        let view = whole.slice(0, lead..padded.len()).unwrap();
        let mut wide = shape;
        if let Some(last) = wide.last_mut() {
            *last = len + gap;
        } else {
            return view.slice(0, 0..1).unwrap().reshape(shape).unwrap();
        }
        view.reshape(wide).unwrap().slice(shape.rank() - 1, 0..len).unwrap()
    }
}

/// A contiguous tensor of `dtype` with these values, rounded to it.
pub(crate) fn tensor_of(device: &Device, dtype: DType, values: &[f32], shape: impl Into<Shape>) -> Tensor {
    match dtype {
        DType::F16 => device.tensor(&values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>(), shape),
        DType::BF16 => device.tensor(&values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>(), shape),
        _ => device.tensor(values, shape),
    }
    .unwrap()
}

/// A floating-point tensor's elements, widened.
pub(crate) fn values_of(stream: &mut Stream, t: &Tensor) -> Vec<f32> {
    match t.dtype() {
        DType::F16 => t.to_vec::<f16>(stream).unwrap().into_iter().map(f16::to_f32).collect(),
        DType::BF16 => t.to_vec::<bf16>(stream).unwrap().into_iter().map(bf16::to_f32).collect(),
        _ => t.to_vec::<f32>(stream).unwrap(),
    }
}

/// The bytes of a tensor's elements in row-major order.
pub(crate) fn bytes_of(stream: &mut Stream, t: &Tensor) -> Vec<u8> {
    let dense = crate::ops::copy(stream, t).unwrap();
    let bytes = Tensor::new(dense.buffer().clone(), dense.offset(), DType::U8, [dense.byte_range().len()]);
    bytes.unwrap().to_vec(stream).unwrap()
}

/// Rounds to `dtype` and widens again, as storing does.
pub(crate) fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .map(|&v| match dtype {
            DType::F16 => f16::from_f32(v).to_f32(),
            DType::BF16 => bf16::from_f32(v).to_f32(),
            _ => v,
        })
        .collect()
}

/// Every quantised format; of affine ones every width, group size and type of scales.
pub(crate) fn quantized_formats() -> Vec<MatrixFormat> {
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
        [32, 64, 128].into_iter().flat_map(move |group_size| {
            DType::FLOATS.map(|scales| MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, scales))
        })
    });
    let others = [QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4].into_iter();
    let others = others.chain(GgmlFormat::ALL.iter().map(|&f| QuantFormat::Ggml(f)));
    affine.chain(others.map(|f| MatrixFormat::Quantized(f, DType::F32))).collect()
}

/// A matrix in the bytes that a checkpoint would have.
#[derive(Clone)]
pub(crate) struct StoredMatrix {
    pub(crate) format: MatrixFormat,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    pub(crate) biases: Vec<u8>,
}

impl StoredMatrix {
    /// Random codes under small scales, some of them negative and some tiny. No element is NaN.
    pub(crate) fn random(format: MatrixFormat, rows: usize, columns: usize, random: &mut Random) -> StoredMatrix {
        let scale = |random: &mut Random| {
            let x = random.value() * 0.05;
            if random.below(13) == 0 { x * 1e-6 } else { x }
        };
        let finite = |code: u8| if code & 0x7f == 0x7f { code ^ 1 } else { code };
        let mut codes;
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        match format {
            MatrixFormat::Dense(dtype) => codes = stored(dtype, &random.values(rows * columns)),
            MatrixFormat::Quantized(format, dtype) => {
                let groups = rows * columns / format.group_size();
                codes = (0..rows * format.row_bytes(columns)).map(|_| random.next() as u8).collect();
                match format {
                    QuantFormat::Affine { .. } => {
                        scales = stored(dtype, &(0..groups).map(|_| scale(random)).collect::<Vec<_>>());
                        biases = stored(dtype, &(0..groups).map(|_| scale(random) * 8.0).collect::<Vec<_>>());
                    }
                    QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => {
                        codes.iter_mut().filter(|_| format == QuantFormat::Mxfp8).for_each(|c| *c = finite(*c));
                        scales = (0..groups)
                            .map(|_| if random.below(13) == 0 { 0 } else { 115 + random.below(9) as u8 })
                            .collect();
                    }
                    QuantFormat::Nvfp4 => scales = (0..groups).map(|_| finite(random.next() as u8)).collect(),
                    QuantFormat::Ggml(f) => {
                        for block in codes.chunks_mut(f.block_bytes()) {
                            for &at in f.half_scales() {
                                block[at..at + 2].copy_from_slice(&f16::from_f32(scale(random)).to_le_bytes());
                            }
                        }
                    }
                }
            }
        }
        StoredMatrix { format, rows, columns, codes, scales, biases }
    }

    /// The plain reading of a quantised matrix.
    pub(crate) fn view(&self) -> Option<QuantView<'_>> {
        let MatrixFormat::Quantized(format, dtype) = self.format else { return None };
        let (n, k) = (self.rows, self.columns);
        Some(QuantView::new(format, n, k, &self.codes, &self.scales, &self.biases, dtype).unwrap())
    }

    /// The elements, row by row.
    pub(crate) fn elements(&self) -> Vec<f32> {
        let mut elements = vec![0.0; self.rows * self.columns];
        match (self.view(), self.format) {
            (Some(view), _) if self.columns > 0 => {
                elements.chunks_mut(self.columns).enumerate().for_each(|(r, row)| view.dequantize_row(r, row));
            }
            (None, MatrixFormat::Dense(dtype)) => {
                let cpu = Device::cpu();
                let t = cpu.tensor_from_bytes(&self.codes, dtype, [elements.len()]).unwrap();
                elements = values_of(&mut cpu.stream(), &t);
            }
            _ => {}
        }
        elements
    }

    /// For each row, the largest `|scale * code| + |bias|`: what sums in f32 may lose bits of.
    pub(crate) fn sizes(&self) -> Vec<f32> {
        let (Some(view), MatrixFormat::Quantized(format, _)) = (self.view(), self.format) else {
            return vec![2.0; self.rows];
        };
        let groups = self.columns / format.scale_group();
        let size = |row| {
            let groups = (0..groups).map(|g| view.group(row, g));
            groups.map(|g| (g.d * g.scale * 255.0).abs() + (g.dmin * g.min).abs()).fold(0.0, f32::max)
        };
        (0..self.rows).map(size).collect()
    }

    /// The matrix on a device, its bytes aligned or not, as the number of rows has it.
    pub(crate) fn on(&self, device: &Device) -> Matrix {
        // Tensors start anywhere in a file.
        let lead = [0, 16, 5][self.rows % 3];
        let mapped = |bytes: &[u8]| {
            let whole = Mapped::copy_from(&[&vec![0xff; lead], bytes].concat()).unwrap();
            whole.slice(lead..lead + bytes.len()).unwrap()
        };
        let part = |bytes: &[u8]| (!bytes.is_empty()).then(|| mapped(bytes));
        let (scales, biases) = (part(&self.scales), part(&self.biases));
        let codes = mapped(&self.codes);
        Matrix::new(device, self.format, self.rows, self.columns, &codes, scales.as_ref(), biases.as_ref()).unwrap()
    }
}

/// Values as `dtype` stores them.
fn stored(dtype: DType, values: &[f32]) -> Vec<u8> {
    let bytes = |&v: &f32| match dtype {
        DType::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// Asserts that a result is what exact arithmetic gives, to the rounding of `dtype` and a few units of f32
/// accumulation. `scale` is the size of the terms that were summed, where they may cancel.
#[track_caller]
pub(crate) fn assert_close(dtype: DType, got: &[f32], want: &[f64], scale: f64) {
    assert_eq!(got.len(), want.len());
    let unit = match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 0.0,
    };
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let g = g as f64;
        let tolerance = unit * w.abs() + 4e-6 * scale.max(w.abs()) + if dtype == DType::F16 { 6e-8 } else { 0.0 };
        let same = g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= tolerance;
        // A result past the type's range is an infinity.
        let overflow = dtype == DType::F16 && w.abs() >= 65504.0 && g.is_infinite() && g.signum() == w.signum();
        assert!(same || overflow, "element {i} of {}: got {g}, wanted {w} within {tolerance} ({dtype})", got.len());
    }
}

/// Tensors that an outside implementation made, from `oracle/vectors/`, with the parameters it was given.
pub(crate) struct Golden {
    /// The parameters, as the script wrote them into the file's `__metadata__`.
    pub(crate) metadata: HashMap<String, String>,
    /// The type by its name in the file, lower case.
    tensors: HashMap<String, (String, Shape, Vec<u8>)>,
}

impl Golden {
    /// Reads `oracle/vectors/{name}.safetensors`.
    pub(crate) fn read(name: &str) -> Golden {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../oracle/vectors/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
        let mut golden = Golden { metadata: HashMap::new(), tensors: HashMap::new() };
        for (name, value) in header {
            if name == "__metadata__" {
                golden.metadata = serde_json::from_value(value).unwrap();
                continue;
            }
            let dtype = value["dtype"].as_str().unwrap().to_lowercase();
            let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
            let span: [usize; 2] = serde_json::from_value(value["data_offsets"].clone()).unwrap();
            let tensor = (dtype, Shape::new(&shape).unwrap(), data[span[0]..span[1]].to_vec());
            golden.tensors.insert(name, tensor);
        }
        golden
    }

    /// The cases and their parameters, sorted by name.
    pub(crate) fn cases(&self) -> Vec<(String, serde_json::Value)> {
        let cases: serde_json::Map<_, _> = serde_json::from_str(&self.metadata["cases"]).unwrap();
        let mut cases: Vec<_> = cases.into_iter().collect();
        cases.sort_by(|a, b| a.0.cmp(&b.0));
        cases
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        names.sort();
        names
    }

    /// The quantised matrices of `mlx.quantize` or gguf-py, by case.
    pub(crate) fn matrices(&self) -> Vec<(String, StoredMatrix)> {
        let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&self.metadata["cases"]).unwrap();
        let bytes = |name: String| self.tensors.get(&name).map_or(Vec::new(), |t| t.2.clone());
        let matrix = |(case, params): (String, serde_json::Value)| {
            let number = |name: &str| params[name].as_u64().unwrap();
            let (format, codes) = match params["mode"].as_str() {
                Some("affine") => {
                    let (bits, group_size) = (number("bits") as u8, number("group_size") as u16);
                    (QuantFormat::Affine { bits, group_size }, "q")
                }
                Some("mxfp4") => (QuantFormat::Mxfp4, "q"),
                Some("mxfp8") => (QuantFormat::Mxfp8, "q"),
                Some("nvfp4") => (QuantFormat::Nvfp4, "q"),
                Some(mode) => panic!("mode {mode}"),
                None => (QuantFormat::Ggml(GgmlFormat::from_id(number("type") as u32).unwrap()), "blocks"),
            };
            let (dtype, shape, codes) = self.stored(&format!("{case}.{codes}"));
            let row = shape.last().unwrap() * dtype_named(dtype).size();
            // In every format the bytes of a row are in proportion to its elements.
            let columns = row * format.group_size() / format.row_bytes(format.group_size());
            let scales = self.tensors.get(&format!("{case}.scales")).map_or(DType::F32, |t| dtype_named(&t.0));
            let matrix = StoredMatrix {
                format: MatrixFormat::Quantized(format, scales),
                rows: codes.len() / row,
                columns,
                codes: codes.clone(),
                scales: bytes(format!("{case}.scales")),
                biases: bytes(format!("{case}.biases")),
            };
            (case, matrix)
        };
        cases.into_iter().map(matrix).collect()
    }

    /// A tensor on `device`, in the type that it was stored in.
    pub(crate) fn tensor(&self, device: &Device, name: &str) -> Tensor {
        let (dtype, shape, bytes) = self.stored(name);
        device.tensor_from_bytes(bytes, dtype_named(dtype), *shape).unwrap()
    }

    /// A floating-point tensor's elements, widened.
    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        let device = Device::cpu();
        values_of(&mut device.stream(), &self.tensor(&device, name))
    }

    /// A floating-point tensor's elements, those of an f64 tensor included.
    pub(crate) fn exact_values(&self, name: &str) -> Vec<f64> {
        match self.stored(name) {
            (dtype, _, bytes) if dtype == "f64" => bytes.chunks(8).map(bytemuck::pod_read_unaligned).collect(),
            _ => self.values(name).into_iter().map(f64::from).collect(),
        }
    }

    fn stored(&self, name: &str) -> &(String, Shape, Vec<u8>) {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

/// The element type of this name, as safetensors has it in lower case.
fn dtype_named(name: &str) -> DType {
    *DType::ALL.iter().find(|d| d.name() == name).unwrap_or_else(|| panic!("no element type {name}"))
}

mod tests {
    /// The order of threads matters where they share memory or talk to one another.
    #[test]
    fn kernels_whose_threads_cooperate_are_tested_under_every_schedule() {
        let ops = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let mut cooperating = Vec::new();
        for folder in std::fs::read_dir(&ops).unwrap().map(|entry| entry.unwrap().path()) {
            let Ok(kernel) = std::fs::read_to_string(folder.join("kernel.metal")) else { continue };
            let code: Vec<&str> = kernel.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            if code.iter().any(|line| line.contains("threadgroup ") || line.contains("simd_")) {
                let tests = std::fs::read_to_string(folder.join("tests.rs")).unwrap();
                let name = folder.file_name().unwrap().to_string_lossy().into_owned();
                assert!(tests.contains("on_every_schedule(|stream|"), "{name} has no test under every schedule");
                cooperating.push(name);
            }
        }
        cooperating.sort();
        let want = [
            "argmax",
            "attention",
            "batched_matmul",
            "copy",
            "cumsum",
            "expert_matmul",
            "expert_schedule",
            "gated_delta_rule",
            "hadamard_transform",
            "head_norm_rope_cache",
            "kv_quantize",
            "kv_quantize_affine",
            "kv_write",
            "l2_norm",
            "layer_norm",
            "matmul",
            "quantized_attention",
            "reduce",
            "rms_norm",
            "rms_norm_gated",
            "router",
            "sample",
            "softmax",
            "sort",
            "top_k",
            "triangular_solve",
        ];
        assert_eq!(cooperating, want);
    }
}
