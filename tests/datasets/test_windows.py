import filecmp

import numpy as np
import pytest
from conftest import run_command_line

from myllm.datasets.data_paths import BUILTIN
from myllm.datasets.load_tokens import prepare
from myllm.datasets.token_file import TokenFile
from myllm.datasets.tokenizer import get_tokenizer, token_bytes
from myllm.datasets.windows import BatchStream, Windows, shuffled
from myllm.system.errors import InputError


def write(path, ids, dtype="<u2"):
    np.asarray(ids, dtype=dtype).tofile(path)
    return path


def test_tinyshakespeare_files_are_byte_identical(tmp_path, tinyshakespeare, gpt2_tokenizer):
    text = tinyshakespeare / "data.txt"
    flags = ["--tokenizer", "gpt2", "--val_fraction", "0.1"]
    done = run_command_line("-m", "myllm.data", "--input", text, "--out_dir", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    for name in ("train_ids.bin", "val_ids.bin"):
        assert filecmp.cmp(tmp_path / name, tinyshakespeare / name, shallow=False)


def test_windows_shift_their_targets_and_step_by_the_stride(tmp_path):
    windows = Windows(TokenFile(write(tmp_path / "a.bin", range(20))), max_len=4, stride=3)
    assert len(windows) == 6
    inputs, targets = windows.batch(np.array([0, 5]))
    assert inputs.tolist() == [[0, 1, 2, 3], [15, 16, 17, 18]]
    assert targets.tolist() == [[1, 2, 3, 4], [16, 17, 18, 19]]


def test_wide_ids_are_read_by_their_sidecar(tmp_path):
    path = write(tmp_path / "a.bin", [70000, 1, 2], "<u4")
    path.with_suffix(".json").write_text('{"dtype": "<u4", "tokenizer": "o200k_base"}')
    assert TokenFile(path).ids.tolist() == [70000, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1000])
def test_shuffled_is_a_permutation_that_depends_on_its_key(n):
    orders = [shuffled(np.arange(n), n, key) for key in range(3)]
    for order in orders:
        assert sorted(order) == list(range(n))
    if n >= 64:
        assert (orders[0] != orders[1]).mean() > 0.8
        assert (orders[0] != np.arange(n)).mean() > 0.8


def test_shuffled_has_no_visible_order():
    order = shuffled(np.arange(10000), 10000, 7)
    assert abs(np.corrcoef(np.arange(10000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order(tmp_path):
    windows = Windows(TokenFile(write(tmp_path / "a.bin", range(65))), max_len=4, stride=4)
    stream = BatchStream(windows, batch_size=4, seed=1)
    epochs = [[int(x) for _ in range(4) for x in stream.next()[0][:, 0]] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 64, 4))
    assert epochs[0] != epochs[1]


def test_the_position_of_a_stream_restores_it(tmp_path):
    windows = Windows(TokenFile(write(tmp_path / "a.bin", range(65))), max_len=4, stride=4)
    stream = BatchStream(windows, 4, seed=1)
    for _ in range(6):
        stream.next()
    other = BatchStream(windows, 4, seed=1)
    other.epoch, other.batch = stream.epoch, stream.batch
    for _ in range(5):
        assert (other.next()[0] == stream.next()[0]).all()


def test_bad_files_are_named(tmp_path):
    byte = get_tokenizer("byte")
    cases = {
        "missing.bin": (None, "no such file"),
        "empty.bin": (b"", "empty"),
        "odd.bin": (b"abc", "whole number"),
        "beyond.bin": (np.array([1, 2, 300], "<u2").tobytes(), "token id 300 at position 2"),
        "missing.txt": (None, "no such file"),
        "latin.txt": ("é".encode("latin-1"), "not UTF-8"),
        "empty.txt": (b"", "empty"),
    }
    for name, (content, word) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=word):
            prepare(str(path), "train", "byte", byte, tmp_path)
    with pytest.raises(InputError, match="fewer than one window"):
        Windows(TokenFile(write(tmp_path / "short.bin", [1, 2, 3])), max_len=3, stride=1)
    with pytest.raises(InputError, match="batch_size 9 is larger"):
        BatchStream(Windows(TokenFile(write(tmp_path / "b.bin", range(9))), 1, 1), 9, seed=0)
    named = write(tmp_path / "named.bin", [1, 2, 3])
    named.with_suffix(".json").write_text('{"dtype": "<u2", "tokenizer": "gpt2"}')
    with pytest.raises(InputError, match="written with --tokenizer gpt2"):
        prepare(str(named), "train", "byte", byte, tmp_path)


def test_text_is_tokenized_once(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("héllo " * 10)
    byte = get_tokenizer("byte")
    first = prepare(str(text), "train", "byte", byte, tmp_path / "cache").path
    stamp = first.stat().st_mtime_ns
    again = prepare(str(text), "train", "byte", byte, tmp_path / "cache")
    assert again.path == first and first.stat().st_mtime_ns == stamp
    assert bytes(again.ids.astype(np.uint8)).decode() == "héllo " * 10


def test_the_embedded_corpus_is_large_and_split_by_file(tmp_path):
    byte = get_tokenizer("byte")
    train, val = (prepare(BUILTIN, split, "byte", byte, tmp_path) for split in ("train", "val"))
    assert len(train) > 5e6 and 2e5 < len(val) < len(train) / 5
    assert train.fingerprint()["sha256_sampled"] != val.fingerprint()["sha256_sampled"]


def test_byte_tokenizer_and_rank_files(tmp_path):
    import base64

    byte = get_tokenizer("byte")
    assert byte.n_vocab == 257 and byte.decode(byte.encode("aé\n")) == "aé\n"
    assert token_bytes(byte).tolist() == [1] * 256 + [0]
    ranks = tmp_path / "own.tiktoken"
    tokens = [bytes([i]) for i in range(256)] + [b"ab"]
    ranks.write_bytes(b"".join(base64.b64encode(t) + f" {i}\n".encode() for i, t in enumerate(tokens)))
    own = get_tokenizer(str(ranks))
    assert own.encode("abc") == [256, ord("c")] and own.n_vocab == 258
    assert token_bytes(own)[256] == 2
    ranks.write_text("no ranks here")
    with pytest.raises(InputError, match="line 1"):
        get_tokenizer(str(ranks))
    with pytest.raises(InputError, match="unknown"):
        get_tokenizer("klingon")
