//! What the ops' tests share: devices, random tensors with awkward views, comparison and golden vectors.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};

use crate::device::{CpuOptions, EmulatedOptions};
use crate::{DType, Device, Shape, Stream, Tensor};

/// Runs `test` on every device here. The emulated Metal device runs with checks, under several shuffled schedules; where
/// clang is missing it is left out, unless `SILICIDE_REQUIRE_EMULATED` says that it must run.
pub(crate) fn on_every_device(mut test: impl FnMut(&mut Stream)) {
    test(&mut Device::cpu_with(CpuOptions { threads: 3, ..CpuOptions::default() }).stream());
    for seed in 0..2 {
        match emulated(seed) {
            Some(device) => test(&mut device.stream()),
            None => eprintln!("emulated-metal: clang 19 is not here, left out"),
        }
    }
    #[cfg(target_os = "macos")]
    test(&mut Device::metal().expect("a Mac has a Metal device").stream());
}

fn emulated(seed: u64) -> Option<Device> {
    let options = EmulatedOptions { checks: true, seed: Some(seed), ..EmulatedOptions::default() };
    match Device::emulated_metal(options) {
        Ok(device) => Some(device),
        Err(e) if std::env::var_os("SILICIDE_REQUIRE_EMULATED").is_some() => panic!("{e}"),
        Err(_) => None,
    }
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
    /// where there are rows, has a gap after each.
    pub(crate) fn tensor(&mut self, device: &Device, dtype: DType, values: &[f32], shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let len = shape.last().copied().unwrap_or(1);
        let (lead, gap) = (self.below(4), self.below(4));
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

    /// A tensor on `device`, in the type that it was stored in.
    pub(crate) fn tensor(&self, device: &Device, name: &str) -> Tensor {
        let (dtype, shape, bytes) = self.stored(name);
        let dtype = *DType::ALL.iter().find(|d| d.name() == dtype).unwrap_or_else(|| panic!("{name} is {dtype}"));
        device.tensor_from_bytes(bytes, dtype, *shape).unwrap()
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
