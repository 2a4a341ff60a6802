"""The smallest models of many architectures: random weights in the layouts that transformers has.

Each has what its kind is about: windows shorter than the text, several experts, sinks, state-space
layers beside attention, learned positions, and so on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_LATENT: dict[str, Any] = {  # multi-head latent attention: values narrower than keys
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_WINDOW: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
_GEMMA: dict[str, Any] = {**_WINDOW, "query_pre_attn_scalar": 8}
_MAMBA: dict[str, Any] = {"state_size": 8, "conv_kernel": 4, "time_step_rank": 4}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

# `...` leaves out what is common.
CONFIGS: dict[str, dict[str, Any]] = {
    "afmoe": {**_EXPERTS, "sliding_window": 6, "global_attn_every_n_layers": 2},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "bailing_hybrid": {**_EXPERTS},
    "bert": {"is_decoder": True},
    "biogpt": {"pad_token_id": 1},
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "cwm": {**_WINDOW, "bos_token_id": 0},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffllama": {},
    "doge": {},
    "exaone_moe": {**_EXPERTS, **_WINDOW},
    "falcon alibi": {"multi_query": True, "parallel_attn": False, "alibi": True, "head_dim": ...},
    "falcon new": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "alibi": False,
        "head_dim": ...,
    },
    "flex_olmo": {**_EXPERTS},
    "gemma3n_text": {
        **_GEMMA,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {
        **_WINDOW,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "glm4_moe_lite": {**_LATENT, **_ROUTED},
    "gpt_neox sequential": {"use_parallel_residual": False},
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 24},
    "granite_swa": {**_WINDOW},
    "hyperclovax": {},
    "jais2": {},
    "kimi_linear": {
        **_LATENT,
        **_EXPERTS,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "laguna": {**_EXPERTS},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {**_LATENT, **_ROUTED},
    "mellum": {**_EXPERTS},
    "mimo_v2_flash": {**_EXPERTS},
    "minicpm3": {**_LATENT},
    "ministral3": {},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 0, "local_attention": 6},
    "mpt alibi": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nanochat": {},
    "olmo_hybrid": {**_DELTA},
    "openai-gpt": {},
    "opt last norm": {
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "pad_token_id": 1,
        "do_layer_norm_before": False,
    },
    "persimmon": {},
    "phi normed": {"qk_layernorm": True},
    "solar_open": {**_EXPERTS, **_ROUTED},
    "stablelm normed": {"qk_layernorm": True, "use_parallel_residual": True},
    "vaultgemma": {**_GEMMA},
    "youtu": {**_LATENT},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
    },
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA2, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    "bitnet": {},
    "bloom": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**_WINDOW, "sliding_window_pattern": 2, "logit_scale": 0.25},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {**_LATENT, **_ROUTED},
    "deepseek_v3": {**_LATENT, **_ROUTED},
    "dots1": {**_ROUTED},
    "ernie4_5": {},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone4": {**_WINDOW, "sliding_window_pattern": 2},
    "falcon": {"multi_query": True, "parallel_attn": True, "alibi": False, "head_dim": ...},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "falcon_mamba": {**_MAMBA},
    "gemma": {},
    "gemma2": {**_GEMMA},
    "gemma3_text": {**_GEMMA, "sliding_window_pattern": 2},
    "glm": {"pad_token_id": 0},
    "glm4": {"pad_token_id": 0},
    "glm4_moe": {**_ROUTED},
    "gpt2": {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "gpt_bigcode": {},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
    },
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": {**_WINDOW, **_EXPERTS},
    "gptj": {"rotary_dim": 4},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    },
    "granitemoe": {**_EXPERTS, "attention_multiplier": 0.2, "logits_scaling": 4.0},
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA2,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2},
    "jamba": {
        **_EXPERTS,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_key_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "llama": {},
    "llama4_text": {
        **_EXPERTS,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 6,
        "no_rope_layers": [1, 0],
        "pad_token_id": 0,
    },
    "mamba": {**_MAMBA},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "minimax_m2": {**_EXPERTS, "rotary_dim": 8},
    "ministral": {**_WINDOW},
    "mistral": {"sliding_window": 6},
    "mixtral": {**_EXPERTS},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nemotron": {},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "num_hidden_layers": 3,
        "hybrid_override_pattern": "M*-",
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {**_WINDOW},
    "olmoe": {**_EXPERTS},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 6, "pad_token_id": 0},
    "phimoe": {**_EXPERTS},
    "qwen2": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": {},
    "qwen3_moe": {**_EXPERTS},
    "qwen3_next": {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {**_DELTA},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 6},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "xglm": {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "pad_token_id": 1,
    },
    "zamba2": {
        **_MAMBA2,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "hybrid_layer_ids": [1, 2],
        "n_mamba_heads": 8,
    },
}


def tiny_config(architecture: str, **changes: Any) -> Any:
    """`architecture` is a model type of transformers, or one and the word for a variant of it."""
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[architecture.split()[0]]
    fields = {**_COMMON, **CONFIGS[architecture], **changes}
    return kind(**{name: value for name, value in fields.items() if value is not ...})


def build_architecture(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """Save a random model of it (float32 safetensors and config, no tokenizer) into `folder`."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(architecture, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in name:  # larger, so that errors show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    # Published models keep fields by the names that their class once had, which other programs read.
    given = {n: v for n, v in {**_COMMON, **CONFIGS[architecture]}.items() if v not in (..., None)}
    file = folder / "config.json"
    file.write_text(json.dumps({**given, **json.loads(file.read_text())}))
    return folder
