import numpy as np


def train(settings, budget, folder, resume):
    state = np.load(folder / "state.npy") if resume else np.zeros(5)  # four weights and the step
    rng = np.random.default_rng(settings["seed"])
    for step in range(int(state[4]) + 1, budget + 1):
        state[:4] += settings["rate"] * (1 - state[:4]) + 1e-3 * rng.standard_normal(4)
        state[4] = step
        loss = float(((1 - state[:4]) ** 2).mean())
        if step % settings["report_every"] == 0 and (yield {"step": step, "val_loss": loss}) == "save":
            np.save(folder / "state.npy", state)
            yield
