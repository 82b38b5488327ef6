"""Computes log-probabilities of a Mamba folder in float64 (except for what transformers casts to
float32 by itself): exact_mamba.py DIR OUT. Writes those after the last token of the 16 sequences of
128 tokens that candle_recurrent uses, as float64, little-endian. Needs torch and transformers.
"""

import sys
import torch
from transformers import MambaForCausalLM

BATCH, LENGTH = 16, 128
model = MambaForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float64).eval()
ids = torch.arange(BATCH * LENGTH).mul(7919).remainder(model.config.vocab_size).view(BATCH, LENGTH)
with torch.no_grad():
    exact = model(ids, use_cache=False).logits[:, -1].log_softmax(-1)
exact.numpy().astype("<f8").tofile(sys.argv[2])
with torch.no_grad():
    theirs = model.float()(ids, use_cache=False).logits[:, -1].double().log_softmax(-1)
print(f"transformers in float32: {(theirs - exact).abs().max():.1e} off")
