"""Text files are UTF-8 whatever the locale of the command that writes or reads them."""

import json
import os

from conftest import run_command_line
from helpers import BIGRAM, copied

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_model_of_another_alphabet_is_checked_and_timed_in_a_bare_locale(byte_files, tmp_path):
    train, val = byte_files
    model, experiment = tmp_path / "größe.py", tmp_path / "größe.toml"
    model.write_text(f"# ∂loss/∂größe\n{BIGRAM}", "utf-8")
    experiment.write_text("# größe\nnum_samples = 2\n", "utf-8-sig")  # as some editors begin a file
    flags = ["--train_file", train, "--val_file", val, "--budget_tokens", "262144", "--max_concurrent", "1"]
    flags += ["--experiment", experiment, "--model", f"{model}:Bigram", "--dry_run"]
    done = run_command_line("tune/search.py", *flags, env=os.environ | ASCII)
    assert done.returncode == 0 and "  time      about" in done.stdout, done.stdout + done.stderr


def test_a_report_is_utf8_in_a_bare_locale(tmp_path):
    run = copied(tmp_path, "größe")
    search = json.loads((run / "search.json").read_text("utf-8"))
    (run / "search.json").write_text(json.dumps(search, ensure_ascii=False), "utf-8")
    done = run_command_line("tune/report.py", run, env=os.environ | ASCII)
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "summary.txt", "summary.json"):
        (run / name).read_text("utf-8")
