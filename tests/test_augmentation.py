"""Light and strong views, their parts, and mixup: pure functions of (seed, epoch, slot)."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PAIR, RUN, TINY, same, weights
from torchvision.transforms import RandomResizedCrop

from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.training_settings import AUGMENTATION_PARTS, AUGMENTATIONS
from kd.data import augmentation
from kd.data.augmentation import Augmentation, augmented, crops, tone_curves
from kd.data.dataset import open_dataset, read_index
from kd.data.index import digest
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Batch, Views
from kd.studies.runs import read_run
from kd.system import ranks
from kd.system.errors import Problem
from kd.system.seeds import random_stream
from kd.teachers.outputs import LabelDistribution

CPU = torch.device("cpu")
STRONG, MIXED = Augmentation("strong"), Augmentation("strong", mixup=1.0)


@pytest.fixture
def store():
    made = Store(synthetic.read(56, 0), "cache", 24, "squash", 0)
    made.ensure(np.arange(56))
    return made


def make(store, how, rows=50, **options):
    options = {"batch_size": 8, "device": CPU, "shuffle": True, "seed": 3, "classes": 7} | options
    return Views(store, np.arange(rows), store.index.labels, augmentation=how, **options)


def by_slot(batches):
    return {slot: image for batch in batches for slot, image in zip(batch.slots.tolist(), batch.images)}


def labels_by_slot(batches):
    return {slot: label for batch in batches for slot, label in zip(batch.slots.tolist(), batch.labels)}


# Light views are those of earlier versions


def former_recipe(seed, epoch, slots):
    random = random_stream(seed, 1, epoch).random((slots, 5))
    centred = 2 * random - 1
    mirror = np.where(random[:, 0] < 0.5, 1.0, -1.0)
    angle, scale = np.deg2rad(10.0) * centred[:, 1], 1 / (1 + 0.1 * centred[:, 2])
    cos, sin, shift = np.cos(angle) * scale, np.sin(angle) * scale, 2 * 0.05 * centred[:, 3:]
    across, down = np.stack([cos * mirror, -sin, shift[:, 0]], 1), np.stack([sin * mirror, cos, shift[:, 1]], 1)
    return np.stack([across, down], 1).astype(np.float32)


def former_warp(images, recipe):
    side = images.shape[-1]
    centres = (2 * torch.arange(side, dtype=torch.float32) + 1) / side - 1
    across = recipe[:, :, 0, None, None] * centres.view(1, 1, 1, side)
    down = recipe[:, :, 1, None, None] * centres.view(1, 1, side, 1) + recipe[:, :, 2, None, None]
    return F.grid_sample(images, (across + down).permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)


def test_light_views_have_the_bits_and_the_key_of_earlier_versions(store):
    views = make(store, Augmentation("light"))
    recipe = Augmentation("light").recipe(3, 2, 50)
    assert recipe.tones is None and np.array_equal(recipe.matrices, former_recipe(3, 2, 50))
    recorded = "336148adbf445f06794b772d949d26a954d6995b76c9e93516487464c8ad6bed"
    assert hashlib.sha256(recipe.matrices.tobytes()).hexdigest() == recorded
    for batch in views.epoch(2):
        slots = batch.slots.numpy()
        images = former_warp(store.gather(slots).float().div(255), torch.from_numpy(recipe.matrices[slots]))
        assert torch.equal(batch.images, images.expand(-1, 3, -1, -1)) and batch.labels.dtype == torch.int64
    former = [store.recipe, "views 1 10.0 0.1 0.05 3", store.hashes[:50].tobytes().hex()]
    assert views.identity() == digest(former)
    unchanged = [store.recipe, "as they are", store.hashes[:50].tobytes().hex()]
    assert make(store, Augmentation()).identity() == digest(unchanged)


# Purity


@pytest.mark.parametrize("how", [STRONG, MIXED, Augmentation("none", mixup=0.3), Augmentation("light", ("mirror",), 1.0)], ids=str)
def test_a_view_depends_on_seed_epoch_and_slot_only(store, how, monkeypatch):
    small, large = make(store, how, batch_size=7), make(store, how, batch_size=32)
    for epoch in (0, 3):
        whole = by_slot(large.epoch(epoch))
        labels, of_small = labels_by_slot(large.epoch(epoch)), labels_by_slot(small.epoch(epoch))
        for other in (by_slot(small.epoch(epoch)), by_slot(small.batches(epoch, [np.array([slot]) for slot in range(50)]))):
            assert whole.keys() == other.keys() and all(torch.equal(whole[slot], other[slot]) for slot in whole)
        assert labels.keys() == of_small.keys() and all(torch.equal(labels[slot], of_small[slot]) for slot in labels)
        found = {}
        monkeypatch.setattr(ranks, "world_size", lambda: 2)
        for rank in (0, 1):
            monkeypatch.setattr(ranks, "rank", lambda: rank)
            found |= by_slot(batch for batch in small.epoch(epoch) if batch.share)
        monkeypatch.undo()
        assert whole.keys() == found.keys() and all(torch.equal(whole[slot], found[slot]) for slot in whole)
    assert not torch.equal(by_slot(small.epoch(0))[5], by_slot(small.epoch(1))[5])
    assert not torch.equal(by_slot(small.epoch(0))[5], by_slot(make(store, how, seed=4).epoch(0))[5])


def test_recipes_and_shares_do_not_depend_on_the_number_of_slots():
    for how in (Augmentation("light"), STRONG):
        few, many = how.recipe(0, 1, 5), how.recipe(0, 1, 500)
        assert np.array_equal(few.matrices, many.matrices[:5])
        assert few.tones is None or np.array_equal(few.tones, many.tones[:5])
    for mixup in (0.1, 1.0, 3.0):
        few, many = (Augmentation(mixup=mixup).mixing(0, 1, np.arange(count), count) for count in (5, 500))
        assert np.array_equal(few.shares, many.shares[:5])


def test_the_key_of_stored_logits_covers_strength_parts_ranges_and_mixup(store, monkeypatch):
    every = [Augmentation(), Augmentation("light"), STRONG, MIXED, Augmentation("strong", mixup=0.5), Augmentation(mixup=1.0)]
    every += [Augmentation(name, (part,)) for name, parts in AUGMENTATIONS.items() for part in parts]
    every += [Augmentation("strong", ("mirror", "crop"))]
    keys = [make(store, how).identity() for how in every]
    assert len(set(keys)) == len(keys) == 15
    assert make(store, Augmentation("strong", ("crop", "mirror"))).identity() == keys[-1]
    assert make(store, Augmentation("light", AUGMENTATIONS["light"])).identity() == keys[0]
    assert [how.changes for how in every[:6]] == [False, True, True, True, True, True]
    assert make(store, MIXED, shown=40).identity() != keys[3] != make(store, MIXED, seed=4).identity()
    assert make(store, STRONG, shown=40).identity() == keys[2]
    for name in ("TURN", "AREA", "ASPECT", "TRIES", "CONTRAST", "BRIGHTNESS", "GAMMA"):
        with monkeypatch.context() as patch:
            patch.setattr(augmentation, name, (0.5, 1.0) if name == "AREA" else 1)
            assert make(store, STRONG).identity() != keys[2], name


# Parts


def angles(matrices):
    return np.arctan2(-matrices[:, 0, 1], matrices[:, 1, 1])


def determinants(matrices):
    return np.linalg.det(matrices[:, :, :2].astype(float))


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_without_mirror_left_stays_left(strength):
    whole, plain = Augmentation(strength).recipe(0, 0, 2000), Augmentation(strength, ("mirror",)).recipe(0, 0, 2000)
    assert 0.45 < (determinants(whole.matrices) < 0).mean() < 0.55 and (determinants(plain.matrices) > 0).all()
    mirrored = whole.matrices.copy()
    mirrored[:, :, 0] *= np.sign(determinants(whole.matrices)).astype(np.float32)[:, None]
    assert np.array_equal(mirrored, plain.matrices) and same_tones(whole, plain)
    # A bright square left of the middle and nothing elsewhere, like the marker of a side.
    stored = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    stored[:, :, 12:15, 12:15] = 255
    how = Augmentation(strength, ("mirror", "crop") if strength == "strong" else ("mirror",))
    views = augmented(stored, how.recipe(0, 0, 200).of(np.arange(200)))
    bright = (views > views.amax((2, 3), keepdim=True) / 2).float()
    columns = (bright.sum(2) * torch.arange(32)).sum((1, 2)) / bright.sum((1, 2, 3))
    assert (columns < 15.5).all()


def same_tones(one, other):
    return one.tones is other.tones is None or np.array_equal(one.tones, other.tones)


def test_switching_off_a_part_of_light_views_leaves_the_others():
    whole = Augmentation("light").recipe(0, 0, 300).matrices
    off = {part: Augmentation("light", (part,)).recipe(0, 0, 300).matrices for part in AUGMENTATIONS["light"]}
    assert np.array_equal(off["shift"][:, :, :2], whole[:, :, :2]) and (off["shift"][:, :, 2] == 0).all()
    assert np.allclose(angles(off["scale"]), angles(whole), atol=1e-6) and np.allclose(np.abs(determinants(off["scale"])), 1)
    assert np.array_equal(off["scale"][:, :, 2], whole[:, :, 2]) and np.array_equal(off["rotation"][:, :, 2], whole[:, :, 2])
    assert np.allclose(determinants(off["rotation"]), determinants(whole)) and (angles(off["rotation"]) == 0).all()
    assert np.abs(angles(whole)).max() > np.deg2rad(9.9) and Augmentation("light", AUGMENTATIONS["light"]).recipe(0, 0, 5) is None


def test_switching_off_a_part_of_strong_views_leaves_the_others():
    whole = STRONG.recipe(0, 0, 300)
    off = {part: Augmentation("strong", (part,)).recipe(0, 0, 300) for part in AUGMENTATIONS["strong"]}
    assert np.array_equal(off["intensity"].matrices, whole.matrices) and off["intensity"].tones is None
    assert all(np.array_equal(off[part].tones, whole.tones) for part in ("mirror", "rotation", "crop"))
    turn = np.arctan2(-off["crop"].matrices[:, 0, 1], off["crop"].matrices[:, 1, 1])
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    assert np.allclose(np.einsum("nij,njk->nik", rotation, off["rotation"].matrices), whole.matrices, atol=1e-6)
    assert np.allclose(np.abs(determinants(off["crop"].matrices)), 1) and (off["crop"].matrices[:, :, 2] == 0).all()
    assert (off["rotation"].matrices[:, [0, 1], [1, 0]] == 0).all()
    assert np.array_equal(np.sign(determinants(off["crop"].matrices)), np.sign(determinants(whole.matrices)))
    only = Augmentation("strong", ("mirror", "rotation", "crop")).recipe(0, 0, 300)
    assert only.matrices is None and np.array_equal(only.tones, whole.tones)
    assert Augmentation("strong", AUGMENTATIONS["strong"]).recipe(0, 0, 5) is None


# Crops


def test_crops_are_those_of_torchvision_and_stay_on_the_image():
    width, height, x, y = crops(np.random.default_rng(0).random((20000, 2 + 2 * augmentation.TRIES)))
    assert (np.abs(x) + width <= 1 + 1e-12).all() and (np.abs(y) + height <= 1 + 1e-12).all()
    area, aspect = width * height, width / height
    assert 0.25 <= area.min() < 0.26 and 0.99 < area.max() <= 1 and 0.75 <= aspect.min() < 0.76 and 1.32 < aspect.max() <= 4 / 3
    torch.manual_seed(0)
    drawn = np.array([RandomResizedCrop.get_params(torch.empty(1, 1000, 1000), [0.25, 1], [3 / 4, 4 / 3]) for _ in range(8000)])
    top, left, high, wide = drawn.T / 1000
    middle = 2 * left + wide - 1  # the centre in -1..1
    levels = np.linspace(0.05, 0.95, 19)
    for own, other in ((area, high * wide), (aspect, wide / high), (width, wide), (x, middle), (y, 2 * top + high - 1)):
        assert np.allclose(np.quantile(own, levels), np.quantile(other, levels), atol=0.02)


@pytest.mark.parametrize("side", [16, 33, 224])
def test_a_crop_has_no_black_border(side):
    white = torch.full((300, 1, side, side), 255, dtype=torch.uint8)
    recipe = Augmentation("strong", ("rotation", "intensity")).recipe(0, 0, 300)
    assert (augmented(white, recipe) > 1 - 1e-4).all()
    turned = augmented(white, Augmentation("strong", ("intensity",)).recipe(0, 0, 300))
    assert (turned < 0.5).any() and (turned[:, :, side // 2, side // 2] > 1 - 1e-4).all()  # corners of the turned image
    nothing = np.zeros((1, 2 + 2 * augmentation.TRIES))
    nothing[:, 2:12], nothing[:, 12:] = 1.0, 1.0  # the whole area, too wide: no draw fits
    assert [float(value[0]) for value in crops(nothing)] == [1, 1, 0, 0]


# Intensity


def test_tones_stay_in_their_ranges_and_keep_the_order_of_grey_levels():
    tones = STRONG.recipe(0, 0, 20000).tones
    gamma, contrast, brightness = tones.T
    for factors in (gamma, contrast):
        assert 0.75 <= factors.min() < 0.752 and 1.33 < factors.max() <= 4 / 3 and abs(np.log(factors).mean()) < 0.01
    assert -0.1 <= brightness.min() < -0.099 and 0.099 < brightness.max() <= 0.1
    assert (np.abs(np.corrcoef(np.column_stack([np.log(gamma), np.log(contrast), brightness]).T) - np.eye(3)) < 0.03).all()
    curves = tone_curves(tones)
    assert curves.dtype == np.float32 and curves.min() >= 0 and curves.max() <= 1 and (np.diff(curves, axis=1) >= 0).all()
    assert np.array_equal(tone_curves(np.array([[1.0, 1.0, 0.0]]))[0], (np.arange(256) / 255).astype(np.float32))
    by_hand = [min(1, max(0, 1.2 * ((level / 255) ** 0.8 - 0.5) + 0.5 - 0.05)) for level in range(256)]
    assert np.allclose(tone_curves(np.array([[0.8, 1.2, -0.05]]))[0], by_hand, atol=1e-6)


def test_all_channels_have_the_same_intensity():
    random = np.random.default_rng(0)
    grey = torch.from_numpy(random.integers(0, 256, (40, 1, 24, 24), dtype=np.uint8))
    colour = torch.from_numpy(random.integers(0, 256, (40, 3, 24, 24), dtype=np.uint8))
    recipe = STRONG.recipe(0, 0, 40)
    alone = augmented(grey, recipe)
    three = augmented(grey.repeat(1, 3, 1, 1), recipe)
    assert alone.min() >= 0 and alone.max() <= 1 and torch.equal(three, alone.expand(-1, 3, -1, -1))
    found = augmented(colour, recipe)
    for channel in range(3):
        assert torch.equal(found[:, channel:channel + 1], augmented(colour[:, channel:channel + 1], recipe))
    still = augmented(colour, Augmentation("strong", ("mirror", "rotation", "crop")).recipe(0, 0, 40))
    curves = torch.from_numpy(tone_curves(recipe.tones))
    assert all(torch.equal(still[place], curves[place][colour[place].long()]) for place in range(40))


# Mixup


@pytest.mark.parametrize("how", [MIXED, Augmentation(mixup=0.2)], ids=str)
@pytest.mark.parametrize("shown", [None, 31])
def test_mixed_images_and_labels_are_those_computed_by_hand(store, how, shown):
    views = make(store, how, shown=shown)
    plain = make(store, Augmentation(how.strength, how.without))
    alone = by_slot(plain.batches(2, [np.arange(50)]))
    mixing = how.mixing(3, 2, views.order(2), 50)
    assert set(mixing.partners) <= set(views.order(2).tolist()) and (mixing.partners != np.arange(50)).mean() > 0.9
    for batch in views.epoch(2):
        assert batch.labels.dtype == torch.float32 and batch.labels.shape == (len(batch.slots), 7)
        for slot, image, label in zip(batch.slots.tolist(), batch.images, batch.labels):
            lam, partner = mixing.shares[slot], int(mixing.partners[slot])
            by_hand = np.float32(lam) * alone[slot].numpy() + (np.float32(1) - lam) * alone[partner].numpy()
            assert np.array_equal(image.numpy(), by_hand)
            expected = np.zeros(7, np.float32)
            expected[store.index.labels[slot]] += lam
            expected[store.index.labels[partner]] += np.float32(1) - lam
            assert np.allclose(label.numpy(), expected, atol=1e-7)


def test_images_without_labels_are_mixed_as_those_with_labels(store):
    without = Views(store, np.arange(50), None, batch_size=8, device=CPU, shuffle=True, seed=3, augmentation=MIXED)
    for one, other in zip(without.epoch(1), make(store, MIXED).epoch(1)):
        assert one.labels is None and torch.equal(one.images, other.images) and torch.equal(one.slots, other.slots)


@pytest.mark.parametrize("mixup, spread", [(1.0, 1 / 12), (0.2, 1 / (4 * 1.4)), (8.0, 1 / (4 * 17)), (1e-4, 0.25)])
def test_shares_have_the_distribution_beta(mixup, spread):
    found = Augmentation(mixup=mixup).mixing(0, 0, np.arange(40000), 40000)
    assert found.shares.min() >= 0 and found.shares.max() <= 1 and np.isfinite(found.shares).all()
    assert found.shares.mean() == pytest.approx(0.5, abs=0.01) and found.shares.var() == pytest.approx(spread, rel=0.03)
    assert np.bincount(found.partners // 4000, minlength=10).min() > 3700  # any slot, equally often


def test_label_smoothing_does_not_depend_on_how_images_are_mixed():
    shares = torch.tensor([[0.3, 0.0, 0.7], [1.0, 0.0, 0.0]])
    batch = Batch(torch.zeros(2, 3, 4, 4), shares, torch.arange(2), 0)
    uniform = LabelDistribution(3, 1 / 3)(batch).at(1.0).softmax(1)
    assert torch.allclose(uniform, torch.full((2, 3), 1 / 3))
    virtual = LabelDistribution(3, 0.9)
    hard = virtual(batch._replace(labels=torch.tensor([2, 0]))).at(1.0)
    assert torch.allclose(virtual(batch).at(1.0)[1], hard[1])


# Settings


def plan(*words, kind=DistillSettings):
    [settings] = parsing.parse(kind, list(words))
    return resolve(settings)


@pytest.mark.case(20)
@pytest.mark.parametrize("words, message", [
    (["--augment-without", "scale", "--augment", "strong"],
     "--augment-without scale cannot be used with --augment strong, whose parts are mirror, rotation, crop, intensity."),
    (["--augment-without", "mirror", "crop"], "--augment-without crop cannot be used with --augment light"),
    (["--augment-without", "mirror", "--augment", "none"], "--augment none, which has no parts. Remove mirror"),
    (["--augment-without", "miror"], "Did you mean 'mirror'"), (["--augment", "stong"], "Did you mean 'strong'"),
    (["--mixup", "-1"], "it must be at least 0"), (["--mixup", "nan"], "--mixup nan is not valid"),
    (["--mixup", "1", "--knowledge", "dkd"], "--mixup 1 cannot be used with --knowledge dkd"),
    (["--mixup", "0.2", "--knowledge", "kd+dkd"], "--mixup 0.2 cannot be used with --knowledge dkd"),
    (["--mixup", "1", "--mode", "virtual"], "--mixup 1 cannot be used with --mode virtual")])
def test_what_does_not_fit_is_refused_before_data_are_read(words, message):
    with pytest.raises(Problem) as caught:
        plan(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == 2


@pytest.mark.parametrize("words", [
    ["--mixup", "1", "--mode", "smoothing"], ["--mixup", "1", "--mode", "unlabeled", "--finetune", "kd"], ["--knowledge", "dkd"],
    ["--mode", "virtual"], ["--mixup", "1", "--knowledge", "kd+attention"], ["--augment", "strong", "--augment-without", "mirror"]])
def test_what_fits_is_accepted(words):
    plan(*words)


def test_train_teacher_refuses_a_part_that_is_not_there():
    with pytest.raises(Problem, match="--augment-without shift cannot be used with --augment strong"):
        plan("--augment", "strong", "--augment-without", "shift", kind=TeacherSettings)
    assert set(AUGMENTATION_PARTS) == {"mirror", "rotation", "scale", "shift", "crop", "intensity"}


@pytest.mark.parametrize("words, strength", [
    ([], "light"), (["--augment"], "light"), (["--no-augment"], "none"), (["--augment", "strong"], "strong"), (["--augment", "none"], "none"),
    (["--augment", "--epochs", "3"], "light")])
def test_the_switches_of_earlier_versions_are_understood(words, strength, tmp_path):
    [settings] = parsing.parse(DistillSettings, words)
    assert settings.training.augment == strength
    former = json.dumps(strength != "none")
    for name, text in (("a.toml", f"augment = {former}"), ("a.json", f'{{"augment": {former}}}')):
        (tmp_path / name).write_text(text)
        [settings] = parsing.parse(DistillSettings, ["--config", str(tmp_path / name)])
        assert settings.training.augment == ("none" if strength == "none" else "light")
    (tmp_path / "b.toml").write_text("augment = 1")
    with pytest.raises(Problem, match="augment = 1 in .*must be plain text"):
        parsing.parse(DistillSettings, ["--config", str(tmp_path / "b.toml")])


def as_former(path, value):
    """Write the settings of an earlier version, which had only a switch, into a JSON file."""
    content = json.loads(path.read_text())
    settings = content.get("settings", content)
    settings["augment"] = value
    del settings["augment_without"], settings["mixup"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("value, strength", [(True, "light"), (False, "none")])
def test_the_report_of_an_earlier_version_is_read(make, value, strength):
    make_run = make("normal", "resnet34", "resnet18", 0)
    as_former(make_run / "report.json", value)
    settings = read_run(make_run).settings
    assert (settings["augment"], settings["augment_without"], settings["mixup"]) == (strength, [], 0.0)


# Runs


def interrupted(script, words):
    code, out = script("distill", [*words, "--save-every-minutes", "0", "--max-minutes", "0"])
    assert code == 143, out


@pytest.mark.parametrize("value, flags", [(True, []), (False, ["--augment", "none"])])
def test_an_interrupted_run_of_an_earlier_version_goes_on_exactly_or_is_refused(script, value, flags):
    words = [*PAIR, "--mode", "normal", *flags]
    assert script("distill", words)[0] == 0
    whole = weights(RUN)
    (RUN / "report.json").unlink()
    (RUN / "model.pt").unlink()
    interrupted(script, words)
    as_former(RUN / "settings.json", value)
    code, out = script("distill", [*words, "--augment", "strong"])
    former = "light" if value else "none"
    assert code == 2 and f'augment: "{former}" -> "strong"' in out and "\n" not in out.partition("error: ")[2]
    code, out = script("distill", [*words, "--mixup", "1"])
    assert code == 2 and "mixup: 0.0 -> 1.0" in out
    code, out = script("distill", words)
    assert code == 0 and "continuing from step" in out and same(weights(RUN), whole)


@pytest.mark.parametrize("more", [[], ["--balance", "weights"], ["--balance", "draw"], ["--mode", "unlabeled"],
                                  ["--mode", "smoothing"], ["--knowledge", "dist+attention"]], ids=" ".join)
def test_stored_logits_of_strong_and_mixed_views_change_nothing(script, more):
    mode = [] if "--mode" in more else ["--mode", "normal"]
    words = [*PAIR, *mode, *more, "--augment", "strong", "--augment-without", "mirror", "--mixup", "0.8"]
    found = []
    for out, flag in (("a", []), ("b", ["--no-stored-logits"]), ("c", [])):
        code, text = script("distill", [*words, "--out", out, *flag])
        assert code == 0, text
        [run] = (path.parent for path in Path(out).glob("*/*/*-kdtiny/seed0/report.json"))
        found.append((weights(run), json.loads((run / "report.json").read_text())["history"]))
    assert "0 computed" in text or "smoothing" in more or "dist+attention" in more
    assert same(found[0], found[1]) and same(found[0], found[2])
    figures = [row.get("train_accuracy") for row in found[0][1]["epochs"]]
    assert all(figure is None or 0 <= figure <= 1 for figure in figures)


def test_tensorboard_shows_the_views_that_are_trained_on(script, monkeypatch):
    shown = []
    monkeypatch.setattr("kd.runs.tensorboard.Events.views", lambda self, images: shown.append(images.clone()))
    words = ["--model", "kdtiny", *TINY, "--augment", "strong", "--mixup", "1", "--max-steps", "1"]
    assert script("train_teacher", words)[0] == 0
    [settings] = parsing.parse(TeacherSettings, words)
    dataset = open_dataset(settings.data, read_index(settings.data))
    views = dataset.views("train", CPU, batch_size=24, shuffle=True, augmentation=MIXED)
    assert torch.equal(shown[0], next(views.epoch(0)).images)
