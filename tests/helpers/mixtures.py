"""Small mixtures of experts of real architectures, whose experts are parameters."""

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    head_dim=8,
    num_experts_per_tok=2,
    max_position_embeddings=40,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.2,
)
NARROW = SIZES | {"moe_intermediate_size": 24}
SHARED = NARROW | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = dict(  # multi-head latent attention
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    n_group=1,
    topk_group=1,
)
DELTA_NET = dict(
    layer_types=["linear_attention", "full_attention"],
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    shared_expert_intermediate_size=24,
    num_experts=4,
)
WITHOUT_HEAD_DIM = {key: value for key, value in SHARED.items() if key != "head_dim"}
CONFIGS = {
    "Mixtral": SIZES | {"num_local_experts": 4},
    "Qwen3Moe": NARROW | {"num_experts": 4},
    "GptOss": SIZES | {"num_local_experts": 4},  # stored the other way round, with biases
    "DeepseekV3": WITHOUT_HEAD_DIM | LATENT,  # one dense layer, and shared experts
    "Qwen3Next": NARROW | DELTA_NET,
}
MIXTURES = list(CONFIGS)
EXPERTS = ["gate_up_proj", "down_proj"]
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))


def mixture(name: str) -> Any:
    """Return the model; the same numbers each time."""
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return the model's logits, (2, 9, vocabulary), without gradients."""
    return model(input_ids=input_ids).logits
