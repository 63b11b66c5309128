"""Tokenizers, and what makes one the same as another."""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.tokenizer import encode, end_of_text, get_tokenizer, identity, resolve, token_bytes
from myllm.system.errors import InputError
from myllm.training.train_utils import text_to_token_ids, token_ids_to_text

BYTES = [bytes([i]) for i in range(256)]


def write_ranks(path, tokens):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + f" {i}\n".encode() for i, token in enumerate(tokens)))
    return str(path)


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """The path of a byte-level BPE tokenizer.json with a few merges."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, that is what the cat did\n" * 20], trainer)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_an_identity_follows_ranks_pattern_and_specials_and_not_the_name(tmp_path, gpt2_tokenizer):
    import tiktoken

    def like_gpt2(name="other", **changes):
        parts = dict(
            pat_str=gpt2_tokenizer._pat_str,
            mergeable_ranks=gpt2_tokenizer._mergeable_ranks,
            special_tokens=gpt2_tokenizer._special_tokens,
        )
        return identity(tiktoken.Encoding(name, **parts | changes))

    same = identity(gpt2_tokenizer)
    ranks = dict(gpt2_tokenizer._mergeable_ranks)
    ranks[b" the"], ranks[b" and"] = ranks[b" and"], ranks[b" the"]
    assert like_gpt2() == same
    assert len({same, like_gpt2(pat_str=r"\S+|\s+"), like_gpt2(mergeable_ranks=ranks), like_gpt2(special_tokens={})}) == 4
    ab, ba = (
        get_tokenizer(write_ranks(tmp_path / name / "own.tiktoken", [*BYTES, name.encode()])) for name in ("ab", "ba")
    )
    assert (ab.name, ab.n_vocab) == (ba.name, ba.n_vocab) and identity(ab) != identity(ba)


def test_a_rank_file_called_byte_is_not_the_byte_tokenizer(tmp_path):
    own = get_tokenizer(write_ranks(tmp_path / "byte.tiktoken", BYTES[::-1]))
    assert encode("a", own).tolist() == [255 - ord("a")]


def test_damaged_rank_files_are_named(tmp_path):
    path = tmp_path / "own.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" 5\n" for token in BYTES))
    with pytest.raises(InputError, match="ranks must be different"):
        get_tokenizer(str(path))


def test_a_hugging_face_tokenizer_is_used_like_any_other(hugging_face, tmp_path):
    import tokenizers

    own, theirs = get_tokenizer(hugging_face), tokenizers.Tokenizer.from_file(hugging_face)
    text = "the cat é sat\n on <|endoftext|> the mat"
    ids = encode(text, own)
    assert own.n_vocab == theirs.get_vocab_size() and ids.dtype == np.uint16 and end_of_text(own) == 0
    assert encode("the cat sat", own).tolist() == theirs.encode("the cat sat").ids
    assert 0 not in ids and own.decode(ids.tolist()) == text  # special tokens in a text are plain text
    assert token_bytes(own)[ids].sum() == len(text.encode()) and token_bytes(own)[0] == 0
    assert text_to_token_ids("<|endoftext|>the", own)[0, 0] == 0
    assert token_ids_to_text(text_to_token_ids("the mat", own), own) == "the mat"
    folder = hugging_face.removesuffix("/tokenizer.json")
    assert identity(get_tokenizer(folder)) == identity(own) and resolve(folder) == folder
    path = tmp_path / "a.txt"
    path.write_text("the cat sat on the mat\n" * 50)
    prepared = prepare(str(path), "train", hugging_face, own, tmp_path / "cache").ids
    assert prepared.tolist() == theirs.encode(path.read_text()).ids


def test_an_identity_of_hugging_face_follows_the_vocabulary(hugging_face, tmp_path):
    values = json.loads(Path(hugging_face).read_text())
    other = tmp_path / "tokenizer.json"
    values["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    other.write_text(json.dumps(values, indent=4))
    assert identity(get_tokenizer(str(other))) == identity(get_tokenizer(hugging_face))  # no part of what decides ids
    assert len(encode("the cat", get_tokenizer(str(other)))) < 5
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other.write_text(json.dumps(values))
    assert identity(get_tokenizer(str(other))) != identity(get_tokenizer(hugging_face))


def test_bytes_of_tokens_that_are_not_byte_level(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<unk>": 0, "<0x41>": 1, "\u2581cat": 2, "é": 3}
    metaspace = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    metaspace.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    metaspace.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()])
    metaspace.add_special_tokens(["<unk>"])
    metaspace.save(str(tmp_path / "m.json"))
    assert token_bytes(get_tokenizer(str(tmp_path / "m.json"))).tolist() == [0, 1, 4, 2]


def test_a_tokenizer_json_that_can_not_be_read_is_one_line(hugging_face, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"not a Hugging Face tokenizer\.json"):
        get_tokenizer(str(path))
    with pytest.raises(InputError, match="no such file"):
        get_tokenizer(str(tmp_path / "other.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers"):
        get_tokenizer(hugging_face)


def test_two_tokenizers_of_one_name_and_size_share_no_cache(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abba" * 50)
    found = []
    for merge in (b"ab", b"ba"):
        name = write_ranks(tmp_path / merge.decode() / "own.tiktoken", [*BYTES, merge])
        tokenizer = get_tokenizer(name)
        tokens = prepare(str(path), "train", name, tokenizer, tmp_path / "cache")
        assert tokenizer.decode(tokens.ids.tolist()) == "abba" * 50
        assert tokens.tokenizer_sha256 == identity(tokenizer)
        found.append(tokens.path)
    assert found[0] != found[1]


def test_a_tokenizer_may_move_and_may_not_change(tmp_path, monkeypatch):
    """The sidecar was written with a relative path, and is read from elsewhere."""
    from myllm.datasets.token_file import write_token_file

    monkeypatch.chdir(tmp_path)
    write_ranks(tmp_path / "tokenizers" / "own.tiktoken", [*BYTES, b"ab"])
    own = get_tokenizer("tokenizers/own.tiktoken")
    write_token_file(tmp_path / "store" / "data.bin", [encode("abcab", own)], "tokenizers/own.tiktoken", own, "it")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = str(tmp_path / "store" / "data.bin")
    found = default_tokenizer(data)
    assert prepare(data, "train", found, get_tokenizer(found)).ids.tolist() == [256, ord("c"), 256]
    # the whole folder moves, then the tokenizer alone
    (tmp_path / "moved").mkdir()
    for name in ("store/data.bin", "store/data.json", "tokenizers/own.tiktoken"):
        (tmp_path / name).rename(tmp_path / "moved" / Path(name).name)
    data = str(tmp_path / "moved" / "data.bin")
    found = default_tokenizer(data)
    assert found == str(tmp_path / "moved" / "own.tiktoken")
    (tmp_path / "moved" / "own.tiktoken").rename("another.tiktoken")
    with pytest.raises(InputError, match="not there any more; say where it is with --tokenizer"):
        default_tokenizer(data)
    assert len(prepare(data, "train", "another.tiktoken", get_tokenizer("another.tiktoken"))) == 3
    write_ranks(tmp_path / "moved" / "own.tiktoken", [*BYTES, b"ba"])
    found = default_tokenizer(data)
    with pytest.raises(InputError, match="of that name, but with other contents"):
        prepare(data, "train", found, get_tokenizer(found))
