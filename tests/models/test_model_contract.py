"""Small custom models, each of which breaks the contract in one way: all are refused before anything starts, by name."""

import pytest
from helpers import BIGRAM

from myllm.models.custom_model import custom_model
from myllm.models.model_check import check_trains
from myllm.system.errors import InputError

LOSS = "return F.cross_entropy(self.head(self.table(ids)).flatten(0, 1), targets.flatten())"
LAST = "torch.nn.Linear(width, vocab_size)"


def loss_with(before="", keywords="", inputs="self.table(ids)"):
    """BIGRAM with a line before its loss, keywords of the cross-entropy, and other hidden states."""
    line = f"{before}\n        " if before else ""
    return BIGRAM.replace(
        LOSS, f"{line}return F.cross_entropy(self.head({inputs}).flatten(0, 1), targets.flatten(){keywords})"
    )


def built_with(line):
    """BIGRAM with a line at the end of its constructor."""
    return BIGRAM.replace(LAST, f"{LAST}\n        {line}")


EXTRA_STATE = """
    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        pass
"""

RUNNING_MEAN = built_with("self.register_buffer('mean', torch.zeros(width), persistent=False)").replace(
    LOSS,
    f"""if self.training:
            self.mean += self.table(ids).detach().mean((0, 1))
        {LOSS.replace("self.table(ids)", "self.table(ids) - self.mean * (not self.training)")}""",
)

BREACHES = {
    "ignore_index": (loss_with(keywords=", ignore_index=0"), "each token must count the same"),
    "ignored end of text": (loss_with(keywords=", ignore_index=256"), "each token must count the same"),
    "weights of ids": (
        loss_with("weight = torch.ones(257); weight[10] = 0.1", ", weight=weight"),
        "each token must count the same",
    ),
    "batch norm": (
        built_with("self.norm = torch.nn.BatchNorm1d(width)").replace(
            "self.head(self.table(ids))", "self.head(self.norm(self.table(ids).mT).mT)"
        ),
        "each token must count the same",
    ),
    "targets in place": (loss_with("targets[targets == 0] = 1"), "forward changes its targets in place"),
    "ids in place": (loss_with("ids.clamp_(max=255)"), "forward changes its ids in place"),
    "seed in the constructor": (
        BIGRAM.replace("        width =", "        torch.manual_seed(1337)\n        width ="),
        "it sets torch's random generator when it is built",
    ),
    "weights from a generator of its own": (
        built_with(
            "own = torch.Generator().manual_seed(0)\n        for p in self.parameters(): p.data.normal_(generator=own)"
        ),
        "its first weights are the same from every seed",
    ),
    "weights from numpy": (
        "import numpy\n" + built_with("self.table.weight.data += float(numpy.random.default_rng().normal())"),
        "differ between two builds from the same seed",
    ),
    "seed in forward": (loss_with("torch.manual_seed(0)"), "forward sets torch's random generator"),
    "noise from random": (
        "import random\n" + loss_with(inputs="self.table(ids) * (1 + random.random() * self.training)"),
        "forward draws numbers that the seed does not decide",
    ),
    "dropout in eval mode": (loss_with(inputs="F.dropout(self.table(ids), 0.2)"), "in eval mode the same windows have"),
    "cache between calls": (
        loss_with("self.n = getattr(self, 'n', 0) + 1", inputs="self.table(ids) * (1 + (not self.training) * self.n)"),
        "in eval mode the same windows have",
    ),
    "numpy in the state": (
        "import numpy\n" + BIGRAM + EXTRA_STATE.replace("{}", "numpy.float64(1)"),
        "_extra_state (float64)",
    ),
    "an object in the state": (
        "import datetime\n" + BIGRAM + EXTRA_STATE.replace("{}", "{'a': datetime.date(2020, 1, 1)}"),
        "_extra_state (dict)",
    ),
    "state that is not read again": (
        BIGRAM + EXTRA_STATE.replace("        pass", "        raise KeyError('a')"),
        "its saved state can't be loaded again: KeyError",
    ),
    "state outside of the state_dict": (RUNNING_MEAN, "restored from its state_dict()"),
}

KEPT = {
    "ignore_index that never occurs": loss_with(keywords=", ignore_index=-100"),
    "dropout that follows the mode": loss_with(inputs="F.dropout(self.table(ids), 0.2, self.training)"),
    "random numbers in training": loss_with(inputs="self.table(ids) + torch.rand(1) * self.training"),
    "a mean that the state_dict holds": RUNNING_MEAN.replace(", persistent=False", ""),
    "plain extra state": BIGRAM + EXTRA_STATE.replace("{}", "{'steps': 3, 'name': 'a', 'rates': [0.5, None]}"),
    "a fixed table beside drawn weights": built_with("self.table.weight.data[:] = torch.arange(width).float()"),
    "weights that are all zero": built_with("for p in self.parameters(): p.data.zero_()"),
    "whole windows only": loss_with("assert ids.size(1) == 16"),
}


def config_of(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return custom_model(f"{path}:Bigram", 257, 16)


@pytest.mark.parametrize("name", BREACHES)
def test_a_model_that_breaks_the_contract_is_refused_by_name(tmp_path, name):
    text, words = BREACHES[name]
    with pytest.raises(InputError) as error:
        check_trains(config_of(tmp_path, text))
    assert words in str(error.value) and "\n" not in str(error.value) and "mine.py:Bigram" in str(error.value)


@pytest.mark.parametrize("name", KEPT)
def test_a_model_that_keeps_the_contract_is_not_refused(tmp_path, name):
    check_trains(config_of(tmp_path, KEPT[name]))
