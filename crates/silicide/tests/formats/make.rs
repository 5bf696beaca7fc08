//! Files made byte by byte.

/// A safetensors file of a header and data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A small, whole safetensors file.
pub(crate) fn good_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"mlx"},"b":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},
        "a.weight":{"dtype":"U32","shape":[2,1],"data_offsets":[6,14]}, "none":{"dtype":"F32","shape":[0,7],"data_offsets":[14,14]}}"#;
    safetensors(header, &[7; 14])
}

/// A GGUF file, put together piece by piece; counts are as given, not as they should be.
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) tensor_count: u64,
    pub(crate) metadata_count: u64,
    pub(crate) tables: Vec<u8>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Gguf {
    pub(crate) fn new() -> Gguf {
        Gguf { version: 3, tensor_count: 0, metadata_count: 0, tables: Vec::new(), alignment: 32, data: Vec::new() }
    }

    /// A pair whose value has this kind and these bytes. All pairs come before all tensors.
    pub(crate) fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Gguf {
        self.metadata_count += 1;
        self.tables.extend(string(key));
        self.tables.extend(kind.to_le_bytes());
        self.tables.extend(value);
        self
    }

    /// A tensor, dimensions in ggml's order.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Gguf {
        self.tensor_count += 1;
        self.tables.extend(string(name));
        self.tables.extend((dims.len() as u32).to_le_bytes());
        self.tables.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        self.tables.extend(type_id.to_le_bytes());
        self.tables.extend(offset.to_le_bytes());
        self
    }

    pub(crate) fn data(mut self, bytes: usize) -> Gguf {
        self.data = vec![0x55; bytes];
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.metadata_count.to_le_bytes());
        out.extend(&self.tables);
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A GGUF string.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The bytes of a GGUF array: kind of the elements, count, elements.
pub(crate) fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), &count.to_le_bytes()[..], elements].concat()
}

/// A small, whole GGUF file.
pub(crate) fn good_gguf() -> Gguf {
    Gguf::new()
        .pair("general.architecture", 8, &string("llama"))
        .pair("llama.block_count", 4, &2u32.to_le_bytes())
        .pair("tokens", 9, &array(8, 2, &[string("a"), string("b")].concat()))
        .pair("nested", 9, &array(9, 1, &array(5, 2, &[1; 8])))
        .pair("flags", 9, &array(7, 2, &[0, 1]))
        .tensor("q", &[32, 2], 2, 0)
        .tensor("norm", &[5], 0, 64)
        .tensor("odd", &[3], 999, 96)
        .data(100)
}

/// A configuration with every form of entry.
pub(crate) fn good_config() -> Vec<u8> {
    br#"{"model_type": "llama", "rope_scaling": {"factor": 8.0}, "time_step_limit": [0.0, Infinity],
        "quantization": {"group_size": 64, "bits": 4, "mode": "affine", "lm_head": false, "model.a": true,
        "model.b": {"group_size": 32, "bits": 8}, "model.c": {"mode": "nvfp4", "bits": 4, "group_size": 16}}}"#
        .to_vec()
}
