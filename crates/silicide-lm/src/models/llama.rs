//! Llama and what is built like it: SmolLM2, Llama 3, Mistral.

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
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
}

fn default_positions() -> usize {
    2048
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn forward(&self, step: &mut Step, x: &mut Residual) -> Result<()> {
        let normed = x.norm(step, &self.input_layernorm)?;
        self.self_attn.add_to(x, step, &normed)?;
        let normed = x.norm(step, &self.post_attention_layernorm)?;
        self.mlp.add_to(x, step, &normed)
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
        CacheShape { layers: args.num_hidden_layers, kv_heads: args.kv_heads(), head_dim: args.head_dim() }
    }

    fn vocabulary(&self) -> usize {
        self.lm_head.weight.rows()
    }

    fn max_positions(&self) -> usize {
        self.args.max_position_embeddings
    }
}

impl Args {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }
}

pub(super) fn load(w: &Weights) -> Result<Box<dyn Decoder>> {
    let args: Args = w.args()?;
    let (hidden, eps, head_dim) = (args.hidden_size, args.rms_norm_eps, args.head_dim());
    let frequencies = w.rope(None, 10_000.0, head_dim)?;
    // GGUF files hold Llama's query and key rows in the order that interleaved pairs want.
    let pairing = if w.is_gguf() { Pairing::Interleaved } else { Pairing::Halves };
    let activation = w.activation("hidden_act", Gate::Silu)?;
    let block = |layer: usize| {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        Ok(Block {
            input_layernorm: w.rms_norm(&path("input_layernorm"), hidden, eps, 0.0)?,
            self_attn: Attention {
                args: AttentionArgs {
                    layer,
                    heads: args.num_attention_heads,
                    kv_heads: args.kv_heads(),
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    window: args.sliding_window,
                    softcap: None,
                },
                q_proj: w.linear(&path("self_attn.q_proj"), args.num_attention_heads * head_dim, hidden)?,
                k_proj: w.linear(&path("self_attn.k_proj"), args.kv_heads() * head_dim, hidden)?,
                v_proj: w.linear(&path("self_attn.v_proj"), args.kv_heads() * head_dim, hidden)?,
                o_proj: w.linear(&path("self_attn.o_proj"), hidden, args.num_attention_heads * head_dim)?,
                qk_norm: None,
                rope: Rope::new(w.device(), &frequencies, pairing)?,
            },
            post_attention_layernorm: w.rms_norm(&path("post_attention_layernorm"), hidden, eps, 0.0)?,
            mlp: w.mlp(&path("mlp"), hidden, args.intermediate_size, activation)?,
        })
    };
    let (embed_tokens, lm_head) = w.embedding_and_head(args.tie_word_embeddings, hidden, 1.0)?;
    Ok(Box::new(Model {
        embed_tokens,
        layers: (0..args.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: w.rms_norm("model.norm", hidden, eps, 0.0)?,
        lm_head,
        args,
    }))
}
