//! Gemma 3, text only: norms before and after each branch, layers with a sliding window between layers that see all.

use serde::Deserialize;
use silicide::Tensor;
use silicide::ops::{Gate, Pairing, Rope};

use super::Decoder;
use crate::cache::CacheShape;
use crate::error::Result;
use crate::load::Weights;
use crate::nn::{Attention, AttentionArgs, Embedding, Linear, Mlp, Residual, RmsNorm, Step};

#[derive(Deserialize)]
struct Args {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "default_head_dim")]
    head_dim: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    #[serde(default = "default_head_dim_f32")]
    query_pre_attn_scalar: f32,
    sliding_window: Option<usize>,
    /// `sliding_attention` or `full_attention`, layer by layer.
    layer_types: Option<Vec<String>>,
    /// Older files, under either name: every so-manieth layer sees all.
    sliding_window_pattern: Option<usize>,
    _sliding_window_pattern: Option<usize>,
    attn_logit_softcapping: Option<f32>,
    #[serde(default = "default_tie")]
    tie_word_embeddings: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
}

fn default_head_dim() -> usize {
    256
}

fn default_head_dim_f32() -> f32 {
    256.0
}

fn default_eps() -> f32 {
    1e-6
}

fn default_tie() -> bool {
    true
}

fn default_positions() -> usize {
    32_768
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

impl Block {
    fn forward(&self, step: &mut Step, x: &mut Residual) -> Result<()> {
        let normed = x.norm(step, &self.input_layernorm)?;
        let branch = self.self_attn.forward(step, &normed)?;
        x.add(self.post_attention_layernorm.forward(step, &branch)?);
        let normed = x.norm(step, &self.pre_feedforward_layernorm)?;
        let branch = self.mlp.forward(step, &normed)?;
        x.add(self.post_feedforward_layernorm.forward(step, &branch)?);
        Ok(())
    }
}

struct Model {
    args: Args,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Decoder for Model {
    fn forward(&self, step: &mut Step, tokens: &Tensor) -> Result<Tensor> {
        let mut x = Residual::new(self.embed_tokens.forward(step, tokens)?);
        for layer in &self.layers {
            layer.forward(step, &mut x)?;
        }
        x.norm(step, &self.norm)
    }

    fn logits(&self, step: &mut Step, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(step, hidden)
    }

    fn cache_shape(&self) -> CacheShape {
        let args = &self.args;
        CacheShape { layers: args.num_hidden_layers, kv_heads: args.num_key_value_heads, head_dim: args.head_dim }
    }

    fn vocabulary(&self) -> usize {
        self.lm_head.weight.rows()
    }

    fn max_positions(&self) -> usize {
        self.args.max_position_embeddings
    }
}

impl Args {
    fn is_sliding(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(layer).is_some_and(|t| t == "sliding_attention"),
            None => {
                let pattern = self.sliding_window_pattern.or(self._sliding_window_pattern).unwrap_or(6);
                !(layer + 1).is_multiple_of(pattern.max(1))
            }
        }
    }
}

pub(super) fn load(w: &Weights) -> Result<Box<dyn Decoder>> {
    let args: Args = w.args()?;
    let (hidden, eps, head_dim) = (args.hidden_size, args.rms_norm_eps, args.head_dim);
    let full = w.rope(Some("full_attention"), 1_000_000.0, head_dim)?;
    let sliding = w.rope_local(10_000.0, head_dim)?;
    // Checkpoints hold the norms' weights less one; GGUF files hold them whole.
    let offset = if w.is_gguf() { 0.0 } else { 1.0 };
    let norm = |path: &str, dim: usize| w.rms_norm(path, dim, eps, offset);
    let activation = w.activation("hidden_activation", Gate::GeluTanh)?;
    let block = |layer: usize| {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let is_sliding = args.is_sliding(layer);
        Ok(Block {
            input_layernorm: norm(&path("input_layernorm"), hidden)?,
            self_attn: Attention {
                args: AttentionArgs {
                    layer,
                    heads: args.num_attention_heads,
                    kv_heads: args.num_key_value_heads,
                    head_dim,
                    scale: 1.0 / args.query_pre_attn_scalar.sqrt(),
                    window: args.sliding_window.filter(|_| is_sliding),
                    softcap: args.attn_logit_softcapping,
                },
                q_proj: w.linear(&path("self_attn.q_proj"), args.num_attention_heads * head_dim, hidden)?,
                k_proj: w.linear(&path("self_attn.k_proj"), args.num_key_value_heads * head_dim, hidden)?,
                v_proj: w.linear(&path("self_attn.v_proj"), args.num_key_value_heads * head_dim, hidden)?,
                o_proj: w.linear(&path("self_attn.o_proj"), hidden, args.num_attention_heads * head_dim)?,
                qk_norm: Some((norm(&path("self_attn.q_norm"), head_dim)?, norm(&path("self_attn.k_norm"), head_dim)?)),
                rope: Rope::new(w.device(), if is_sliding { &sliding } else { &full }, Pairing::Halves)?,
            },
            post_attention_layernorm: norm(&path("post_attention_layernorm"), hidden)?,
            pre_feedforward_layernorm: norm(&path("pre_feedforward_layernorm"), hidden)?,
            mlp: w.mlp(&path("mlp"), hidden, args.intermediate_size, activation)?,
            post_feedforward_layernorm: norm(&path("post_feedforward_layernorm"), hidden)?,
        })
    };
    let (embed_tokens, lm_head) = w.embedding_and_head(args.tie_word_embeddings, hidden, (hidden as f32).sqrt())?;
    Ok(Box::new(Model {
        embed_tokens,
        layers: (0..args.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm("model.norm", hidden)?,
        lm_head,
        args,
    }))
}
