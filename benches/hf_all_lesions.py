"""Zeroes each attention head (its columns of o_proj) in turn and prints every loss on one text,
with PyTorch and transformers: hf_all_lesions.py MODEL TEXT_FILE.
"""

import json, math, os, sys, time
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

path, text = sys.argv[1], open(sys.argv[2], encoding="utf-8", newline="").read()
torch.set_num_threads(2)
m = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()
ids = torch.tensor(
    [[1] + Tokenizer.from_file(os.path.join(path, "tokenizer.json")).encode(text).ids]
)


def loss():
    lp = m(ids).logits[0, :-1].log_softmax(-1)
    return -lp.gather(1, ids[0, 1:, None]).mean().item()


with torch.inference_mode():
    base, rows, t = loss(), [], time.time()
    for l, layer in enumerate(m.model.layers):
        w, d = layer.self_attn.o_proj.weight, m.config.head_dim
        for h in range(m.config.num_attention_heads):
            cols = slice(h * d, (h + 1) * d)
            keep = w[:, cols].clone()
            w[:, cols] = 0
            rows.append({"component": f"L{l}.head{h}", "loss": loss()})
            w[:, cols] = keep
    seconds = time.time() - t
print(
    json.dumps(
        {
            "work": "head lesions",
            "tokens": ids.shape[1],
            "lesions": len(rows),
            "base_loss": base,
            "base_ppl": math.exp(base),
            "seconds": seconds,
            "rows": rows,
        }
    )
)
