"""Validation on the training text is refused, and a part of it is warned of."""

import numpy as np
import pytest
from helpers import write_ids, write_llmc

from myllm.datasets.overlap import PASSAGE, check_separate, overlap
from myllm.datasets.token_file import TokenFile
from myllm.system.errors import InputError


def ids(seed, count=20_000):
    return np.random.default_rng(seed).integers(0, 250, count)


def files(tmp_path, train, val):
    return TokenFile(write_ids(tmp_path / "train.bin", train)), TokenFile(write_ids(tmp_path / "val.bin", val))


def test_the_training_data_is_no_validation_data_whatever_its_file_is_called(tmp_path):
    train, copy = files(tmp_path, ids(0), ids(0))
    (tmp_path / "link.bin").symlink_to(tmp_path / "train.bin")
    np.save(tmp_path / "val.npy", ids(0))  # other bytes, the same ids
    shards = [write_ids(tmp_path / f"{n}.bin", ids(0)[n * 10_000 :][:10_000]) for n in range(2)]
    others = (tmp_path / "link.bin", tmp_path / "val.npy", write_llmc(tmp_path / "llmc.bin", ids(0)), shards)
    for val in (train, copy, *map(TokenFile, others)):
        with pytest.raises(InputError, match="holds the same text as --train_file"):
            check_separate(train, val)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_part_of_the_training_data_is_warned_of(tmp_path, capsys, share):
    known = int(4000 * share)
    val = np.concatenate([ids(0)[777 : 777 + known], ids(1, 4000 - known)])
    train, val = files(tmp_path, ids(0), val)
    check_separate(train, val)
    said = capsys.readouterr().err
    assert said.count("\n") == (share > 0) and ("say" in said) == (share > 0)
    assert overlap(train, val) == pytest.approx(share, abs=0.05)


def test_short_and_constant_data_are_compared_too(tmp_path, capsys):
    assert overlap(*files(tmp_path, ids(0, 5), ids(1, 3))) == 0
    train, val = files(tmp_path, ids(0, 50), ids(0, 50)[:49])
    assert overlap(train, val) == 1  # passages are as long as the shorter data
    check_separate(*files(tmp_path, np.zeros(5 * PASSAGE), np.zeros(2 * PASSAGE)))
    assert "100% of the passages" in capsys.readouterr().err


def test_a_passage_on_the_border_of_what_is_read_at_once_is_found(tmp_path):
    train = ids(0, 2**16 + 1000)
    assert overlap(*files(tmp_path, train, train[2**16 - 50 :][:PASSAGE])) == 1


def test_commands_refuse_it(tmp_path, command, byte_files):
    text = tmp_path / "a.txt"
    text.write_text("".join(map(chr, ids(0) % 26 + 97)))
    (tmp_path / "b.txt").write_bytes(text.read_bytes())
    for train, val in ((byte_files[0], byte_files[0]), (text, text), (text, tmp_path / "b.txt")):
        with pytest.raises(InputError, match="holds the same text as --train_file"):
            command("--train_file", train, "--val_file", val, "--max_len", "32")
