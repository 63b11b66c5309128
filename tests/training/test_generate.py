"""trainer.py --generate: text from a checkpoint alone, whatever the tokenizer and the model."""

import re

import pytest
import torch
from helpers import BIGRAM

from myllm.system.errors import InputError
from myllm.training.train_utils import load_state, save_state


@pytest.fixture
def model(byte_files, command, tmp_path):
    """model(*flags): the checkpoint of a short training with them."""

    def train(*flags):
        path = tmp_path / "model.pth"
        data = ["--train_file", byte_files[0], "--val_file", byte_files[1], "--max_len", "16", "--batch_size", "8"]
        flags = [*flags] if "--model" in flags else [*flags, "--set", "n_layer=1", "n_embd=16"]
        length = ["--budget_tokens", "1280", "--eval_freq", "100", "--eval_iter", "1"]
        assert command(*data, *length, *flags, "--save_model", path) == 0
        return path

    return train


def test_text_is_drawn_as_the_flags_say_and_nothing_else_is_printed(model, command, capsys):
    path = model()
    assert re.search(r"sample: ['\"]\\n", capsys.readouterr().out)

    def text(*flags):
        assert command("--load_model", path, "--generate", "Once", *flags) == 0
        said = capsys.readouterr()
        assert said.err == "" and said.out.startswith("Once")
        return said.out

    assert text("--length", "20", "--temperature", "9", "--top_k", "1") == text("--length", "20", "--temperature", "0")
    assert text("--length", "20") == text("--length", "20") != text("--length", "20", "--seed", "1")
    assert text("--length", "40", "--temperature", "0").startswith(text("--length", "20", "--temperature", "0")[:-1])


def test_what_text_can_not_be_drawn_with_is_one_line(model, command, tmp_path):
    path = model()
    for flags, words in (
        ((), "needs a trained model: --load_model FILE, or --from_trial RUN/TRIAL"),
        (("--load_model", path, "--save_model", "x"), "--save_model does not go with it"),
        (("--load_model", path, "--epochs", "2"), "--epochs does not go with it"),
        (("--load_model", path, "--length", "0"), "--length is 0"),
        (("--load_model", path, "--temperature", "-1"), "--temperature is -1"),
        (("--load_model", path, "--temperature", "nan"), "--temperature is nan"),
        (("--load_model", path, "--top_k", "0"), "--top_k is 0"),
        (("--load_model", tmp_path / "none.pth"), "no such checkpoint"),
        (("--load_model", path, "--preset", "micro"), "--preset does not go with it"),
        (("--load_model", path, "--tokenizer", "klingon"), "klingon"),
    ):
        with pytest.raises(InputError, match=words):
            command("--generate", "Once", *flags)
    with pytest.raises(InputError, match="--generate is empty"):
        command("--generate", "", "--load_model", path)


def test_a_tokenizer_of_its_own_is_found_again_or_asked_for(model, command, tmp_path, capsys):
    import base64

    ranks, text = tmp_path / "own.tiktoken", tmp_path / "text.txt"
    words = [bytes([i]) for i in range(256)] + [b"ab", b"cd"]
    ranks.write_bytes(b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(words)))
    text.write_text("abcd " * 900)
    (tmp_path / "val.txt").write_text("cdab " * 800)
    path = model("--tokenizer", ranks, "--train_file", text, "--val_file", tmp_path / "val.txt")
    assert load_state(path)["tokenizer"] == str(ranks)
    capsys.readouterr()
    assert command("--load_model", path, "--generate", "ab") == 0
    assert capsys.readouterr().out.startswith("ab")
    with pytest.raises(InputError, match="a tokenizer of other contents than byte; name its own --tokenizer"):
        command("--load_model", path, "--generate", "ab", "--tokenizer", "byte")
    ranks.rename(tmp_path / "moved.tiktoken")
    with pytest.raises(InputError, match=r"own\.tiktoken: no such file; if it was moved, name it with --tokenizer"):
        command("--load_model", path, "--generate", "ab")
    assert command("--load_model", path, "--generate", "ab", "--tokenizer", tmp_path / "moved.tiktoken") == 0
    state = load_state(path)
    del state["tokenizer"]
    save_state(state, path)
    with pytest.raises(InputError, match="does not say by which tokenizer; name it with --tokenizer"):
        command("--load_model", path, "--generate", "ab")


def test_an_own_model_writes_where_it_has_logits(model, command, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(BIGRAM)
    path = model("--model", f"{mine}:Bigram")
    assert "sample: " not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"mine\.py:Bigram, has no logits\(self, ids\), so it can't write; .*--model"):
        command("--load_model", path, "--generate", "Once")
    mine.write_text(BIGRAM + "\n    def logits(self, ids):\n        return self.head(self.table(ids))\n")
    assert command("--load_model", path, "--generate", "Once", "--model", f"{mine}:Bigram") == 0
    assert capsys.readouterr().out.startswith("Once")
    path.unlink()
    path = model("--model", f"{mine}:Bigram")
    assert "sample: " in capsys.readouterr().out
    mine.unlink()
    assert command("--load_model", path, "--generate", "Once", "--length", "7", "--temperature", "0") == 0
    said = capsys.readouterr()
    assert said.out.startswith("Once") and "note: " in said.err  # its file has gone
    weights = torch.load(path, weights_only=True)["model"]
    logits = weights["table.weight"][ord("e")] @ weights["head.weight"].T + weights["head.bias"]
    assert said.out[4] == chr(logits.argmax()) or logits.argmax() > 127
