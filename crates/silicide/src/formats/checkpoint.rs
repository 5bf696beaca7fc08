//! One view over the files of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::mlx::{self, Quantization};
use super::safetensors::SafetensorsFile;
use super::{Mapped, RawTensor, TensorEntry, TensorTable, gguf, json};
use crate::quant::QuantFormat;
use crate::{Error, Result};

/// An open checkpoint: a folder with `config.json` and `model*.safetensors`, or a GGUF file.
///
/// ```no_run
/// use silicide::formats::Checkpoint;
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct-4bit".as_ref())?;
/// for entry in checkpoint.entries() {
///     println!("{} {} {}", entry.name, entry.dtype, entry.shape);
/// }
/// let embedding = checkpoint.get("model.embed_tokens.weight")?;
/// let format = checkpoint.quant_format("model.embed_tokens", 576)?;
/// # Ok::<(), silicide::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    files: Vec<TensorTable>,
    /// File and entry of every tensor, sorted by name.
    by_name: Vec<(u32, u32)>,
    warnings: Vec<String>,
}

/// Who wrote a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder of MLX: tensors are named and laid out as mlx-lm has them.
    Mlx,
    /// A folder of Hugging Face transformers.
    HuggingFace,
    /// A GGUF file, or the parts of one.
    Gguf,
}

#[derive(Clone, Debug)]
enum Source {
    Folder { kind: Kind, config: Value },
    Gguf(gguf::Metadata),
}

impl Checkpoint {
    /// Opens a folder, a GGUF file, or any part of a split one. Only headers are read.
    ///
    /// In a folder all `model*.safetensors` are taken, as mlx-lm does. `model.safetensors.index.json` is only a hint,
    /// since published ones are stale: where it disagrees with the files there is a [warning](Self::warnings).
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming file and field: no weights, no `config.json`, a tensor in two files, and
    /// whatever the readers of the formats find.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        if fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
            Checkpoint::open_folder(path)
        } else {
            Checkpoint::open_gguf(path)
        }
    }

    fn open_folder(path: &Path) -> Result<Checkpoint> {
        let weights = weight_files(path)?;
        let config_path = path.join(CONFIG);
        let config = json::read(&config_path)?;
        if !config.is_object() {
            return Err(Error::format(config_path, "file", "is not a JSON object"));
        }
        let (mut files, mut kind) = (Vec::new(), Kind::HuggingFace);
        for weights in &weights {
            let file = SafetensorsFile::open(weights)?;
            if file.metadata.get("format").is_some_and(|f| f == "mlx") {
                kind = Kind::Mlx;
            }
            files.push(file.tensors);
        }
        if config.get("quantization").is_some_and(|q| !q.is_null()) {
            kind = Kind::Mlx;
        }
        let mut checkpoint = Checkpoint::new(path, Source::Folder { kind, config }, files)?;
        checkpoint.warnings.extend(missing_shards(&weights));
        checkpoint.warnings.extend(checkpoint.index_warning());
        Ok(checkpoint)
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint> {
        let mut metadata = None;
        let mut files = Vec::new();
        for part in gguf::open_split(path)? {
            metadata.get_or_insert(part.metadata);
            files.push(part.tensors);
        }
        let metadata = metadata.expect("a split model has at least one part");
        Checkpoint::new(path, Source::Gguf(metadata), files)
    }

    fn new(path: &Path, source: Source, files: Vec<TensorTable>) -> Result<Checkpoint> {
        let mut by_name: Vec<(u32, u32)> = Vec::new();
        for (i, file) in files.iter().enumerate() {
            by_name.extend((0..file.entries().len()).map(|j| (i as u32, j as u32)));
        }
        let entry = |&(file, entry): &(u32, u32)| &files[file as usize].entries()[entry as usize];
        by_name.sort_unstable_by_key(|at| (&entry(at).name, at.0));
        if let Some([a, b]) = by_name.windows(2).find(|pair| entry(&pair[0]).name == entry(&pair[1]).name) {
            let (first, second) = (files[a.0 as usize].path(), files[b.0 as usize].path());
            let message = format!("is in {} as well; remove the file that does not belong", first.display());
            return Err(Error::format(second, &*entry(a).name, message));
        }
        Ok(Checkpoint { path: path.into(), source, files, by_name, warnings: Vec::new() })
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Format`] naming the checkpoint and the tensor where there is none.
    pub fn get(&self, name: &str) -> Result<RawTensor> {
        self.find(name).ok_or_else(|| {
            let message = match (self.entries().next(), self.entries().last()) {
                (Some(first), Some(last)) => {
                    format!("there is no such tensor among {}, {:?} to {:?}", self.by_name.len(), first.name, last.name)
                }
                _ => "there are no tensors at all".into(),
            };
            Error::format(&*self.path, name, message)
        })
    }

    /// The tensor of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<RawTensor> {
        let at = self.by_name.binary_search_by(|&at| self.entry(at).name.as_str().cmp(name)).ok()?;
        let at = self.by_name[at];
        Some(self.files[at.0 as usize].tensor(self.entry(at)))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.binary_search_by(|&at| self.entry(at).name.as_str().cmp(name)).is_ok()
    }

    /// All tensors, sorted by name.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &TensorEntry> + ExactSizeIterator {
        self.by_name.iter().map(|&at| self.entry(at))
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.entries().map(|e| e.name.as_str())
    }

    /// Who wrote it.
    pub fn kind(&self) -> Kind {
        match &self.source {
            Source::Folder { kind, .. } => *kind,
            Source::Gguf(_) => Kind::Gguf,
        }
    }

    /// The folder or the file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold tensors, in order of their names.
    pub fn files(&self) -> &[TensorTable] {
        &self.files
    }

    /// What `config.json` says; `None` for GGUF.
    pub fn config(&self) -> Option<&Value> {
        match &self.source {
            Source::Folder { config, .. } => Some(config),
            Source::Gguf(_) => None,
        }
    }

    /// GGUF metadata; `None` for folders.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        match &self.source {
            Source::Folder { .. } => None,
            Source::Gguf(metadata) => Some(metadata),
        }
    }

    /// What looks wrong and may not matter: shards that are missing, an index that disagrees.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The quantisation that `config.json` declares; `None` where there is none, and for GGUF.
    ///
    /// # Errors
    /// As [`Quantization::from_config`].
    pub fn quantization(&self) -> Result<Option<Quantization<'_>>> {
        match self.config() {
            Some(config) => Quantization::from_config(&self.path.join(CONFIG), config),
            None => Ok(None),
        }
    }

    /// How the weight of the module at `module_path` is quantised in a folder, `None` for not at all; `row` is the
    /// length of its rows in elements. An entry of `config.json` for the module counts first, then the tensors'
    /// own shapes, as in mlx-lm.
    ///
    /// # Errors
    /// [`Error::Format`] where the entry, the tensors and `row` do not agree.
    pub fn quant_format(&self, module_path: &str, row: usize) -> Result<Option<QuantFormat>> {
        let scales = self.find(&format!("{module_path}.scales"));
        let quantization = self.quantization()?;
        let declared = match &quantization {
            Some(q) if q.names(module_path) => q.format_for(module_path, scales.is_some())?,
            _ => None,
        };
        let Some(scales) = scales else { return Ok(None) };
        if let Some(global) = self.find(&format!("{module_path}.global_scale")) {
            return Err(global.error("scales of scales are not read; convert the model anew with mlx_lm.convert"));
        }
        let found = mlx::infer_format(&self.get(&format!("{module_path}.weight"))?, &scales, row)?;
        match declared {
            Some(declared) if declared != found => {
                let message = format!("its shape is that of {found}, {CONFIG} says {declared}");
                Err(scales.error(message))
            }
            _ => Ok(Some(found)),
        }
    }

    fn entry(&self, (file, entry): (u32, u32)) -> &TensorEntry {
        &self.files[file as usize].entries()[entry as usize]
    }

    fn index_warning(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let path = self.path.join("model.safetensors.index.json");
        if !path.exists() {
            return None;
        }
        let index = match Mapped::open(&path) {
            Ok(bytes) => serde_json::from_slice::<Index>(&bytes).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let index = match index {
            Ok(index) => index.weight_map,
            Err(e) => return Some(format!("{} was not read: {e}", path.display())),
        };
        let mut absent = index.iter().filter(|(name, _)| !self.contains(name));
        let (name, file) = absent.next()?;
        let count = 1 + absent.count();
        Some(format!("{}: names {count} tensors that no file holds, such as {name:?} in {file:?}", path.display()))
    }
}

const CONFIG: &str = "config.json";

/// All `model*.safetensors`, sorted.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(folder, e);
    let (mut weights, mut others) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            weights.push(entry.path());
        } else if [".safetensors", ".gguf", ".bin", ".pt", ".npz"].iter().any(|end| name.ends_with(end)) {
            others.insert(name.into_owned());
        }
    }
    if weights.is_empty() {
        let found = match others.into_iter().collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => String::new(),
            names if names.contains(".gguf") => format!("; found {names} (a GGUF file is opened by its own path)"),
            names => format!("; found {names}"),
        };
        return Err(Error::format(folder, "model*.safetensors", format!("there is none in the folder{found}")));
    }
    weights.sort();
    Ok(weights)
}

/// A warning for each set `NAME-i-of-n.safetensors` that is not complete.
fn missing_shards(weights: &[PathBuf]) -> Vec<String> {
    let mut sets: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for path in weights {
        let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if let Some((start, total)) = name.split_once("-of-")
            && let Some((prefix, _)) = start.rsplit_once('-')
        {
            *sets.entry((prefix, total)).or_default() += 1;
        }
    }
    sets.into_iter()
        .filter_map(|((prefix, total), found)| {
            let wanted: usize = total.parse().ok()?;
            (found != wanted).then(|| format!("{prefix}-*-of-{total}.safetensors: {found} of {wanted} files are there"))
        })
        .collect()
}
