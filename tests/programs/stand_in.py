"""A training program that needs no time, as users have them: python stand_in.py --rate=0.1 --iters=32 --every=1 --out=DIR

Behaves as --how says: well, nan, silent, deaf (to SIGTERM), forks, twice (prints each report twice), json, crashes, killed,
file (appends its reports to metrics.jsonl in DIR), mute (prints nothing), noisy (reports more where it went on), full (the
disk is full until there is the file that --room names).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
rate, iters, every = float(options["rate"]), int(options["iters"]), int(options["every"])
how, out, seed = options.get("how", "well"), Path(options["out"]), int(options.get("seed", 0))
out.mkdir(exist_ok=True)
loss, first = 1.0 + seed % 7 / 1000, 0
if options.get("init") == "resume":
    saved = json.loads((out / "ckpt.json").read_text())
    loss, first = saved["loss"], saved["step"]
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "forks":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "forked-by-" + str(out)])
for step in range(first, iters + 1):
    if step % every == 0:
        shown = "nan" if how == "nan" and step > iters // 2 and rate > 0.05 else f"{loss:.6f}"
        if how == "silent" and rate > 0.05 and step > 0:
            time.sleep(600)
        if how == "crashes" and rate > 0.05 and step > iters // 2:
            raise ValueError("the rate is too high")
        if how == "killed" and first == 0 and step > iters // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "noisy":
            shown = f"{loss * (1.1 if first else 1):.6f}"
        is_json = how in ("json", "file")
        line = json.dumps({"step": step, "val_loss": float(shown)}) if is_json else f"step {step}: val loss {shown}"
        if how == "file":
            with open(out / "metrics.jsonl", "a") as file:
                file.write(line + "\n")
        elif how != "mute":
            print(line, flush=True)
        if how == "full" and step > iters // 2 and not Path(options["room"]).exists():
            raise OSError(28, "No space left on device", str(out))
        if how == "twice":
            print(line, flush=True)
        (out / "ckpt.tmp").write_text(json.dumps({"loss": loss, "step": step}))
        os.replace(out / "ckpt.tmp", out / "ckpt.json")
    loss *= 1 - min(0.9, rate) / 2
    time.sleep(float(options.get("pause", 0.02)))
