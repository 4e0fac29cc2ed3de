"""`probe` from loaders to a result: references, choices, verdicts, saving; wrong loaders are named."""

from __future__ import annotations

import pytest
import torch
from probing.data import CLASSES, batches, model, scenes
from torch.utils.data import DataLoader, TensorDataset

from timm_neutreno.probing import (
    REFERENCE,
    DataError,
    Options,
    ProbeResult,
    Setting,
    Splits,
    compare,
    grid,
    measure,
    probe,
)
from timm_neutreno.probing.probe import make_splits

OPTIONS = Options(neighbors=(1, 5))
FIDELITIES = {"fidelity": (0.0, 0.1, 0.6)}


@pytest.fixture(scope="module")
def result() -> ProbeResult:
    settings = [*grid("neutreno", FIDELITIES), *grid("neutreno", FIDELITIES, (-2, -1)), *grid("symmetric", {})]
    return probe(
        model(), batches(60, 0), batches(45, 2), val=batches(30, 1), num_classes=CLASSES, settings=settings,
        options=OPTIONS, name="small",
    )  # fmt: skip


def test_the_model_as_it_is_comes_first_and_strength_0_is_not_repeated(result):
    assert [row.label for row in result.rows] == [
        "as it is",
        "neutreno fidelity 0.1, all blocks",
        "neutreno fidelity 0.6, all blocks",
        "neutreno fidelity 0.1, last 2 blocks",
        "neutreno fidelity 0.6, last 2 blocks",
        "symmetric, all blocks",
    ]
    assert all(score.difference is None for score in result.rows[0].scores.values())
    assert result.images == {"train": 60, "val": 30, "test": 45}


def test_a_verdict_per_family_and_probe_at_bonferronis_level(result):
    assert [(v.family, v.probe) for v in result.verdicts] == [
        (family, name)
        for family in ("neutreno, all blocks", "neutreno, last 2 blocks", "symmetric, all blocks")
        for name in ("linear", "knn")
    ]
    assert result.level == pytest.approx(1 - 0.05 / 6)
    for verdict in result.verdicts:
        family = [row for row in result.rows if f"{row.method}, {row.label.partition(', ')[2]}" == verdict.family]
        row = result.rows[verdict.row]
        assert row.scores[verdict.probe].val == max(each.scores[verdict.probe].val for each in family)
        score = row.scores[verdict.probe]
        assert verdict.low <= score.low <= score.high <= verdict.high  # raised level: wider
        assert verdict.difference == pytest.approx(score.test - result.rows[0].scores[verdict.probe].test)
        assert verdict.outcome == ("better" if verdict.low > 0 else "worse" if verdict.high < 0 else "open")


def test_a_difference_that_is_there_is_told():
    """Labels that the second model's features know and the first one's cannot: it must come out better."""
    vit, blind = model(), model()
    with torch.no_grad():
        blind.patch_embed.proj.weight.zero_()
    parts = make_splits(batches(90, 0), batches(90, 2), batches(60, 1), CLASSES)
    found = [measure(blind, REFERENCE, parts, OPTIONS, "blind"), measure(vit, REFERENCE, parts, OPTIONS, "seeing")]
    told = compare(found, "classification", {})
    linear = told.verdicts[0]
    assert (linear.model, linear.family, linear.outcome) == ("seeing", "as it is", "better")
    assert "better than blind as it is" in linear.sentence
    back = compare(found[::-1], "classification", {}).verdicts[0]
    assert back.outcome == "worse"
    assert (back.low, back.high) == pytest.approx((-linear.high, -linear.low))


def test_sentences_say_what_was_chosen_and_what_can_be_told(result):
    for verdict in result.verdicts:
        assert verdict.sentence.startswith(f"small, {verdict.family}, ")
        assert "45 test images" in verdict.sentence
        assert ("so one would leave the model as it is" in verdict.sentence) == (verdict.on_val <= 0)
        if verdict.outcome == "open":
            assert "no difference from small as it is can be told" in verdict.sentence


def test_settings_of_a_model_are_compared_with_that_model():
    parts = make_splits(batches(60, 0), batches(45, 2), batches(30, 1), CLASSES)
    some = Setting("neutreno", {"fidelity": 0.2})
    models = {"one": model(), "two": model("deit_tiny_distilled_patch16_224")}
    found = [measure(m, s, parts, OPTIONS, name) for name, m in models.items() for s in (REFERENCE, some)]
    rows = compare(found, "classification", {}).rows
    one, one_some, two, two_some = (row.scores["linear"] for row in rows)
    assert one_some.difference == pytest.approx(one_some.test - one.test)
    assert two.difference == pytest.approx(two.test - one.test)
    assert two_some.difference == pytest.approx(two_some.test - two.test)


def test_without_val_every_fifth_train_image_is_val():
    parts = make_splits(batches(23, 0), batches(5, 2), None, CLASSES)
    everything = torch.cat([images for images, _ in batches(23, 0)])
    val = torch.cat([images for images, _ in parts.val])
    train = torch.cat([images for images, _ in parts.train])
    assert torch.equal(val, everything[::5])
    assert len(train) == 23 - 5
    assert torch.equal(torch.cat([labels for _, labels in parts.val]), (torch.arange(23) % CLASSES)[::5])
    masks = make_splits(scenes(10, 0), scenes(5, 2), None, CLASSES)
    assert [len(targets) for _, targets in masks.val] == [2]
    assert masks.task == "segmentation"


def test_segmentation_with_masks_of_their_own_size():
    settings = grid("neutreno", {"fidelity": [0.1]})
    result = probe(model(), scenes(10, 0), scenes(8, 2), num_classes=3, settings=settings, options=OPTIONS)
    assert (result.task, result.metric) == ("segmentation", "miou")
    assert 20 < result.rows[0].scores["linear"].test < 100
    assert "mIoU on 8 test images" in result.verdicts[0].sentence


def test_by_block_if_asked_for():
    found = probe(
        model(), batches(60, 0), batches(45, 2), num_classes=CLASSES, options=OPTIONS._replace(blocks=True)
    ).rows[0]
    assert {name: len(values) for name, values in found.by_block.items()} == {"similarity": 4, "linear": 4, "knn": 4}
    assert found.by_block["linear"][-1] == found.scores["linear"].test


def test_a_result_saves_and_loads(result, tmp_path):
    result.save(tmp_path / "result.json")
    assert ProbeResult.load(tmp_path / "result.json") == result
    (tmp_path / "other.json").write_text('{"top1": 3}')
    with pytest.raises(ValueError, match=r"other.json is not a saved probing result"):
        ProbeResult.load(tmp_path / "other.json")


def test_loaders_that_cannot_be_compared():
    x, y = batches(20, 0, 20)[0]
    shuffled = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    with pytest.raises(DataError, match="train shuffles its images"):
        make_splits(shuffled, batches(5, 2), None, CLASSES)
    with pytest.raises(DataError, match="test can be read only once"):
        make_splits(batches(20, 0), iter(batches(5, 2)), None, CLASSES)
    with pytest.raises(DataError, match=r"each test batch must be \(images, targets\)"):
        make_splits(batches(20, 0), [x], None, CLASSES)
    with pytest.raises(DataError, match="got 1 dimensions per image"):
        make_splits(batches(20, 0), [(x, torch.zeros(20, 3))], None, CLASSES)
    with pytest.raises(DataError, match="there is 1; give at least two"):
        make_splits(batches(20, 0), batches(5, 2), None, 1)


class Wandering:
    """A loader whose order changes from one reading to the next."""

    def __init__(self):
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        for images, labels in batches(20, 2):
            yield images.roll(self.readings, 0), labels.roll(self.readings, 0)


def test_another_order_of_the_test_images_is_noticed():
    settings = grid("neutreno", {"fidelity": [0.1]})
    with pytest.raises(DataError, match="came in another order the second time"):
        probe(model(), batches(60, 0), Wandering(), num_classes=CLASSES, settings=settings, options=OPTIONS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("neutrino", {}), "unknown method 'neutrino'"),
        (Setting("neutreno", {"gfsa": 0.1}), "gfsa belongs to the method 'gfsa'"),
        (Setting("neutreno", {"fidelity": 0.1}, (7,)), "there is no block 7 among 4"),
    ],
)
def test_unknown_settings(setting, message):
    parts = Splits("classification", CLASSES, batches(60, 0), batches(30, 1), batches(30, 2))
    vit = model()
    with pytest.raises(ValueError, match=message):
        measure(vit, setting, parts, OPTIONS)


def test_a_wrong_setting_is_found_before_anything_is_measured():
    lines: list[str] = []
    with pytest.raises(ValueError, match="there is no block 7"):
        probe(
            model(), batches(60, 0), batches(45, 2), num_classes=CLASSES, options=OPTIONS, progress=lines.append,
            settings=[Setting("neutreno", {"fidelity": 0.1}), Setting("neutreno", {"fidelity": 0.1}, (7,))],
        )  # fmt: skip
    assert not lines


def test_a_grid_has_every_combination_but_the_one_that_is_the_model_itself():
    found = grid("featscale", {"featscale_low": (0, 0.1), "featscale_high": (0, 0.2)}, [-1])
    assert [dict(setting.strengths) for setting in found] == [
        {"featscale_low": 0, "featscale_high": 0.2},
        {"featscale_low": 0.1, "featscale_high": 0},
        {"featscale_low": 0.1, "featscale_high": 0.2},
    ]
    assert {setting.layers for setting in found} == {(-1,)}
