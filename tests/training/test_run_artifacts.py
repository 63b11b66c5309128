"""What a search found goes on in the trainer: a trial's weights, found through the records of its run."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from myllm.system.errors import InputError
from myllm.training.run_artifacts import find_trial
from myllm.training.train import train
from myllm.training.train_utils import load_state, save_state
from tune.store.checkpoints import Storage


@pytest.fixture
def run_dir(make_run, byte_files, tmp_path):
    """A run's folder with what the trainer reads of it: trial 00001 at a quarter and at half, 00002 pruned."""
    folder, run = tmp_path / "run", make_run()
    events = [{"event": "session"}] + [
        {"event": "trial", "trial_id": i} for i in ("00000", "00001", "00001-seed1001", "00002")
    ]
    for report in train(run, run.total_steps // 2):
        path = f"session_0/00001.0/checkpoint_{report.step:06d}"
        save_state(run.state_dict(), folder / "ray" / path / "state.pt")
        event = {"trial_id": "00001", "tokens_seen": report.tokens_seen}
        events += [{"event": "report"} | event, {"event": "checkpoint", "path": path} | event]
    events += [
        {"event": "checkpoint", "trial_id": "00002", "tokens_seen": 100, "path": "session_0/00002.0/checkpoint_000000"},
        {"event": "pruned", "trial_id": "00002", "tokens_seen": [100]},
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "tri')
    train_file, val_file = map(str, byte_files)
    data = {"train_file": [train_file], "val_file": [val_file], "tokenizer": "byte", "prepared": {}, "bytes_per_token": 1}
    config = {"preset": "nano", "storage_path": None, "name": "run"}
    (folder / "search.json").write_text(json.dumps({"data": data, "config": config}))
    return folder


def test_a_trial_is_found_by_an_unambiguous_part_of_its_name(run_dir):
    assert [find_trial(f"{run_dir}/{name}").trial_id for name in ("00001", "1", "01", "t00001", "t1")] == ["00001"] * 5
    newest, older = find_trial(f"{run_dir}/1").checkpoints
    assert newest == f"{run_dir}/ray/session_0/00001.0/checkpoint_000020/state.pt" and "000010" in older
    for name, words in (
        ("2", "no checkpoint of trial 00002 is left; .*--keep_checkpoints all"),
        ("seed", "no checkpoint of trial 00001-seed1001 is left"),
        ("7", "no trial '7'; its trials are 00000 to 00002"),
        ("0000", "no checkpoint of trial 00000"),
        ("001", "'001' is a part of several trials' ids: 00001, 00001-seed1001"),
    ):
        if name == "001":
            (run_dir / "journal.jsonl").write_text(
                "".join(f'{{"event": "trial", "trial_id": "{i}"}}\n' for i in ("20001", "00001-seed1001"))
            )
            words = words.replace("00001,", "20001,")
        with pytest.raises(InputError, match=words):
            find_trial(f"{run_dir}/{name}")
    for spec, words in (
        (run_dir, f"names no trial of this run; write {re.escape(str(run_dir))}/t00000"),
        (run_dir.parent / "1", "is no run folder"),
        (run_dir / "1", "of another version"),
    ):
        (run_dir / "search.json").write_text('{"config": {}, "data": {}}')
        (run_dir / "journal.jsonl").write_text(
            '{"event": "trial", "trial_id": "00001"}\n'
            '{"event": "checkpoint", "trial_id": "00001", "tokens_seen": 1, "path": "x"}\n'
        )
        with pytest.raises(InputError, match=words):
            find_trial(str(spec))


def test_a_trial_of_a_new_run_is_found_with_and_without_the_letter(run_dir):
    journal = run_dir / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"trial_id": "', '"trial_id": "t'))
    assert {find_trial(f"{run_dir}/{name}").trial_id for name in ("t00001", "00001", "1", "t1")} == {"t00001"}
    for name, words in (("t0", "no checkpoint of trial t00000 is left"), ("t", "a part of several trials' ids: t00000")):
        with pytest.raises(InputError, match=words):
            find_trial(f"{run_dir}/{name}")


def test_a_trial_goes_on_as_if_its_search_had_not_paused_it(run_dir, make_run, command, tmp_path, capsys):
    moved, final = tmp_path / "elsewhere" / "moved", tmp_path / "final.pth"
    shutil.move(run_dir, moved)
    assert command("--from_trial", moved / "1", "--save_model", final) == 0
    said = capsys.readouterr().out
    assert "at step 20 of 40" in said and "rescaled" not in said
    whole = make_run()
    list(train(whole))
    state = load_state(final)
    assert state["step"] == 40 and state["train_config"] == vars(whole.config) and state["tokenizer"] == "byte"
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in whole.model.state_dict().items())

    newest = next(iter(find_trial(f"{moved}/1").checkpoints))
    with open(newest, "r+b") as file:
        file.truncate(1000)
    final.unlink()
    assert command("--from_trial", moved / "1", "--save_model", final) == 0  # a damaged one is skipped for the one before
    said = capsys.readouterr()
    assert "going back further" in said.err and "at step 10 of 40" in said.out
    older = next(path for path in find_trial(f"{moved}/1").checkpoints if "000010" in path)
    sound = Path(older).read_bytes()
    storage = Storage(str(moved))
    for at, bit in ((sound.rindex(b"/version"), 0x80), (sound.rindex(b"PK\x01\x02") + 8, 0x01)):  # a name, "encrypted"
        damaged = bytearray(sound)
        damaged[at] ^= bit
        Path(older).write_bytes(damaged)
        assert "can't be read" in storage.damage(os.path.relpath(Path(older).parent, moved))
        with pytest.raises(InputError, match="damaged"):
            load_state(older)
    with pytest.raises(InputError, match="leave out --config"):
        command("--from_trial", moved / "1", "--config", moved / "search.json")
    shutil.rmtree(moved / "ray")
    with pytest.raises(InputError, match=r"--from_trial .*moved/1: .*no such checkpoint"):
        command("--from_trial", moved / "1")


def test_checkpoints_at_a_uri_are_read_there(run_dir, command, tmp_path, capsys):
    shutil.move(run_dir / "ray", tmp_path / "bucket" / "run")
    search = json.loads((run_dir / "search.json").read_text())
    search["config"]["storage_path"] = f"file://{tmp_path}/bucket/?region=here"  # options stay at the end
    (run_dir / "search.json").write_text(json.dumps(search))
    assert command("--from_trial", run_dir / "1", "--generate", "Once", "--length", "5") == 0
    assert capsys.readouterr().out.startswith("Once")
    shutil.rmtree(tmp_path / "bucket")
    with pytest.raises(InputError, match=r"file://.*state\.pt\?region=here: can't be read"):
        command("--from_trial", run_dir / "1", "--generate", "Once")
