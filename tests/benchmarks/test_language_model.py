"""benchmarks/language_model.py: its texts, its order, that it goes on bit for bit, and what it claims."""

import argparse
import importlib
import math
import sys

import pytest
import torch
from timm.layers import set_fused_attn

WORDS = "the cat sat on the mat\n\nthe dog sat <unk>\n" * 40


@pytest.fixture(scope="module")
def language_model():
    return importlib.import_module("language_model")


@pytest.fixture(autouse=True)
def fused_attention():
    """On again for the tests of others: the script turns it off, as a program may."""
    yield
    set_fused_attn(True)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.txt").write_text(WORDS + "rare\n")
    (tmp_path / "test.txt").write_text("the rare cat\n" * 20)
    return tmp_path


def options_of(language_model, files, *more: str) -> argparse.Namespace:
    common = ["--train", files / "train.txt", "--test", files / "test.txt", "--output", files / "run", "--quick"]
    return language_model.arguments([*map(str, common), "--device", "cpu", *more])


def test_words_are_counted_in_the_training_text_alone_and_rare_ones_are_unknown(language_model, files):
    load, train, test = language_model.load_text, [files / "train.txt"], [files / "test.txt"]
    texts = load(train, test, test, "word", 2, None)
    # of 40 rounds: the 3 times, <eos> 3, sat 2, and <unk> once, with "rare" 41 times
    assert texts.vocabulary == 8
    assert texts.test[1] == texts.unknown_id == 3
    assert texts.unknown(texts.test) == 0.25
    assert len(texts.train) == 40 * 13 + 2
    frequency = torch.bincount(texts.train, minlength=8)
    assert (frequency.diff() <= 0).all()  # as adaptive softmax needs them
    split = load(train, None, test, "word", 2, None)
    assert len(split.val) == (40 * 13 + 2) // 10
    assert len(split.train) + len(split.val) == 40 * 13 + 2
    assert load(train, None, test, "word", 1, None).vocabulary == 8  # "rare" is in the last tenth, which is val
    bytewise = load(train, None, test, "byte", 2, None)
    assert bytewise.vocabulary == 256
    assert bytewise.unknown(bytewise.test) == 0
    assert len(bytewise.test) == len("the rare cat\n" * 20)


def test_an_epoch_shows_every_word_once_and_what_follows_it(language_model, files):
    options, text = options_of(language_model, files), torch.arange(1000)
    steps = ((1000 - 1) // 16 - 1) // 4
    for epoch in range(2):
        seen = []
        for step in range(steps):
            tokens, targets = language_model.batch(text, 5, epoch * steps + step, options)
            assert torch.equal(targets, tokens + 1)
            assert torch.equal(tokens, tokens[:, :1] + torch.arange(16))
            seen += tokens.flatten().tolist()
        assert len(set(seen)) == len(seen) == steps * 4 * 16
    again = language_model.batch(text, 5, 3, options)[0]
    assert torch.equal(again, language_model.batch(text, 5, 3, options)[0])
    assert not torch.equal(again, language_model.batch(text, 6, 3, options)[0])


class Killed(Exception):
    pass


def test_goes_on_bit_for_bit(language_model, files, monkeypatch):
    options = options_of(language_model, files, "--drop-rate", "0.3", "--save-every", "2")
    text = torch.randint(20, (500,), generator=torch.Generator().manual_seed(0))

    def trained(name: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        model = language_model.build("NeuTRENO 0.4", 1, 20, options)
        batch = language_model.batch

        def killing(text, seed, step, options):
            if step == stop:
                raise Killed
            return batch(text, seed, step, options)

        with monkeypatch.context() as patched:
            patched.setattr(language_model, "batch", killing)
            language_model.train(model, 1, text, files / name, options)
        return model.state_dict()

    whole = trained("whole.pt")
    with pytest.raises(Killed):
        trained("halves.pt", stop=3)
    assert torch.load(files / "halves.pt")["step"] == 2
    torch.rand(7)  # the new process's random numbers are elsewhere
    halves = trained("halves.pt")
    assert all(torch.equal(halves[name], whole[name]) for name in whole)


def test_runs_whole_reads_what_is_done_and_refuses_other_options(language_model, files, monkeypatch, capsys):
    command = ["language_model.py", "--train", str(files / "train.txt"), "--test", str(files / "test.txt"), "--quick"]
    command += ["--output", str(files / "run"), "--device", "cpu", "--arms", "plain", "NeuTRENO 0.4", "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "1"])
    language_model.main()
    table = capsys.readouterr().out
    assert "| NeuTRENO 0.4 |" in table
    done = (files / "run" / "runs" / "plain-seed0" / "result.pt").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*command, "2"])
    language_model.main()
    assert (files / "run" / "runs" / "plain-seed0" / "result.pt").stat().st_mtime_ns == done
    assert (files / "run" / "runs" / "plain-seed1" / "result.pt").exists()
    assert {path.suffix for path in (files / "run").glob("language_model*")} == {".json", ".md", ".svg"}
    monkeypatch.setattr(sys, "argv", [*command, "2", "--steps", "7"])
    with pytest.raises(SystemExit, match=r"begun with other options \(steps\): choose another"):
        language_model.main()


def losses(mean: float, seed: int = 0, length: int = 5000) -> dict:
    noise = torch.rand(length, generator=torch.Generator().manual_seed(seed))
    text = mean + noise - noise.mean()
    similarity = {"block_similarity": [0.1, 0.2], "attention_similarity": [0.3, 0.4]}
    seconds = {"train_seconds": 1.0, "evaluation_seconds": 1.0}
    return {"losses": {"val": text, "test": text}, "similarity": similarity, **seconds}


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((2.9, 2.9), "lower, in every seed"),
        ((3.1, 3.1), "higher, in every seed"),
        ((2.9, 3.02), "no difference can be told"),  # the seeds do not agree
        ((3.0, 3.0), "no difference can be told"),
        ((3.003, 3.003), "no difference can be told"),  # every seed, but within the chance of the text
        ((2.997, 2.997), "no difference can be told"),
    ],
)
def test_claims_need_the_interval_over_text_and_every_seed(language_model, means, said):
    report = importlib.import_module("language_model_report")
    plain = [losses(3.0, seed) for seed in range(2)]
    arm = [losses(mean, seed + 10) for seed, mean in enumerate(means)]
    row = report.row(arm, plain, 100, 4)
    assert said in report.sentence("x", row)
    value, low, high = row["difference"][0]
    want = [math.exp(sum(r["losses"]["test"].double().mean() for r in runs) / 2) for runs in (arm, plain)]
    assert value == pytest.approx(want[0] - want[1])
    assert low <= value <= high
    wide = row["difference"][1]
    assert wide[1] <= low <= high <= wide[2]  # for four comparisons at once
