"""What the integers of a file are."""

import json
import os

import numpy as np
import pytest
from helpers import write_ids, write_llmc

from myllm.datasets.token_file import OPEN_SHARDS, TokenFile, write_token_file
from myllm.datasets.tokenizer import get_tokenizer, identity
from myllm.datasets.windows import Windows
from myllm.system.errors import DataChanged, InputError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 50257, 2000)


def ids_of(*arguments, **kwargs):
    return TokenFile(*arguments, **kwargs).ids.tolist()


@pytest.mark.parametrize(
    ("dtype", "ids", "named"),
    [
        ("<u4", IDS, "uint32"),
        ("<i4", IDS, "uint32"),
        ("<i8", IDS, "int64"),
        ("<u4", RNG.integers(0, 100277, 2000), "uint32"),  # the upper halves are 0 and 1
        ("<u4", RNG.integers(0, 70, 2000), "uint32"),  # of characters
        ("<u4", range(8), "uint32"),
    ],
)
def test_wider_ids_are_not_read_as_uint16(tmp_path, dtype, ids, named):
    path = write_ids(tmp_path / "a.bin", ids, dtype)
    with pytest.raises(InputError, match=f"say --token_dtype {named}"):
        TokenFile(path)
    assert ids_of(path, token_dtype=named) == list(ids)


@pytest.mark.parametrize(
    "ids", [IDS, RNG.integers(0, 65, 2000), RNG.integers(0, 4, 2000), [0] * 2000, [7, 0] * 3, [7, 0] * 9 + [7]]
)
def test_uint16_ids_are_taken_for_what_they_are(tmp_path, ids):
    assert ids_of(write_ids(tmp_path / "a.bin", ids)) == list(ids)


def test_llmc_shards_are_read_and_their_count_checked(tmp_path):
    path = tmp_path / "a.bin"
    assert ids_of(write_llmc(path, IDS)) == IDS.tolist()
    assert ids_of(write_llmc(path, [128000, 5], 20240801, 7, "<u4")) == [128000, 5]
    for wrong, word in (
        ({"count": 1999}, "promises 1999 ids"),
        ({"version": 2}, "version 2"),
        ({"dtype": "<u4"}, "promises"),
    ):
        write_llmc(path, IDS, **wrong)
        with pytest.raises(InputError, match=word):
            TokenFile(path)
    with pytest.raises(InputError, match="says itself that its ids are uint16; --token_dtype is int64"):
        TokenFile(write_llmc(path, IDS), "int64")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<u4", "<i8"])
def test_numpy_arrays_are_read_by_their_header(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.arange(100).astype(dtype))
    assert ids_of(tmp_path / "a.npy") == list(range(100))
    (tmp_path / "a.npy").rename(tmp_path / "a.bin")
    assert ids_of(tmp_path / "a.bin") == list(range(100))


def test_other_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    objects = np.array([print], object)
    for array in (np.zeros(5), np.zeros((2, 3), int), np.zeros(0, int), objects):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(InputError, match="must be integers in one dimension"):
            TokenFile(path)
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="promises 100 ids"):
        TokenFile(path)
    for damaged in (b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr': __import__"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="header"):
            TokenFile(path)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="not a NumPy array"):
        TokenFile(path)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"dtype": "uint16"}', '{"dtype": "<u2"}', '"text"', "", "\xff"])
def test_a_json_that_is_not_ours_is_none_of_our_business(tmp_path, content):
    path = write_ids(tmp_path / "a.bin", IDS)
    path.with_suffix(".json").write_text(content, encoding="latin-1")
    assert ids_of(path) == IDS.tolist()


def test_archives_are_not_taken_for_ids(tmp_path):
    import gzip
    import zipfile

    path = tmp_path / "a.bin"
    path.write_bytes(gzip.compress(IDS.astype("<u2").tobytes()) + b"0")
    if path.stat().st_size % 2:
        path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(InputError, match="gzip data"):
        TokenFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ab", "cd")
    with pytest.raises(InputError, match="zip data"):
        TokenFile(path)
    assert len(TokenFile(path, "uint16"))
    path.write_text("This is a text, whatever it is called. " * 4)
    with pytest.raises(InputError, match=r"text, not token ids; name it \.txt"):
        TokenFile(path)


def test_our_own_files_say_what_they_are_and_notice_when_they_change(tmp_path):
    byte = get_tokenizer("byte")
    path = tmp_path / "a.bin"
    tokens = write_token_file(path, [np.arange(3), np.arange(4)], "byte", byte, "it")
    assert tokens.ids.tolist() == [0, 1, 2, 0, 1, 2, 3] and tokens.tokenizer_sha256 == identity(byte)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about == {
        "dtype": "<u2",
        "tokenizer": "byte",
        "tokenizer_sha256": identity(byte),
        "fingerprint": tokens.fingerprint(),
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.json"]
    write_ids(path, range(9))
    with pytest.raises(InputError, match=r"18 bytes, but the \.json beside it describes 14"):
        TokenFile(path)


def test_shards_are_one_stream(tmp_path):
    np.save(tmp_path / "c.npy", IDS[1500:])
    paths = [write_ids(tmp_path / "a.bin", IDS[:700]), write_llmc(tmp_path / "b.bin", IDS[700:1500]), tmp_path / "c.npy"]
    tokens, whole = TokenFile(paths), TokenFile(write_ids(tmp_path / "all.bin", IDS))
    assert len(tokens) == 2000 and tokens.ids.tolist() == IDS.tolist() and tokens.name == f"{paths[0]} and 2 more"
    everywhere = np.arange(0, 2000 - 33)
    assert (tokens.read(everywhere, 33) == whole.read(everywhere, 33)).all()
    assert len(Windows(tokens, 32, 1)) == len(Windows(whole, 32, 1))
    assert np.concatenate(list(tokens.pieces(650, 1600))).tolist() == IDS[650:1600].tolist()
    assert TokenFile(tokens.spec).ids.tolist() == IDS.tolist()
    assert tokens.check_ids(50257) == IDS.max()
    with pytest.raises(InputError, match=r"c.npy: token id \d+ at position 3 is beyond"):
        array = IDS[1500:].copy()
        array[3] = 50257
        np.save(tmp_path / "c.npy", array)
        TokenFile(paths).check_ids(50257)
    with pytest.raises(InputError, match="token id -1 at position 5"):
        TokenFile(write_ids(tmp_path / "n.bin", [1] * 5 + [-1] * 4, "<i4"), "int32").check_ids(50257)


def test_a_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    paths = [write_ids(tmp_path / "a.bin", IDS[:700]), write_ids(tmp_path / "b.bin", IDS[700:])]
    one = TokenFile(write_ids(tmp_path / "all.bin", IDS)).fingerprint()
    assert TokenFile(paths).fingerprint() == one
    assert TokenFile(paths[::-1]).fingerprint() != one
    changed = IDS.copy()
    changed[1700] ^= 1
    assert TokenFile(write_ids(tmp_path / "all.bin", changed)).fingerprint() != one


def test_many_shards_need_few_file_descriptors(tmp_path):
    import resource

    paths = [write_ids(tmp_path / f"{i}.bin", range(i, i + 10)) for i in range(4 * OPEN_SHARDS)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * OPEN_SHARDS, before[1]))
    try:
        tokens = TokenFile(paths)
        assert tokens.ids.tolist() == [i + k for i in range(4 * OPEN_SHARDS) for k in range(10)]
        assert tokens.read(np.array([0, 2555, 17]), 4)[[0, 2]].tolist() == [[0, 1, 2, 3], [8, 9, 10, 2]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_file_that_is_replaced_overwritten_or_gone_is_noticed_and_one_that_is_touched_is_not(tmp_path):
    def changed(tokens, fingerprint):
        try:
            tokens.check_unchanged(fingerprint)
        except DataChanged as error:
            return str(error)

    path = write_ids(tmp_path / "a.bin", IDS)
    tokens = TokenFile(path)
    began_with = tokens.fingerprint()
    assert changed(tokens, began_with) is None
    os.utime(path, (1, 1))
    assert changed(tokens, began_with) is None  # its content counts
    os.replace(write_ids(tmp_path / "b.bin", IDS[::-1]), path)
    assert "a.bin is not the file that the run began with" in changed(tokens, began_with)
    assert changed(TokenFile(path), began_with)  # and for whoever opens it now
    write_ids(path, IDS)
    assert changed(tokens, began_with) is None  # it was put back
    with open(path, "r+b") as file:
        file.write(b"\1\0")
    os.utime(path, (2, 2))
    assert changed(tokens, began_with)
    path.unlink()
    assert "can't be read any more" in changed(tokens, began_with)
