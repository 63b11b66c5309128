"""Times one training step of our GPT against a Hugging Face GPT-2 of the same shape, interleaved.

    python experiments/step_time.py --preset micro --vocab_size 50257

Both run forward, backward, clipping and AdamW in float32 on the same data. Prints the medians and the ratio of the
paired steps, and how much longer a step of ours takes where averaged weights are kept (--rung_metric val_loss_ema).
Needs `transformers` (requirements-dev.txt).
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from myllm.config import PRESETS
from myllm.model import GPT
from myllm.training.train import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="micro", choices=PRESETS, help="model shape")
    parser.add_argument("--vocab_size", type=int, default=50257, help="token ids")
    parser.add_argument("--batch_size", type=int, default=None, help="windows a step (default: the preset's)")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    shape = preset.model(args.vocab_size)
    batch_size = args.batch_size or preset.batch_size
    torch.manual_seed(0)
    ids = torch.randint(shape.vocab_size, (batch_size, shape.block_size))

    ours = GPT(shape)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.block_size,
            n_embd=shape.n_embd,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    # Ours shifts in the data loader, theirs inside the model: the same number of predicted tokens, but for one a window.
    losses = {"ours": lambda: ours(ids, ids), "theirs": lambda: theirs(ids, labels=ids, use_cache=False).loss}
    models = {"ours": ours, "theirs": theirs}
    optimizers = {name: torch.optim.AdamW(model.parameters(), fused=True) for name, model in models.items()}

    def step(name: str) -> float:
        start = time.perf_counter()
        optimizers[name].zero_grad()
        losses[name]().backward()
        torch.nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
        optimizers[name].step()
        return time.perf_counter() - start

    parameters = list(ours.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    averaging = SimpleNamespace(average=average, parameters=parameters, config=SimpleNamespace(ema_ratio=0.1), step=1000)

    def average_weights() -> float:
        start = time.perf_counter()
        Run.update_average(averaging)
        return time.perf_counter() - start

    for name in models:
        models[name].train()
        step(name)
        step(name)
    times, average_times = {name: [] for name in models}, []
    for _ in range(args.steps):
        for name in models:
            times[name].append(step(name))
            if name == "ours":
                average_times.append(average_weights())  # right after the step, as in training
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["theirs"], strict=True))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:>7}: {1000 * median:8.1f} ms a step, {ids.numel() / median:9.0f} tokens/s")
    print(f"ours / theirs: {ratio:.3f} (median of {args.steps} pairs)")
    share = statistics.median(a / b for a, b in zip(average_times, times["ours"], strict=True))
    print(f"averaged weights add {100 * share:.1f}% to a step of ours")


if __name__ == "__main__":
    main()
