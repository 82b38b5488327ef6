"""Makes a random OLMoE with 64 experts, 8 per token, to time expert lesions on: make_moe.py OUT.
Needs torch and transformers.
"""

import sys
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

torch.manual_seed(1)
config = OlmoeConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    num_experts=64,
    num_experts_per_tok=8,
    max_position_embeddings=512,
    eos_token_id=None,
)
OlmoeForCausalLM(config).save_pretrained(sys.argv[1])
