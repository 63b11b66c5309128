"""Ten lines between gpt.py, which knows nothing of this project, and the search; nanoGPT's model.py fits behind the same.

python tune/search.py --model experiments/own_model/my_model.py:MyGPT --range dropout=0:0.3 --choices n_layer=1,2,4
"""

import torch
from gpt import GPT, GPTConfig


class MyGPT(torch.nn.Module):
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 64, "dropout": 0.0}

    def __init__(self, settings, vocab_size):
        super().__init__()
        self.gpt = GPT(GPTConfig(vocab_size=vocab_size, **settings))  # settings: those above, and block_size

    def forward(self, ids, targets):
        return self.gpt(ids, targets)[1]

    def logits(self, ids):  # for trainer.py --generate; may be left out
        return self.gpt(ids)[0]
