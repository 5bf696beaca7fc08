//! Folders and split files put together here, to see what is made of them.

use std::fs;
use std::path::Path;

use silicide::formats::safetensors::{self, SafetensorsFile, TensorData};
use silicide::formats::{Checkpoint, Kind};
use silicide::quant::QuantFormat;
use silicide::{DType, Error, Shape};
use tempfile::TempDir;

use crate::make::{Gguf, string};

fn folder(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// Writes a file of zeros by name, dtype and shape.
fn weights(dir: &TempDir, file: &str, tensors: &[(&str, DType, Shape)]) {
    let bytes = vec![0; 1 << 16];
    let data = |&(name, dtype, shape): &(_, DType, Shape)| TensorData {
        name,
        dtype,
        shape,
        bytes: &bytes[..shape.elements() * dtype.size()],
    };
    safetensors::write(&dir.path().join(file), &tensors.iter().map(data).collect::<Vec<_>>(), &[]).unwrap();
}

fn one(name: &str) -> [(&str, DType, Shape); 1] {
    [(name, DType::F32, Shape::from([2]))]
}

fn open_error(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

/// D-39: the files that mlx-lm writes are found by their names, and no other is read.
#[test]
fn d_39_all_shards_are_read_and_nothing_else() {
    let dir = folder(r#"{"model_type": "llama"}"#);
    weights(&dir, "model-00002-of-00002.safetensors", &one("b"));
    weights(&dir, "model-00001-of-00002.safetensors", &one("c"));
    weights(&dir, "model-extra.safetensors", &one("a"));
    weights(&dir, "adapters.safetensors", &one("a"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.get("c").unwrap().path.file_name().unwrap(), "model-00001-of-00002.safetensors");
    assert_eq!((checkpoint.kind(), checkpoint.warnings().len()), (Kind::HuggingFace, 0));
    assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
    let error = checkpoint.get("d").unwrap_err().to_string();
    assert!(error.ends_with(r#": d: there is no such tensor among 3, "a" to "c""#), "{error}");
}

#[test]
fn a_stale_index_and_missing_shards_only_warn() {
    let dir = folder("{}");
    weights(&dir, "model-00001-of-00003.safetensors", &one("a"));
    let index =
        r#"{"metadata": {}, "weight_map": {"a": "old.safetensors", "x": "y.safetensors", "z": "y.safetensors"}}"#;
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [shards, index] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
    assert_eq!(shards, "model-*-of-00003.safetensors: 1 of 3 files are there");
    assert!(index.ends_with(r#"names 2 tensors that no file holds, such as "x" in "y.safetensors""#), "{index}");

    fs::write(dir.path().join("model.safetensors.index.json"), "not JSON").unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().warnings()[1].contains("was not read"));
}

#[test]
fn folders_that_are_not_checkpoints_say_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open_error(dir.path()).ends_with("model*.safetensors: there is none in the folder"));
    fs::write(dir.path().join("tiny.gguf"), "").unwrap();
    assert!(open_error(dir.path()).ends_with("found tiny.gguf (a GGUF file is opened by its own path)"));
    weights(&dir, "model.safetensors", &one("a"));
    assert!(matches!(Checkpoint::open(dir.path()), Err(Error::Io { path, .. }) if path.ends_with("config.json")));
    fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert!(open_error(dir.path()).ends_with("config.json: file: is not a JSON object"));
    assert!(open_error(&dir.path().join("model.safetensors")).contains("model.safetensors: magic: is "));
    assert!(matches!(Checkpoint::open(&dir.path().join("nothing")), Err(Error::Io { .. })));
}

#[test]
fn a_tensor_in_two_files_names_both() {
    let dir = folder("{}");
    weights(&dir, "model.safetensors", &one("a"));
    weights(&dir, "model-00001-of-00001.safetensors", &one("a"));
    let error = open_error(dir.path());
    assert!(
        error.contains("model.safetensors: a: is in ") && error.contains("model-00001-of-00001.safetensors"),
        "{error}"
    );
}

#[test]
fn a_broken_shard_names_itself() {
    let dir = folder("{}");
    weights(&dir, "model-00001-of-00002.safetensors", &one("a"));
    fs::write(dir.path().join("model-00002-of-00002.safetensors"), [0; 3]).unwrap();
    assert!(open_error(dir.path()).contains("model-00002-of-00002.safetensors: header: a file of 3 bytes"));
}

/// Packed codes and scales of a weight with 2 rows of `row` elements.
fn packed(dir: &TempDir, module: &str, bits: usize, group_size: usize, scales: DType, row: usize) {
    let (weight, scale) = (format!("{module}.weight"), format!("{module}.scales"));
    let tensors = [
        (&*weight, DType::U32, Shape::from([2, row * bits / 32])),
        (&*scale, scales, Shape::from([2, row / group_size])),
    ];
    weights(dir, &format!("model-{module}.safetensors"), &tensors);
}

/// D-39: bits and group sizes are those of `config.json`.
#[test]
fn d_39_entries_of_modules_follow_the_rules_of_mlx_lm() {
    let dir = folder(
        r#"{"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4", "off": false, "on": true, "plain": {},
            "model.layers.0.gate": {"bits": 8}, "language_model.model.up": {"mode": "nvfp4"}, "odd": "yes"}}"#,
    );
    weights(&dir, "model.safetensors", &one("norm.weight"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let quantization = checkpoint.quantization().unwrap().unwrap();
    let format = |path, has_scales| quantization.format_for(path, has_scales);
    assert_eq!(format("any", true).unwrap(), Some(QuantFormat::Mxfp4));
    assert_eq!(format("any", false).unwrap(), None);
    assert_eq!(format("off", false).unwrap(), None);
    assert_eq!(format("on", true).unwrap(), Some(QuantFormat::Mxfp4));
    // Without a mode an entry is affine, whatever the block is.
    assert_eq!(format("plain", true).unwrap(), Some(QuantFormat::Affine { bits: 4, group_size: 64 }));
    let gate = Some(QuantFormat::Affine { bits: 8, group_size: 64 });
    assert_eq!(format("model.layers.0.gate", true).unwrap(), gate);
    assert_eq!(format("language_model.model.layers.0.gate", true).unwrap(), gate);
    assert_eq!(format("model.language_model.layers.0.gate", true).unwrap(), gate);
    assert_eq!(format("model.up", true).unwrap(), Some(QuantFormat::Nvfp4));
    assert_eq!(format("layers.0.gate", true).unwrap(), Some(QuantFormat::Mxfp4));

    let error = |path, has_scales| format(path, has_scales).unwrap_err().to_string();
    assert!(
        error("off", true)
            .ends_with("quantization.off: says that the module is not quantised, but the checkpoint has its scales")
    );
    assert!(
        error("on", false)
            .ends_with("quantization.on: says that the module is quantised, but the checkpoint lacks its scales")
    );
    assert!(error("odd", true).ends_with(r#"quantization.odd: is "yes", wanted an object, true or false"#));
}

#[test]
fn shapes_tell_the_format_of_modules_without_an_entry() {
    let dir = folder(r#"{"quantization": {"group_size": 64, "bits": 4, "wrong": {"group_size": 64, "bits": 8}}}"#);
    let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
    let cases = [
        ("a", 4, 64, DType::BF16, Some(affine(4, 64))),
        ("b", 3, 32, DType::F16, Some(affine(3, 32))),
        ("c", 8, 128, DType::F32, Some(affine(8, 128))),
        ("d", 4, 32, DType::U8, Some(QuantFormat::Mxfp4)),
        ("e", 4, 16, DType::U8, Some(QuantFormat::Nvfp4)),
        ("f", 8, 32, DType::U8, Some(QuantFormat::Mxfp8)),
        ("wrong", 4, 64, DType::F16, None),
        ("no-format", 4, 256, DType::F16, None),
    ];
    for (module, bits, group_size, scales, _) in cases {
        packed(&dir, module, bits, group_size, scales, 512);
    }
    packed(&dir, "scaled", 4, 16, DType::U8, 512);
    weights(&dir, "model-global.safetensors", &one("scaled.global_scale"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (module, .., wanted) in cases {
        assert_eq!(checkpoint.quant_format(module, 512).ok().flatten(), wanted, "{module}");
    }
    let error = |module, row| checkpoint.quant_format(module, row).unwrap_err().to_string();
    assert!(
        error("wrong", 512)
            .ends_with("wrong.scales: its shape is that of affine 4-bit gs64, config.json says affine 8-bit gs64")
    );
    assert!(error("scaled", 512).contains("scaled.global_scale: scales of scales are not read"));
    assert!(error("a", 500).ends_with("a.scales: bf16 [2, 8] with codes u32 [2, 64] is no format for rows of 500"));
    assert!(error("a", 0).ends_with("rows of 0"));
    assert!(error("a", usize::MAX).contains("is no format for rows of"));
}

#[test]
fn written_files_read_back_aligned_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let data: Vec<u8> = (0..24).collect();
    let tensor =
        |name, dtype, len| TensorData { name, dtype, shape: Shape::from([len]), bytes: &data[..len * dtype.size()] };
    let tensors = [
        tensor("a", DType::Bool, 3),
        tensor("b", DType::F32, 2),
        tensor("c", DType::I64, 3),
        tensor("d", DType::F16, 1),
    ];
    safetensors::write(&path, &tensors, &[("format", "mlx")]).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.metadata["format"], "mlx");
    for t in &tensors {
        let read = file.tensors.get(t.name).unwrap();
        assert_eq!((read.dense().unwrap(), read.shape, &read.bytes[..]), (t.dtype, t.shape, t.bytes));
        assert_eq!(read.bytes.as_ptr() as usize % t.dtype.size(), 0, "{}", t.name);
    }

    let before = fs::read(&path).unwrap();
    let error = |tensors: &[TensorData<'_>]| safetensors::write(&path, tensors, &[]).unwrap_err().to_string();
    assert!(error(&[TensorData { shape: Shape::from([4]), ..tensors[1] }]).contains("has 8 bytes, f32 [4] takes 16"));
    assert!(error(&[tensors[0], tensors[0]]).contains(r#"the name "a" is taken"#));
    assert!(error(&[TensorData { name: "__metadata__", ..tensors[0] }]).contains("is taken"));
    assert_eq!(fs::read(&path).unwrap(), before);

    fs::create_dir(dir.path().join("taken")).unwrap();
    assert!(matches!(safetensors::write(&dir.path().join("taken"), &tensors, &[]), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn split(no: u16, count: u16, tensors: i32, name: &str) -> Vec<u8> {
    let file = Gguf::new().pair("split.no", 2, &no.to_le_bytes()).pair("split.count", 2, &count.to_le_bytes());
    file.pair("split.tensors.count", 5, &tensors.to_le_bytes()).tensor(name, &[1], 0, 0).data(4).bytes()
}

#[test]
fn split_files_must_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let part = |n: u16| dir.path().join(format!("m-{n:05}-of-00003.gguf"));
    let write = |n: u16, bytes: Vec<u8>| fs::write(part(n), bytes).unwrap();
    write(1, split(0, 3, 3, "a"));
    write(2, split(1, 3, 3, "b"));
    let error = open_error(&part(2));
    assert!(
        error.contains("split.count: 1 of 3 parts are missing: ") && error.ends_with("m-00003-of-00003.gguf"),
        "{error}"
    );
    write(3, split(2, 3, 3, "a"));
    assert!(open_error(&part(1)).contains("m-00003-of-00003.gguf: a: is in "));
    write(3, split(1, 3, 3, "c"));
    assert!(open_error(&part(1)).ends_with("m-00003-of-00003.gguf: split.no: is 1, the file's name says 2"));
    write(3, split(2, 3, 3, "c"));
    assert_eq!(Checkpoint::open(&part(3)).unwrap().names().collect::<Vec<_>>(), ["a", "b", "c"]);
    write(1, split(0, 3, 4, "a"));
    assert!(open_error(&part(1)).ends_with("split.tensors.count: is 4, the 3 parts have 3"));

    let renamed = dir.path().join("renamed.gguf");
    fs::copy(part(1), &renamed).unwrap();
    assert!(open_error(&renamed).contains("split.count: is 3, so the name should end in -00001-of-00003.gguf"));
    fs::write(&renamed, Gguf::new().pair("general.architecture", 8, &string("llama")).bytes()).unwrap();
    assert_eq!(Checkpoint::open(&renamed).unwrap().kind(), Kind::Gguf);
}
