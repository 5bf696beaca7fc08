use half::{bf16, f16};

use super::*;
use crate::Stream;
use crate::testing::{Golden, assert_close, on_every_device, rounded};

/// Runs `test` on every device that shares its memory with the host.
fn on_devices(mut test: impl FnMut(&mut Stream)) {
    on_every_device(|stream| {
        if stream.device().shares_memory() {
            test(stream);
        }
    });
}

struct Call {
    device: MlxDevice,
    registry: KernelRegistry,
    encoder: CommandEncoder,
}

impl Call {
    fn on(device: &crate::Device) -> Call {
        let device = MlxDevice::on(device.clone()).unwrap();
        Call { encoder: device.command_encoder().unwrap(), registry: KernelRegistry::new(), device }
    }

    fn buffer<T: bytemuck::Pod>(&self, dtype: DType, elements: &[T]) -> MlxBuffer {
        let mut buffer = self.device.alloc_buffer(size_of_val(elements), dtype, vec![elements.len()]).unwrap();
        buffer.as_mut_slice::<T>().unwrap().copy_from_slice(elements);
        buffer
    }

    fn dispatch(
        &mut self,
        input: &MlxBuffer,
        output: &MlxBuffer,
        positions: &MlxBuffer,
        params: RopeMultiParams,
    ) -> Result<()> {
        let (floats, words, sections) = build_rope_multi_buffers(&self.device, params).unwrap();
        let device = self.device.metal_device();
        let (encoder, registry) = (&mut self.encoder, &mut self.registry);
        dispatch_rope_multi(encoder, registry, device, input, output, positions, &floats, &words, &sections, params)
    }
}

const PARAMS: RopeMultiParams = RopeMultiParams {
    head_dim: 8,
    rope_dim: 4,
    n_heads: 3,
    seq_len: 2,
    freq_base: 1e4,
    mode: RopeMultiMode::Mrope,
    sections: [1, 1, 0, 0],
};

#[test]
fn gives_exact_results_in_every_mode_and_type() {
    let golden = Golden::read("rope_multi");
    let cases = golden.cases().into_iter().filter(|(_, p)| p["pairing"] == "head_halves" && p["fallback"] == "extra");
    let mut modes = Vec::new();
    for (case, p) in cases {
        let number = |name: &str| p[name].as_u64().unwrap() as u32;
        let name = |name: &str| format!("{case}.{name}");
        let (x, exact) = (golden.values(&name("x")), golden.exact_values(&name("exact")));
        let cpu = crate::Device::cpu();
        let positions = golden.tensor(&cpu, &name("positions")).to_vec::<i32>(&mut cpu.stream()).unwrap();
        let seq_len = positions.len() as u32 / 4;
        let params = RopeMultiParams {
            head_dim: number("head_dim"),
            rope_dim: number("rope_dim"),
            n_heads: x.len() as u32 / number("head_dim") / seq_len,
            seq_len,
            freq_base: p["base"].as_f64().unwrap() as f32,
            mode: match number("mode") {
                8 => RopeMultiMode::Mrope,
                24 => RopeMultiMode::Vision,
                _ => RopeMultiMode::Imrope,
            },
            sections: serde_json::from_value(p["sections"].clone()).unwrap(),
        };
        modes.push(params.mode as u32);
        on_devices(|stream| {
            let call = &mut Call::on(stream.device());
            let positions = call.buffer(DType::I32, &positions);
            let input = call.buffer(DType::F32, &x);
            let output = call.buffer(DType::F32, &vec![0.0f32; x.len()]);
            call.dispatch(&input, &output, &positions, params).unwrap();
            call.encoder.commit_and_wait().unwrap();
            assert_close(DType::F32, &output.as_slice::<f32>().unwrap(), &exact, 0.25);

            // The half types, in place: their rounded input must be turned exactly too, so their error is rounding alone.
            let slack = |dtype| if dtype == DType::BF16 { 4.0 } else { 1.0 };
            let bits: Vec<u16> = x.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
            let bf = call.buffer(DType::BF16, &bits);
            let bits: Vec<u16> = x.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
            let hf = call.buffer(DType::F16, &bits);
            call.dispatch(&bf, &bf, &positions, params).unwrap();
            call.dispatch(&hf, &hf, &positions, params).unwrap();
            call.encoder.commit_and_wait().unwrap();
            for (dtype, buffer) in [(DType::BF16, bf), (DType::F16, hf)] {
                let bits = buffer.as_slice::<u16>().unwrap();
                for (i, (&bits, e)) in bits.iter().zip(&exact).enumerate() {
                    let got = if dtype == DType::BF16 {
                        bf16::from_bits(bits).to_f32()
                    } else {
                        f16::from_bits(bits).to_f32()
                    };
                    let tolerance = slack(dtype) * 4.0 / 1024.0;
                    assert!((got as f64 - e).abs() <= tolerance, "{case} {dtype} {i}: got {got}, wanted {e}");
                }
            }
        });
    }
    modes.sort();
    modes.dedup();
    assert_eq!(modes, [8, 24, 40]);
}

#[test]
fn takes_unsigned_positions_and_repeats_itself() {
    on_devices(|stream| {
        let call = &mut Call::on(stream.device());
        let x: Vec<f32> = rounded(DType::F32, &(0..48).map(|i| i as f32 / 7.0).collect::<Vec<_>>());
        let input = call.buffer(DType::F32, &x);
        let results: Vec<Vec<f32>> = [DType::I32, DType::U32, DType::U32]
            .map(|dtype| {
                let positions = call.buffer(dtype, &[3u32, 9, 1, 2, 0, 0, 0, 0]);
                let output = call.buffer(DType::F32, &[f32::NAN; 48]);
                call.dispatch(&input, &output, &positions, PARAMS).unwrap();
                call.encoder.commit_and_wait().unwrap();
                output.as_slice::<f32>().unwrap().to_vec()
            })
            .into();
        assert_eq!(results[0], results[1]);
        assert_eq!(results[1], results[2]);
        // Pairs 2 and 3, elements 2, 3, 6 and 7, pass through.
        assert!((0..48).filter(|i| i % 4 >= 2).all(|i| results[0][i] == x[i]));
        assert!((0..48).filter(|i| i % 8 == 0 && *i > 0).all(|i| results[0][i] != x[i]));
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let call = &mut Call::on(&crate::Device::cpu());
    let input = call.buffer(DType::F32, &[1.0f32; 48]);
    let output = call.buffer(DType::F32, &[0.0f32; 48]);
    let positions = call.buffer(DType::I32, &[0i32; 8]);
    let wrong: [(RopeMultiParams, &str); 15] = [
        (RopeMultiParams { head_dim: 0, ..PARAMS }, "head_dim: got 0"),
        (RopeMultiParams { rope_dim: 0, ..PARAMS }, "rope_dim: got 0"),
        (RopeMultiParams { n_heads: 0, ..PARAMS }, "n_heads: got 0"),
        (RopeMultiParams { seq_len: 0, ..PARAMS }, "seq_len: got 0"),
        (RopeMultiParams { head_dim: 7, ..PARAMS }, "head_dim: got 7, wanted an even number"),
        (RopeMultiParams { rope_dim: 3, ..PARAMS }, "rope_dim: got 3, wanted an even number"),
        (RopeMultiParams { rope_dim: 10, ..PARAMS }, "rope_dim: got 10, wanted at most head_dim, which is 8"),
        (RopeMultiParams { freq_base: f32::INFINITY, ..PARAMS }, "freq_base: got inf"),
        (RopeMultiParams { freq_base: f32::NAN, ..PARAMS }, "freq_base: got NaN"),
        (RopeMultiParams { freq_base: -1.0, ..PARAMS }, "freq_base: got -1, wanted a finite positive number"),
        (RopeMultiParams { freq_base: 0.0, ..PARAMS }, "freq_base: got 0, wanted a finite positive number"),
        (RopeMultiParams { freq_base: f32::NEG_INFINITY, ..PARAMS }, "freq_base: got -inf"),
        (
            RopeMultiParams { n_heads: 4, ..PARAMS },
            "input: got 48 elements, wanted seq_len 2 * n_heads 4 * head_dim 8 = 64",
        ),
        (RopeMultiParams { sections: [0; 4], ..PARAMS }, "sections: got [0, 0, 0, 0]"),
        (RopeMultiParams { mode: RopeMultiMode::Vision, rope_dim: 8, ..PARAMS }, "head_dim / 2 = 4"),
    ];
    for (params, message) in wrong {
        let error = call.dispatch(&input, &output, &positions, params).unwrap_err();
        assert!(matches!(error, MlxError::InvalidArgument(_)), "{error}");
        assert!(error.to_string().contains(message), "got {error:?}, wanted {message}");
    }
    let huge = RopeMultiParams { head_dim: u32::MAX - 1, n_heads: u32::MAX, seq_len: u32::MAX, ..PARAMS };
    assert!(call.dispatch(&input, &output, &positions, huge).is_err());

    let short = call.buffer(DType::F32, &[0.0f32; 40]);
    let half = call.buffer(DType::F16, &[0u16; 48]);
    let words = call.buffer(DType::U32, &[0u32; 48]);
    let floats = call.buffer(DType::F32, &[0.0f32; 8]);
    let bad: [(&MlxBuffer, &MlxBuffer, &MlxBuffer, &str); 6] = [
        (&short, &output, &positions, "input: got 40 elements"),
        (&input, &short, &positions, "output: got 40 elements"),
        (&input, &half, &positions, "output: got f16, wanted input's f32"),
        (&words, &words, &positions, "input: got u32, wanted f32, bf16 or f16"),
        (&input, &output, &short, "positions: got 40 elements, wanted 4 * seq_len 2 = 8"),
        (&input, &output, &floats, "positions: got f32, wanted i32 or u32"),
    ];
    for (input, output, positions, message) in bad {
        let error = call.dispatch(input, output, positions, PARAMS).unwrap_err().to_string();
        assert!(error.contains(message), "got {error:?}, wanted {message}");
    }

    // A small buffer that says something else than the parameters.
    let (floats, words, _) = build_rope_multi_buffers(&call.device, PARAMS).unwrap();
    let (_, _, sections) =
        build_rope_multi_buffers(&call.device, RopeMultiParams { sections: [0, 1, 1, 0], ..PARAMS }).unwrap();
    let device = call.device.metal_device();
    let (e, r) = (&mut call.encoder, &mut call.registry);
    let error = dispatch_rope_multi(e, r, device, &input, &output, &positions, &floats, &words, &sections, PARAMS);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "rope_multi: sections_buf: got [0, 1, 1, 0], wanted what the parameters say, [1, 1, 0, 0]");
    call.encoder.commit_and_wait().unwrap();
    assert_eq!(*output.as_slice::<f32>().unwrap(), [0.0; 48], "nothing was written");

    // Memory of another device.
    let other = Call::on(&crate::Device::cpu());
    let foreign = other.buffer(DType::F32, &[0.0f32; 48]);
    assert!(call.dispatch(&foreign, &output, &positions, PARAMS).is_err());
    let alloc = |bytes, shape| call.device.alloc_buffer(bytes, DType::F32, shape).unwrap_err().to_string();
    assert!(alloc(0, vec![0]).contains("got 0 bytes"));
    assert!(alloc(16, vec![5]).contains("wanted enough for f32[5]"));
    assert!(alloc(16, vec![usize::MAX, 2]).contains("wanted enough"));
}

/// D-30: the host neither reads what work writes nor writes what work reads, and no two slices to write are of one buffer.
#[test]
fn d_30_the_host_waits_for_encoded_work() {
    on_devices(|stream| {
        let call = &mut Call::on(stream.device());
        let mut input = call.buffer(DType::F32, &[1.0f32; 48]);
        let mut output = call.buffer(DType::F32, &[0.0f32; 48]);
        let positions = call.buffer(DType::I32, &[0i32; 8]);

        let reading = output.as_slice::<f32>().unwrap();
        let error = call.dispatch(&input, &output, &positions, PARAMS).unwrap_err().to_string();
        assert!(error.contains("drop what as_slice returned"), "{error}");
        assert_eq!(reading[0], 0.0);
        drop(reading);

        call.dispatch(&input, &output, &positions, PARAMS).unwrap();
        assert!(output.as_slice::<f32>().unwrap_err().to_string().contains("commit_and_wait"));
        assert!(output.as_mut_slice::<f32>().is_err());
        assert_eq!(input.as_slice::<f32>().unwrap()[0], 1.0, "what work only reads may be read");
        assert!(input.as_mut_slice::<f32>().is_err());
        call.encoder.commit_and_wait().unwrap();
        assert_eq!(output.as_mut_slice::<f32>().unwrap()[..], [1.0; 48]);
        input.as_mut_slice::<f32>().unwrap()[0] = 2.0;
        assert!(input.as_slice::<[f32; 5]>().unwrap_err().to_string().contains("divides 192 bytes"));
    });
}

#[test]
fn a_device_with_memory_of_its_own_is_refused() {
    on_every_device(|stream| {
        let (device, kind) = (stream.device().clone(), stream.device().kind());
        assert_eq!(MlxDevice::on(device).is_ok(), kind != crate::DeviceKind::Cuda);
    });
    assert!(MlxDevice::new().is_ok());
}

#[test]
fn registers_the_kernels_by_name() {
    let mut registry = KernelRegistry::new();
    ops::rope_multi::register(&mut registry);
    assert_eq!(registry.names(), ["rope_multi_f32", "rope_multi_bf16", "rope_multi_f16"]);
    assert_eq!([RopeMultiMode::Mrope as u32, RopeMultiMode::Vision as u32, RopeMultiMode::Imrope as u32], [8, 24, 40]);
}
