//! Keys and values of the tokens so far.

use silicide::{DType, Device, Tensor};

use crate::error::Result;

/// Room for the keys and values of a number of tokens, layer by layer.
pub(crate) struct KvCache {
    /// `[capacity, kv_heads, head_dim]` each; in memory a head's tokens follow each other, so that attention reads
    /// from front to back.
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
}

/// The sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvCache {
    pub(crate) fn new(device: &Device, shape: CacheShape, dtype: DType, capacity: usize) -> Result<KvCache> {
        let all = device.zeros(dtype, [2 * shape.layers, shape.kv_heads, capacity, shape.head_dim])?;
        let part = |i| -> Result<Tensor> {
            let part = all.slice(0, i..i + 1)?.reshape([shape.kv_heads, capacity, shape.head_dim])?;
            Ok(part.permute(&[1, 0, 2])?)
        };
        let layers = (0..shape.layers).map(|i| Ok((part(2 * i)?, part(2 * i + 1)?))).collect::<Result<_>>()?;
        Ok(KvCache { layers, capacity })
    }

    /// A cache without room.
    pub(crate) fn empty() -> KvCache {
        KvCache { layers: Vec::new(), capacity: 0 }
    }

    /// How many tokens it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[layer];
        (keys, values)
    }

    /// Every tensor, keys before values.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(keys, values)| [keys, values])
    }
}
