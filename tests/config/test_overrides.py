"""The user's own ranges: what they mean, what is refused, and what a search makes of them. No Ray."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import BUDGET, begun, report, summary
from helpers import BIGRAM, NANO, RECORDED, asha_search, draws_of, overridden, searched, write_events, write_run

from myllm.config import GPTConfig, TrainConfig
from myllm.presets import PRESETS
from myllm.system.errors import InputError
from tune.analysis.results import write_results
from tune.config.command_line import read_experiment
from tune.config.options import SearchOptions
from tune.config.overrides import from_table, kinds, merge, parse_overrides
from tune.config.resolve import check_comparable, resolve_marks, resolve_search
from tune.config.spec import FORMAT, read_search
from tune.config.warm_start import warm_start_trials
from tune.core.events import SessionStarted
from tune.core.search_space import LINEAR, LOG, LOG_BELOW_ONE, Choice, Range
from tune.core.searchers.gaussian_process import most_promising
from tune.core.trials import Trials
from tune.store.journal import FILE_NAME

EVERYTHING = dict(
    range=("learning_rate=1e-4:3e-3", "dropout=0:0.3", "n_layer=1:4", "beta2=0.9:0.999", "weight_decay=0:0.1:linear"),
    choices=("batch_size=32,8,16", "n_embd=64,96", "schedule=wsd,cosine", "bias=true,false"),
    set=("warmup_ratio=0.05", "n_head=4", "micro_batch_size=4"),
)


@pytest.fixture
def prepared(byte_files, tmp_path):
    """prepared(**options): a search's settings, checked."""
    train, val = ((str(path),) for path in byte_files)

    def prepare(**options):
        options = {"budget_tokens": 262144, "name": "x"} | options
        return resolve_search(SearchOptions(train_file=train, val_file=val, **options), tmp_path / "cache")

    return prepare


def test_a_name_gets_the_scale_and_type_that_are_its_own():
    said = {name: one.values for name, one in parse_overrides(EVERYTHING, NANO.model(257)).items()}
    assert said["learning_rate"] == Range(1e-4, 3e-3, LOG) and said["dropout"] == Range(0.0, 0.3, LINEAR)
    assert said["n_layer"] == Range(1, 4, LINEAR, integer=True) and said["beta2"] == Range(0.9, 0.999, LOG_BELOW_ONE)
    assert said["weight_decay"] == Range(0.0, 0.1, LINEAR)
    assert said["batch_size"] == Choice((8, 16, 32)) and said["schedule"] == Choice(("wsd", "cosine"))
    assert said["bias"] == Choice((False, True)) and said["n_head"] is None


def test_every_setting_may_be_named_but_for_what_a_search_itself_decides():
    decides = {
        "version",
        "max_len",
        "stride",
        "epochs",
        "budget_tokens",
        "budget_seconds",
        "ema_ratio",
        "seed",
        "vocab_size",
    }
    decides |= {"eval_freq", "eval_windows", "train_eval_windows"}  # what a report is
    every = {field.name for of in (TrainConfig, GPTConfig) for field in dataclasses.fields(of)}
    assert kinds(NANO.model(257)).keys() == every - decides


@pytest.mark.parametrize(
    "values",
    [Range(1, 4, LINEAR, True), Range(1, 64, LOG, True), Range(0.9, 0.999, LOG_BELOW_ONE), Range(-2.0, 3.0, LINEAR)],
)
def test_draws_of_every_scale_are_even_on_it_and_places_lead_back(values):
    drawn = [values.from_unit((i + 0.5) / 1000) for i in range(1000)]
    assert all(values.low <= value <= values.high for value in drawn) and drawn == sorted(drawn)
    assert values.from_unit(0.0) == pytest.approx(values.low) and values.from_unit(1 - 1e-12) == pytest.approx(values.high)
    assert all(abs(values.to_unit(v) - (i + 0.5) / 1000) < (0.26 if values.integer else 1e-9) for i, v in enumerate(drawn))
    if values == Range(1, 4, LINEAR, True):
        assert [drawn.count(value) for value in (1, 2, 3, 4)] == [250] * 4
    if values.scale == LOG_BELOW_ONE:
        assert drawn[500] == pytest.approx(0.99, abs=1e-4)  # a tenth of what is missing to 1 a decade
    assert values.to_unit(1e9) == values.to_unit(values.high) and values.to_unit(-1e9) == values.to_unit(values.low)


@pytest.mark.parametrize("searcher", ["random", "gp", "optuna"])
def test_every_searcher_draws_within_ranges_of_every_kind(searcher):
    search = overridden(asha_search(searcher, "v2", num_samples=40), **EVERYTHING)
    ranges = search.ranges
    assert "warmup_ratio" not in ranges and "clip_norm" in ranges and list(ranges)[:2] == ["learning_rate", "batch_size"]
    trials = searched(search)
    draws = draws_of(search, trials, range(40, 60), proposed=searcher == "gp")
    assert draws == json.loads(json.dumps(draws)) and len({json.dumps(draw) for draw in draws}) == 20
    for draw in draws:
        assert draw.keys() == ranges.keys()
        for name, values in ranges.items():
            inside = draw[name] in values.values if isinstance(values, Choice) else values.low <= draw[name] <= values.high
            assert inside and type(draw[name]) is type(values.from_unit(0.5)), name
    assert len({draw["n_layer"] for draw in draws}) > 1 and len({draw["beta2"] for draw in draws}) > 10


def test_categories_are_strangers_to_each_other_and_numbers_neighbours():
    three = Choice(("gelu", "relu", "silu"))
    points = np.array([three.encode(value) for value in three.values])
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances == pytest.approx(1 - np.eye(3))
    # What was learnt of one says nothing of which of two others to try.
    none = np.empty((0, 3))
    chosen = most_promising(points[[0, 1]], np.log([9.0, 1.0]), np.ones(2), none, points)
    assert three.values[chosen] in ("relu", "silu") and Choice((1, 2, 3)).encode(2) == (0.5,)


def test_the_reference_is_the_nearest_within_the_ranges_and_what_moved_is_kept(prepared):
    search = prepared(range=("learning_rate=1e-4:1e-3", "clip_norm=0.5:2"), choices=("batch_size=32,64", "n_layer=3,5"))
    assert search.sample(0) == {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "warmup_ratio": 0.02,
        "clip_norm": 1.0,
        "n_layer": 3,
    }
    assert search.clipped_baseline == {"learning_rate": 3e-3, "batch_size": 16, "n_layer": 2}
    assert search.ranges["learning_rate"] == Range(1e-4, 1e-3) and search.ranges["warmup_ratio"] == Range(0.003, 0.2)
    assert search.range_texts["learning_rate"] == "0.0001 to 0.001 (log)"
    assert prepared().clipped_baseline == {}


def test_a_trial_has_its_own_shape_and_what_is_fixed(prepared, tmp_path):
    search = prepared(**EVERYTHING | {"choices": (*EVERYTHING["choices"][:1], "n_embd=96,128", *EVERYTHING["choices"][2:])})
    search.write(tmp_path)
    assert read_search(tmp_path) == search
    draw = search.sample(3)
    model, training = search.model_config(draw), search.train_config(draw)
    assert (model.n_layer, model.n_embd, model.dropout) == (draw["n_layer"], draw["n_embd"], draw["dropout"])
    assert model.n_head == 4 and training.warmup_ratio == 0.05 and training.micro_batch_size == 4
    assert training.eval_freq * training.tokens_per_step == search.report_tokens
    events = [begun("00000", segment_end_tokens=1, config=draw)]
    trials = Trials(search.budget_tokens, 1, events=events)
    ended = report("00000", search.budget_tokens, 2.0, "stop")
    trials.apply(ended)
    write_results(tmp_path, trials, search)
    write_events(tmp_path, SessionStarted(session=0, workers=1), *events, ended)
    text = summary(tmp_path)
    assert "fixed       warmup_ratio=0.05; n_head=4; micro_batch_size=4" in text
    assert "nearest to the preset's n_embd 64, outside of the ranges" in text
    best = json.loads((tmp_path / "best_config.json").read_text())
    assert best["model"]["n_embd"] == draw["n_embd"] and best["model"]["n_head"] == 4
    assert best["train"]["warmup_ratio"] == 0.05


def test_a_run_of_format_2_draws_what_its_journal_has_to_the_digit_whatever_its_preset_is_now(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", dataclasses.replace(NANO, learning_rate=1.0, batch_size=64))
    for folder in (RECORDED, RECORDED.parent / "release-0" / "run"):
        search = read_search(folder)
        drawn = {
            int(event["trial_id"]): event["config"]
            for event in map(json.loads, (folder / FILE_NAME).read_text().splitlines())
            if event["event"] == "trial" and event["kind"] == "drawn"
        }
        assert search.options.rungs == "0.03125:2,0.125:2,0.25:2" and search.rule_has_changed  # those of its rule
        assert len(drawn) >= 6 and drawn == {index: search.sample(index) for index in drawn}
        search.write(tmp_path)
        assert read_search(tmp_path) == search
        assert json.loads((tmp_path / "search.json").read_text())["format"] == FORMAT
    assert search.clipped_baseline == {"batch_size": 16} and search.fixed["n_embd"] == 8  # of release-0
    text = (folder / "search.json").read_text().replace("0.1 to 10 (log)", "0.1 to 20 (log)")
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(InputError, match="space v2 has changed since"):
        read_search(tmp_path)


def test_a_run_keeps_its_ranges_and_baseline_where_its_preset_changes(prepared, tmp_path, monkeypatch):
    search = prepared(range=("warmup_ratio=0.01:0.1",))
    search.write(tmp_path)
    monkeypatch.setitem(PRESETS, "nano", dataclasses.replace(NANO, learning_rate=1.0, batch_size=64, n_layer=9))
    again = check_comparable(read_search(tmp_path), tmp_path / "cache", {})
    assert again == search and [again.sample(i) for i in range(9)] == [search.sample(i) for i in range(9)]
    assert again.sample(0)["learning_rate"] == 3e-3


def test_a_search_of_a_large_model_is_centred_on_the_laws_point_of_its_own_budget_shape_and_batch(prepared):
    shape = "n_layer=6", "n_head=6", "n_embd=384"  # 10.6M parameters, as mini
    law = {"learning_rate": 8.1e-4, "batch_size": 4}  # 1.79 N^-.713 D^.307 and .58 D^.571 tokens, windows of 128
    for options in ({"preset": "mini", "set": ("block_size=128",)}, {"set": shape}):
        search = prepared(**options)
        assert search.sample(0).items() >= law.items() and search.training.batch_size == 4
        assert search.ranges["learning_rate"] == Range(8.1e-4 / 10, 8.1e-4 * 10)
        assert search.ranges["batch_size"] == Choice((1, 2, 4, 8, 16))
    narrow = prepared(preset="mini", budget_tokens=83_886_080, choices=("batch_size=1,2",))
    assert narrow.sample(0).items() >= {"learning_rate": 4.9e-4, "batch_size": 2}.items()  # 3e-3 (2 x 256 / 19,402)^.5
    assert narrow.clipped_baseline == {"batch_size": 64}


def test_token_files_are_not_read_whole_on_resume(prepared, tmp_path, monkeypatch):
    search = prepared()
    monkeypatch.setattr("myllm.datasets.token_file.TokenFile.check_ids", lambda *_: pytest.fail("reads every id"))
    assert check_comparable(search, tmp_path / "cache", {}) == search


def test_small_budgets_have_fewer_reports_and_rungs_follow(prepared):
    assert resolve_marks(786_432, (4, 64), 128) == (786_432, 24_576)
    assert resolve_marks(40_000, (4, 8, 16), 128) == (38_912, 2048)  # 19 reports
    assert resolve_marks(33 * 2048, (16,), 128) == (32 * 2048, 2048)
    assert resolve_marks(100_000, (6, 4), 100) == (32 * 2400, 2400)  # whole steps of both
    search = prepared(budget_tokens=40_000)
    assert (search.budget_tokens, search.report_tokens) == (32_768, 8192)
    assert search.scheduler().rung_tokens == (8192,)  # all three rungs at the first of four reports
    with pytest.raises(InputError, match=r"--budget_tokens is 8200.* it must be at least 16384"):
        prepared(budget_tokens=8200)
    with pytest.raises(InputError, match="batches of 7, 11, 13 alike, 1001 windows"):
        prepared(choices=("batch_size=7,11,13",), budget_tokens=128_000)
    with pytest.raises(InputError, match="--rungs: no rung lies at one of the 32 reports before the end"):
        prepared(rungs="0.99:2")


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"range": ("learnign_rate=1e-4:1",)},
            "--range learnign_rate=1e-4:1: there is no 'learnign_rate' to set; near are learning_rate",
        ),
        ({"range": ("learning_rate",)}, "--range learning_rate: write NAME=MIN:MAX"),
        ({"range": ("learning_rate=1e-3",)}, "write learning_rate=MIN:MAX"),
        ({"range": ("learning_rate=1e-3:1e-4",)}, "0.001 is not less than 0.0001"),
        ({"range": ("learning_rate=1e-3:1e-3",)}, "0.001 is not less than 0.001"),
        ({"range": ("lr=1e-4:1",)}, "there is no 'lr' to set; near are learning_rate"),
        ({"range": ("clip_norm=1e-300:1e300",)}, "wider than numbers reach"),
        ({"range": ("learning_rate=a:1",)}, "'a' is no number"),
        ({"range": ("learning_rate=1e-4:inf",)}, "inf is not finite"),
        ({"range": ("learning_rate=1e-4:1:cubic",)}, "or MIN:MAX:linear"),
        ({"range": ("weight_decay=0:0.1",)}, "a log range begins above 0; or say weight_decay=0:0.1:linear"),
        ({"range": ("beta2=0.9:1",)}, "a log of 1 - x range ends below 1; or say beta2=0.9:1:linear"),
        ({"range": ("beta2=0.9:1:linear",)}, "--range beta2=0.9:1:linear: beta2 is 1.0; it must be at least 0 and below 1"),
        ({"range": ("warmup_ratio=0.1:2",)}, "warmup_ratio is 2.0; it must be between 0 and 1"),
        ({"range": ("dropout=0:1",)}, "--range dropout=0:1: dropout is 1.0; it must be at least 0 and below 1"),
        ({"range": ("n_layer=0:4",)}, "n_layer is 0; it must be a positive whole number"),
        ({"range": ("n_layer=1.5:4",)}, "'1.5' is no whole number"),
        ({"range": ("n_embd=64:128",)}, "n_embd is 65; it must be a multiple of n_head (2)"),
        ({"choices": ("n_embd=64,96", "n_head=2,5")}, "n_embd is 64; it must be a multiple of n_head (5)"),
        ({"set": ("n_head=3",)}, "--set n_head=3: n_embd is 64; it must be a multiple of n_head (3)"),
        ({"range": ("batch_size=8:64",)}, "list them, such as --choices batch_size=8,16,32,64"),
        ({"choices": ("batch_size=0,8",)}, "batch_size is 0; it must be 1 or more"),
        ({"choices": ("batch_size=8,8",)}, "a value stands there twice"),
        ({"choices": ("batch_size=8",)}, "use --set batch_size=8"),
        ({"choices": ("batch_size=8,100000",)}, "are fewer than the largest batch"),
        ({"choices": ("schedule=cosine,linear",)}, "schedule is 'linear'; it must be cosine or wsd"),
        ({"range": ("schedule=a:b",)}, "list its values with --choices schedule="),
        ({"choices": ("bias=yes,no",)}, "'yes' is neither true nor false"),
        ({"set": ("activation=relu",)}, "activation is 'relu'"),
        ({"range": ("clip_norm=0.5:2",), "set": ("clip_norm=1",)}, "--range clip_norm=0.5:2 says it already"),
        ({"set": ("clip_norm=-1",)}, "--set clip_norm=-1.0: clip_norm is -1.0; it must be a positive number"),
        ({"range": ("clip_norm=0.5:2",), "space": "v1"}, "the training loop of space v1 has no clip_norm"),
        ({"range": ("beta2=0.9:0.99",), "space": "v3"}, "beta2_half_life, which is set too, decides beta2"),
        ({"range": ("cooldown_ratio=0.1:0.3",)}, "only schedule wsd has a cooldown"),
        ({"range": ("cooldown_ratio=0.1:0.9", "warmup_ratio=0.1:0.5"), "set": ("schedule=wsd",)}, "add up to more than 1"),
        ({"choices": ("micro_batch_size=1,2",)}, "set it with --set micro_batch_size=VALUE"),
        ({"range": ("block_size=32:64",)}, "set it with --set block_size=VALUE"),
        ({"range": ("seed=1:4",)}, "there is no 'seed' to set"),
        ({"space": "custom"}, "nothing is left to search"),
        ({"range": ("learning_rate=1e-3:1e-3",)}, "for one value: --set learning_rate=1e-3"),
        ({"range": ("n_layer=2:2",)}, "for one value: --set n_layer=2"),
        ({"choices": ("learning_rate=1e-3",)}, "use --set learning_rate=1e-3"),
        ({"range": ("beta1=1e-20:1e-19",)}, "too narrow: floats can't tell its values apart; say beta1=1e-20:1e-19:linear"),
        ({"range": ("beta2=1e-17:1e-15",)}, "say beta2=1e-17:1e-15:linear"),
        (
            {"range": ("learning_rate=3:3.0000000000000004",)},
            "too narrow: floats can't tell its values apart; use --set learning_rate=3",
        ),
        (
            {"range": ("weight_decay=1:1.0000000000000002:linear",)},
            "too narrow: floats can't tell its values apart; use --set weight_decay=1",
        ),
        ({"range": ("learning_rate=1e-323:2e-323",)}, "use --set learning_rate=1e-323"),
        ({"range": ("weight_decay=-1e308:1e308:linear",)}, "wider than numbers reach"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_would_be_right(prepared, options, words):
    with pytest.raises(InputError) as error:
        prepared(**options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_space_of_ones_own_and_a_context_of_ones_own(prepared):
    search = prepared(space="custom", range=("dropout=0:0.2",), set=("block_size=32", "batch_size=12"))
    assert search.range_texts == {"dropout": "0 to 0.2"} and search.model.block_size == 32
    config = search.train_config(search.sample(5))
    assert (config.max_len, config.stride, config.batch_size) == (32, 32, 12)
    assert config.learning_rate == NANO.learning_rate and search.budget_tokens % (12 * 32) == 0


def test_a_table_says_the_same_and_flags_beside_it_win_name_by_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'num_samples = 4\n[space]\nbase = "v1"\nlearning_rate = "1e-4:3e-3"\nbatch_size = [8, 16, 32]\n'
        'weight_decay = 0.02\nbias = [true, false]\nn_embd = "32:64:linear"\n'
    )
    values = read_experiment(str(path), {})
    assert values["space"] == "v1" and values["num_samples"] == 4
    assert values["range"] == ["learning_rate=1e-4:3e-3", "n_embd=32:64:linear"]
    assert values["choices"] == ["batch_size=8,16,32", "bias=true,false"] and values["set"] == ["weight_decay=0.02"]
    both = merge(values, {"set": ["batch_size=4"], "range": ["weight_decay=0.1:1"]})
    assert both["set"] == ["batch_size=4"] and both["choices"] == ["bias=true,false"]
    assert both["range"] == ["learning_rate=1e-4:3e-3", "n_embd=32:64:linear", "weight_decay=0.1:1"]
    path.write_text('space = "v2"\n[space]\ndropout = 0.1\n')
    with pytest.raises(InputError, match="the space is named in it"):
        read_experiment(str(path), {})
    with pytest.raises(InputError, match=r"mine: space\.x is \{'a': 1\}; it must be"):
        from_table({"x": {"a": 1}}, "mine")


def test_a_warm_start_across_two_spaces_takes_what_their_names_share(tmp_path):
    folder = write_run(tmp_path / "a", [(1.0, 2.0), (0.2, 3.1), (0.01, 3.3)])  # space v1
    search = asha_search("optuna", "v1", warm_start=[folder], num_samples=16)
    changes = {"range": ("dropout=0:0.3", "learning_rate=1e-4:1"), "choices": ("batch_size=8,32",)}
    search = overridden(search, **changes)
    warm = warm_start_trials(search)
    tried = [trial["config"] for trial in warm]
    rate = NANO.learning_rate
    assert tried[0] == {"learning_rate": pytest.approx(0.2 * rate), "batch_size": 8, "dropout": 0.0}
    assert tried[1]["learning_rate"] == 1e-4  # the end of the range: it was below
    assert not any(trial["same"] for trial in warm)  # the batch was 16: tried anew, but its loss is another training's
    search = overridden(search, range=changes["range"])
    assert [trial["same"] for trial in warm_start_trials(search)] == [True, False]
    longer = dataclasses.replace(search, training=dataclasses.replace(search.training, budget_tokens=2 * BUDGET))
    warm = warm_start_trials(longer)  # another budget: tried, but what was lost at the end of half of it says another thing
    assert [trial["tried"] for trial in warm] == [True, True] and not any(trial["same"] for trial in warm)


@pytest.mark.parametrize("text", ["1e-20:1e-19:linear", "1e-10:1e-9", "0.9:0.9000000001"])
def test_the_cure_of_a_range_that_is_too_narrow_cures(prepared, text):
    search = prepared(range=(f"beta1={text}",))
    drawn = [search.sample(index)["beta1"] for index in range(1, 9)]
    assert len(set(drawn)) == 8 and all(0 <= search.ranges["beta1"].to_unit(value) <= 1 for value in drawn)


@pytest.mark.parametrize("flag, text", [("range", "0:0.3"), ("choices", "0,0.1"), ("set", "0.1")])
def test_a_fraction_for_a_setting_whose_default_is_whole_says_why(prepared, tmp_path, flag, text):
    path = tmp_path / "own.py"
    path.write_text(BIGRAM.replace('"width": 8', '"width": 8, "drop": 0'))
    with pytest.raises(InputError, match=r"is no whole number.*its default 0 makes drop whole.*write 0\.0 in `settings`"):
        prepared(model=f"{path}:Bigram", **{flag: (f"drop={text}",)})
    with pytest.raises(InputError, match=r"'x' is no whole number$"):
        prepared(model=f"{path}:Bigram", set=("drop=x",))
    path.write_text(path.read_text().replace('"drop": 0', '"drop": 0.0'))
    assert prepared(model=f"{path}:Bigram", **{flag: (f"drop={text}",)}).model.settings["drop"] in (0.0, 0.1)


def test_an_experiment_in_another_encoding_or_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    text = 'name = "größe"\n[space]\nbeta1 = 0.8\n'
    path.write_text(text, encoding="utf-8-sig")
    assert read_experiment(str(path), {})["name"] == "größe"
    for encoding in ("latin-1", "utf-16", "utf-16-le"):
        path.write_text(text, encoding=encoding)
        with pytest.raises(InputError, match=r"mine\.toml: not UTF-8 .*save it as UTF-8"):
            read_experiment(str(path), {})


@pytest.mark.parametrize("line", ['set = ["beta1=0.8"]', 'fix = ["beta1=0.8"]', 'range = "beta1=0.8:0.9"', "choices = []"])
def test_overrides_beside_a_table_of_them_are_refused_by_name(tmp_path, line):
    path = tmp_path / "mine.toml"
    path.write_text(f'{line}\n[space]\nbase = "v1"\nlearning_rate = "1e-4:3e-3"\n')
    name = line.split()[0].replace("fix", "set")
    with pytest.raises(InputError, match=f"{name} beside the table \\[space\\]; write its settings into the table"):
        read_experiment(str(path), {})


@pytest.fixture
def from_text(tmp_path):
    """(a search on text, its files by flag, its cache)."""
    files = {"train_file": (str(tmp_path / "a.txt"),), "val_file": (str(tmp_path / "b.txt"),)}
    rng = np.random.default_rng(0)
    for (name,) in files.values():
        (tmp_path / name).write_bytes(bytes(rng.integers(97, 123, 9000).tolist()))
    search = resolve_search(SearchOptions(**files, budget_tokens=262144, name="x"), tmp_path / "cache")
    return search, tmp_path / "a.txt", tmp_path / "cache"


def test_text_that_changed_at_its_place_is_refused_on_resume(from_text):
    search, text, cache = from_text
    assert check_comparable(search, cache, {}) == search
    before = text.read_bytes()
    for changed in (before + b"\n", before[:100] + b"A" + before[101:]):
        text.write_bytes(changed)
        with pytest.raises(InputError, match=r"a\.txt has changed since .*put it back as it was, or start a new search$"):
            check_comparable(search, cache, {})
    text.write_bytes(before)
    assert check_comparable(search, cache, {}) == search


def test_text_that_is_gone_goes_on_from_its_cache_and_moved_text_is_named(from_text, capsys):
    search, text, cache = from_text
    moved = text.rename(text.with_name("moved.txt"))
    assert check_comparable(search, cache, {}) == search
    assert "note: " in (said := capsys.readouterr().out) and "a.txt" in said and said.count("\n") == 1
    again = check_comparable(search, cache, {"train_file": (str(moved),)})
    assert again.data.train_file == [str(moved)] and again.data.prepared == search.data.prepared
    assert capsys.readouterr().out == ""
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"a\.txt: no such file"):
        check_comparable(search, cache, {})
