"""Which data belongs to which tokenizer, and the commands that prepare it."""

import contextlib
import json
import re
import sys

import numpy as np
import pytest
from conftest import run_command_line
from helpers import write_ids, write_llmc

from myllm import data
from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.token_file import TokenFile
from myllm.datasets.tokenizer import byte_tokenizer
from myllm.system.errors import InputError

RNG = np.random.default_rng(0)


class Vocabulary:
    """Stands for a tokenizer where only its size and content matter."""

    special_tokens_set = ()

    def __init__(self, n_vocab):
        import tiktoken

        ranks = {bytes([i]): i for i in range(256)}
        self.encoding = tiktoken.Encoding(
            "wide", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": n_vocab - 1}
        )


def vocabulary(n_vocab):
    return Vocabulary(n_vocab).encoding


def test_no_uint16_file_belongs_to_a_larger_vocabulary(tmp_path):
    wide = vocabulary(100277)
    ids = RNG.integers(0, 60000, 2000)
    path = str(write_ids(tmp_path / "a.bin", ids))
    with pytest.raises(InputError, match="vocabulary of 100,277; say --token_dtype uint32 if its ids are wider"):
        prepare(path, "train", "wide", wide)
    np.save(tmp_path / "a.npy", ids.astype(np.uint16))
    with pytest.raises(InputError, match="uint16 ids can't be those of --tokenizer wide"):
        prepare(str(tmp_path / "a.npy"), "train", "wide", wide)
    with pytest.raises(InputError, match="uint16 ids can't be those"):
        prepare(str(write_llmc(tmp_path / "l.bin", ids)), "train", "wide", wide)
    ids[7] = 100276
    write_ids(tmp_path / "a.bin", ids, "<u4")
    assert prepare(path, "train", "wide", wide, token_dtype="uint32").ids.tolist() == ids.tolist()


def test_characters_are_not_taken_for_gpt2_without_a_word(tmp_path, capsys):
    gpt2_size = vocabulary(50257)
    path = str(write_ids(tmp_path / "a.bin", RNG.integers(0, 65, 5000)))
    assert default_tokenizer(path) == "gpt2"
    prepare(path, "train", "gpt2", gpt2_size)
    assert "the largest of 5,000 ids is 64, far below the vocabulary of 50,257" in capsys.readouterr().err
    for ids, size in ((RNG.integers(0, 50257, 5000), 50257), (RNG.integers(0, 65, 500), 50257), ([10, 57] * 1000, 257)):
        prepare(str(write_ids(tmp_path / "b.bin", ids)), "train", "x", vocabulary(size))
        assert not capsys.readouterr().err
    bomb = tmp_path / "meta.pkl"
    bomb.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "exploded").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=r"the meta\.pkl beside it says that its ids are of characters"):
        default_tokenizer(path)
    assert not (tmp_path / "exploded").exists()


def test_the_default_tokenizer_is_what_the_files_say(tmp_path):
    assert default_tokenizer("builtin") == default_tokenizer(["builtin"]) == "byte"
    assert default_tokenizer(str(write_llmc(tmp_path / "g.bin", [1] * 9))) == "gpt2"
    with pytest.raises(InputError, match="ids of Llama-3, by its header; name their tokenizer"):
        default_tokenizer(str(write_llmc(tmp_path / "l.bin", [1] * 9, 20240801, 7, "<u4")))
    (tmp_path / "a.jsonl").write_text("{}")
    assert default_tokenizer(str(tmp_path / "a.jsonl")) == "byte"


def test_a_replaced_file_is_noticed(tmp_path):
    byte = byte_tokenizer()
    path = tmp_path / "a.txt"
    path.write_text("text " * 100)
    cached = prepare(str(path), "train", "byte", byte, tmp_path / "cache").path
    write_ids(cached, RNG.integers(0, 200, 500))
    with pytest.raises(InputError, match=r"not the content that the \.json beside it describes"):
        prepare(str(cached), "train", "byte", byte)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs myllm/data.py in this process, with --out_dir tmp_path/out."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments), "--out_dir", str(tmp_path / "out")])
        data.main()
        return [TokenFile(tmp_path / "out" / name).ids.tolist() for name in ("train_ids.bin", "val_ids.bin")]

    return run


def test_text_is_parted_at_a_character(command, tmp_path):
    (tmp_path / "a.txt").write_text("é" * 15)
    (tmp_path / "b.txt").write_text("b" * 5)
    both = command("--input", tmp_path / "a.txt", tmp_path / "b.txt", "--tokenizer", "byte", "--val_fraction", 0.4)
    assert both == [[*"é".encode()] * 12, [*"é".encode()] * 3 + [256] + [98] * 5]
    about = json.loads((tmp_path / "out" / "val_ids.json").read_text())
    assert about["tokenizer"] == "byte" and about["fingerprint"]["tokens"] == 12


def test_documents_are_not_cut(command, tmp_path):
    path = tmp_path / "a.jsonl"
    flags = ["--input", path, "--tokenizer", "byte", "--val_fraction"]
    path.write_text("".join(json.dumps({"text": letter * 4}) + "\n" for letter in "abc"))
    assert command(*flags, 0.4) == [[97] * 4 + [256] + [98] * 4, [99] * 4]
    assert command(*flags, 0.01) == [[97] * 4 + [256] + [98] * 4, [99] * 4]
    assert command(*flags, 0.99) == [[97] * 4, [98] * 4 + [256] + [99] * 4]
    path.write_text('{"text": "only one"}\n')
    with pytest.raises(InputError, match="too few documents, to be parted"):
        command(*flags, 0.5)


def test_token_files_get_a_sidecar(command, tmp_path):
    ids = RNG.integers(0, 250, 100)
    write_ids(tmp_path / "a.bin", ids, "<i8")
    flags = ["--input", tmp_path / "a.bin", "--tokenizer", "byte"]
    assert command(*flags, "--token_dtype", "int64") == [ids[:90].tolist(), ids[90:].tolist()]
    with pytest.raises(InputError, match="say --token_dtype int64"):
        command(*flags)
    with pytest.raises(InputError, match="is an --input too"):
        command("--input", tmp_path / "out" / "train_ids.bin", "--tokenizer", "byte")


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    """Killed while it writes; what it leaves has no name that anything reads."""
    import os
    import signal
    import subprocess
    import time

    path, out = tmp_path / "a.txt", tmp_path / "out"
    path.write_text("some words \n" * 3_000_000)
    arguments = ["-m", "myllm.data", "--input", str(path), "--out_dir", str(out), "--tokenizer", "byte"]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while not (out.is_dir() and any(file.stat().st_size for file in out.iterdir())):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [file.name for file in out.iterdir()]
    assert all(name.startswith(".train_ids.bin.") for name in left), left
    for name in left:  # an hour later
        os.utime(out / name, (0, 0))
    done = run_command_line(*arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["train_ids.bin", "train_ids.json", "val_ids.bin", "val_ids.json"]
    assert len(TokenFile(out / "train_ids.bin")) == 0.9 * 36_000_000


def test_the_data_command_fails_in_one_line(tmp_path, command):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "file").write_text("")
    cases = [
        (["--input", tmp_path / "a.txt", "--val_fraction", "1"], "--val_fraction is 1.0"),
        (["--input", tmp_path / "a.txt", "--token_dtype", "uint32", "--tokenizer", "byte"], "is for .bin files"),
        (["--input", tmp_path / "none.txt", "--tokenizer", "byte"], "no such file"),
        (["--input", tmp_path / "a.txt", "--token_dtype", "float", "--tokenizer", "byte"], "invalid choice"),
    ]
    for arguments, word in cases:
        with pytest.raises(InputError) as error, contextlib.redirect_stdout(None):
            command(*arguments)
        assert word in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
    place = ["--out_dir", tmp_path / "file" / "x", "--tokenizer", "byte"]  # that needs no file of its own
    done = run_command_line("-m", "myllm.data", "--input", tmp_path / "a.txt", *place)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "can't be written" in done.stderr


PEAKS = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from myllm.datasets.load_tokens import prepare
from myllm.datasets.tokenizer import byte_tokenizer

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

cache, *files = sys.argv[1:]
prepare(files[0], "train", "byte", byte_tokenizer(), Path(cache))  # with all that is imported
for path in files[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = memory("VmRSS")
    prepare(path, "train", "byte", byte_tokenizer(), Path(cache))
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its peak memory from /proc")
def test_a_long_line_is_held_no_more_often_than_need_be(tmp_path):
    """Of plain text a megabyte at a time; of a table a row, once as it is parsed and once as text."""
    megabytes, line = 36, "some words, and more of them " * (36 * 2**20 // 29)  # ids that are larger are given back at once
    most = {"run.txt": 0.5, "line.jsonl": 2.6, "emoji.jsonl": 8.6, "line.csv": 8.6}  # an emoji: 4 bytes a character
    (tmp_path / "small.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "run.txt").write_text("a" * len(line))
    (tmp_path / "line.jsonl").write_text(json.dumps({"text": line}) + "\n")
    (tmp_path / "emoji.jsonl").write_text(json.dumps({"text": line + "\U0001f600"}, ensure_ascii=False) + "\n")
    (tmp_path / "line.csv").write_text(f'text\n"{line}"\n')
    files = [tmp_path / "small.jsonl", *(tmp_path / name for name in most)]
    done = run_command_line("-c", PEAKS, tmp_path / "cache", *files)
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(most, map(float, done.stdout.split()), strict=True))
    assert all(peaks[name] < times * megabytes + 10 for name, times in most.items()), peaks


def test_documents_without_text_are_none_or_one_line(command, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 5 + '{"text": "a"}\n{"text": null}\n{"text": "b"}\n{"text": ""}\n')
    flags = ["--input", path, "--tokenizer", "byte", "--val_fraction", 0.5]
    assert command(*flags) == [[97], [98]]
    path.write_text('{"text": ""}\n' * 5)
    with pytest.raises(InputError, match="too little text"):
        command(*flags)
    with pytest.raises(InputError, match="there is no text in it"):
        prepare(str(path), "train", "byte", byte_tokenizer(), tmp_path / "cache")


def test_a_preparation_shows_the_time_left(tmp_path):
    pytest.importorskip("pyte")
    from terminal import Terminal

    (tmp_path / "a.txt").write_text("some words \n" * 2_500_000)
    code = (
        "import sys, myllm.datasets.load_tokens; from myllm.system.errors import run_command; from myllm.data import main;"
        "myllm.datasets.load_tokens.BAR_DELAY = 0; run_command(main)"
    )
    flags = ["--input", tmp_path / "a.txt", "--out_dir", tmp_path / "out", "--tokenizer", "byte"]
    terminal = Terminal(60, ["-c", code, *flags], {})
    found = []

    def look(text):
        found.extend(re.findall(r"tokenizing .*/30\.0 MB.* (0:00:\d\d)", text))

    terminal.read_until(look, seconds=60)
    assert terminal.process.returncode == 0 and found, terminal.text
    assert "train_ids.bin: 27000000 tokens" in terminal.text and "tokenizing" not in terminal.text
