"""Teachers that see other views of the same images than their student."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, same, weights
from test_half_labelled import halves
from test_loop import CPU, FLOAT, resumed_from_every_step
from test_loop import views as views  # a fixture

from kd import models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, Training
from kd.config.training_settings import VIEWS, Sides
from kd.data.augmentation import Augmentation
from kd.data.half_labelled import HalfLabelled
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.loop import Phase
from kd.methods import DISTIL, FINETUNE, MATCH, MODES, TRAINED, VIRTUAL, Mode
from kd.reports import report as reports
from kd.runs.data import RunData
from kd.runs.session import Session
from kd.system.errors import Problem
from kd.system.signals import StopSignals
from kd.teachers.outputs import JointTeacher, LiveNetwork, OwnImages
from kd.teachers.stored_logits import key_of
from kd.training.objectives import Distillation, Knowledge

LIGHT, STRONG = Augmentation("light"), Augmentation("strong")
APART = Augmentation("light", apart=True)
KD = Knowledge({"kd": 1.0}, (4.0,))


def train_views(store, augmentation, taught=None, labels=True, **more):
    how = {"batch_size": 12, "device": CPU, "seed": 3, "shuffle": True, "classes": 7}
    return Views(store, np.arange(49), store.index.labels if labels else None, augmentation=augmentation, taught=taught, **how, **more)


def split_halves(store, student, labelled, taught, size=12):
    """Return half-labelled batches whose halves and teachers have the given augmentations."""
    _, pool, train = halves(store, range(3, 47), range(49), size)
    pool.augmentation, train.augmentation, pool.taught = student, labelled, taught
    return HalfLabelled(pool, train)


def images_of(views, epochs=(0, 1)):
    return [(batch.slots, batch.images) for epoch in epochs for batch in views.epoch(epoch)]


# Views


@pytest.mark.parametrize("student, taught", [(STRONG, LIGHT), (LIGHT, APART), (dataclasses.replace(STRONG, mixup=0.7), dataclasses.replace(LIGHT, mixup=0.7))])
def test_teachers_see_the_same_slots_in_their_own_views(views, student, taught):
    store = views[0].store
    own = train_views(store, student, taught)
    seen, weak = own.over(store), train_views(store, taught, labels=False)
    see = OwnImages(seen)
    assert not own.teachers_see_them and seen.teachers_see_them and seen.labels is None
    for epoch in (0, 3):
        for batch, expected in zip(own.epoch(epoch), weak.epoch(epoch), strict=True):
            found = see(batch)
            assert torch.equal(found.slots, expected.slots) and torch.equal(found.images, expected.images)
            assert not torch.equal(found.images, batch.images) and same(found.labels, batch.labels)
    assert same(images_of(own), images_of(train_views(store, student)))  # the student's are not changed
    assert seen.identity() == weak.identity() != own.identity()


def test_a_view_that_is_drawn_apart_is_another_view_of_the_same_strength(views):
    store = views[0].store
    first, second = (LIGHT.recipe(3, 1, 200), APART.recipe(3, 1, 200))
    assert not np.isclose(first.matrices, second.matrices).all(axis=(1, 2)).any()
    mirrored = [one.matrices[:, 0, 0] < 0 for one in (first, second)]
    assert abs((mirrored[0] == mirrored[1]).mean() - 0.5) < 0.15  # no relation between both
    identities = {train_views(store, one).identity() for one in (LIGHT, APART, STRONG, dataclasses.replace(STRONG, apart=True), Augmentation())}
    assert len(identities) == 5
    assert train_views(store, Augmentation(apart=True)).identity() == train_views(store, Augmentation()).identity()


def test_teachers_of_another_size_see_their_own_views_too(views):
    larger = Store(views[0].store.index, "larger", 48, "squash", 0)
    larger.ensure(np.arange(112))
    seen = train_views(views[0].store, STRONG, LIGHT).over(larger)
    assert same(images_of(seen), images_of(train_views(larger, LIGHT)))


@pytest.mark.parametrize("size", [12, 7, 2])
def test_each_half_of_a_batch_has_its_own_strength(views, size):
    store = views[0].store
    mixed = split_halves(store, STRONG, LIGHT, LIGHT, size)
    strong, light = (halves(store, range(3, 47), range(49), size, augmentation=one)[0] for one in (STRONG, LIGHT))
    without = size // 2
    for epoch in (0, 1):
        for own, first, second in zip(mixed.epoch(epoch), strong.epoch(epoch), light.epoch(epoch), strict=True):
            assert torch.equal(own.slots, first.slots) and torch.equal(own.labels, first.labels)
            assert torch.equal(own.images[:without], first.images[:without])
            assert torch.equal(own.images[without:], second.images[without:])
            assert not torch.equal(own.images, first.images) and not torch.equal(own.images, second.images)
            assert torch.equal(OwnImages(mixed.over(store))(own).images, second.images)
    slots = np.array([50, 1, 60, 2, 3])  # in any order
    for views_of in (mixed, strong, light):
        assert next(views_of.batches(0, [slots])).images.shape[0] == 5
    whole = next(mixed.batches(0, [slots])).images
    assert torch.equal(whole[[0, 2]], next(light.batches(0, [slots[[0, 2]]])).images)
    assert torch.equal(whole[[1, 3, 4]], next(strong.batches(0, [slots[[1, 3, 4]]])).images)


def test_partners_keep_the_strength_of_their_half(views):
    store, mixup = views[0].store, {"mixup": 0.8}
    mixed = split_halves(store, dataclasses.replace(STRONG, **mixup), dataclasses.replace(LIGHT, **mixup), dataclasses.replace(LIGHT, **mixup))
    plain = split_halves(store, STRONG, LIGHT, LIGHT)
    batch = next(mixed.epoch(2))
    mixing = mixed.augmentation.mixing(3, 2, mixed.order(2), len(mixed))
    slots = batch.slots.numpy()
    own, partner = (next(plain.batches(2, [which])).images for which in (slots, mixing.partners[slots]))
    share = torch.from_numpy(mixing.shares[slots]).view(-1, 1, 1, 1)
    assert torch.allclose(batch.images, share * own + (1 - share) * partner, atol=1e-6)


def test_equal_strengths_are_the_same_views(views):
    store = views[0].store
    mixed, usual = split_halves(store, LIGHT, LIGHT, LIGHT), halves(store, range(3, 47), range(49), augmentation=LIGHT)[0]
    assert mixed.teachers_see_them and mixed.identity() == usual.identity() and same(images_of(mixed), images_of(usual))
    different = [split_halves(store, *three) for three in ((STRONG, LIGHT, LIGHT), (LIGHT, STRONG, LIGHT), (STRONG, STRONG, STRONG))]
    assert len({usual.identity(), *(one.identity() for one in different)}) == 4
    assert different[0].over(store).identity() == usual.identity() != different[2].over(store).identity()


@pytest.mark.case(1)
def test_a_student_on_other_views_than_its_teacher_resumes_from_every_step(views):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    mixed = split_halves(views[0].store, STRONG, LIGHT, LIGHT)
    live = LiveNetwork(models.build("kdwide", synthetic.CLASSES, seed=9), FLOAT, OwnImages(mixed.over(mixed.store)))
    phase = Phase("x", mixed, JointTeacher([live], [1.0], CPU), Distillation(KD, 0.5, None, 0.5), 0, 12, 3e-3)
    resumed_from_every_step(views, training, Training(seed=77), phases=[phase])


# Modes


def plan_of(*words):
    [settings] = parsing.parse(DistillSettings, [*map(str, PAIR), *words])
    return resolve(settings)


@pytest.fixture
def differing(monkeypatch):
    """Add modes with a teacher network of its own that sees other views than its student."""
    for name, row in {"weak": Mode(TRAINED, "mine", (DISTIL,), views="weak/strong"), "two": Mode(TRAINED, "mine", (DISTIL,), views="independent"),
                      "pool": Mode(TRAINED, "mine", (MATCH, FINETUNE), "logit-mse", views="weak/strong"),
                      "equal": Mode(TRAINED, "mine", (DISTIL,), views="equal"),
                      "named": Mode(TRAINED, "mine", (MATCH,), "pseudo-label", views="weak/strong")}.items():
        monkeypatch.setitem(MODES, name, row)
    monkeypatch.setitem(VIEWS, "equal", Sides("both light", "light", "light"))


def test_a_mode_says_which_views_there_are_and_augment_is_then_not_used(differing):
    found = {name: plan_of("--mode", name, "--augment", "none") for name in ("normal", "weak", "two", "equal")}
    assert {name: (plan.views.teacher, plan.views.student, plan.views.independent) for name, plan in found.items()} == {
        "normal": ("none", "none", False), "weak": ("light", "strong", False), "two": ("none", "none", True), "equal": ("light", "light", False)}
    assert {name for name, plan in found.items() if "--augment" in plan.idle} == {"weak", "equal"}


@pytest.mark.parametrize("row, message", [
    (Mode(VIRTUAL, "mine", views="weak/strong"), "views 'weak/strong' need a teacher that sees images"),
    (Mode(TRAINED, "mine", (dataclasses.replace(MATCH, taught="unlabelled"),)), "images 'pool' are of one kind")])
def test_rows_that_cannot_be_trained_are_refused(monkeypatch, row, message):
    monkeypatch.setitem(MODES, "wrong", row)
    with pytest.raises(Problem, match=message):
        plan_of("--mode", "wrong")


def test_the_data_of_a_run_have_the_views_of_its_mode():
    plan = plan_of("--mode", "fixmatch", "--augment-without", "mirror")
    with StopSignals(None) as signals:
        data = RunData(plan, Session(signals))
    light, strong = (Augmentation(name, ("mirror",)) for name in ("light", "strong"))
    mixed = data.views(plan.phases[0])
    assert mixed is data.half_labelled and mixed.augmentations == (strong, light) and mixed.taught == light
    assert data.train.augmentation == data.pool.augmentation == data.unlabeled.augmentation == strong
    assert data.valid.teachers_see_them and data.train.taught == light
    data = RunData(plan_of("--mode", "mean-teacher"), Session(signals))
    assert data.half_labelled.augmentations == (LIGHT,) and data.half_labelled.taught == APART


@pytest.mark.parametrize("mode, more", [("weak", []), ("two", []), ("pool", []), ("named", ["--pseudo-label-threshold", "0.16"])])
def test_stored_logits_of_other_views_equal_the_live_teacher_bit_for_bit(script, differing, mode, more):
    words = [*PAIR, "--mode", mode, *more]
    assert script("distill", words)[0] == 0
    code, out = script("distill", [*words, "--tag", "again"])
    assert code == 0 and "0 computed" in out
    code, out = script("distill", [*words, "--tag", "live", "--no-stored-logits"])
    assert code == 0
    found = [weights(DATA / f"{mode}{tag}/kdwide-kdtiny/seed0") for tag in ("", "-again", "-live")]
    assert same(found[0], found[1]) and same(found[0], found[2])
    if mode == "named":
        row = reports.read(DATA / "named/kdwide-kdtiny/seed0")["history"]["epochs"][-1]
        assert 0 < row["train_pseudo-label-share"] <= 1 and row["train_loss"] == pytest.approx(row["train_pseudo-label"], rel=1e-5)


def test_equal_strengths_give_the_run_of_the_same_views_and_others_do_not(script, differing):
    for mode in ("equal", "weak", "two", "normal"):
        assert script("distill", [*PAIR, "--mode", mode])[0] == 0
    found = {mode: weights(DATA / f"{mode}/kdwide-kdtiny/seed0") for mode in ("equal", "weak", "two", "normal")}
    assert same(found["equal"], found["normal"])
    assert not same(found["weak"], found["normal"]) and not same(found["two"], found["normal"]) and not same(found["two"], found["weak"])
    assert len(list(Path("cache/logits").iterdir())) == 2 + 2  # light, which two modes share, and light apart; validation and test


def test_the_weak_views_share_the_stored_logits_of_the_light_ones(script, differing):
    assert script("distill", [*PAIR, "--mode", "normal"])[0] == 0
    code, out = script("distill", [*PAIR, "--mode", "weak"])
    assert code == 0 and "0 computed" in out
    words = [*PAIR, "--mode", "weak", "--augment-without", "mirror", "crop", "--tag", "x"]
    assert script("distill", words)[0] == 0
    assert plan_of(*words).teachers[0].plan.settings.training.augment_without == ["mirror"]  # it has no crops
    network = models.build("kdwide", synthetic.CLASSES)
    store = Store(synthetic.read(112, 0), "cache", 24, "squash", 0)
    store.ensure(np.arange(112))
    keys = {key_of(network, "w", train_views(store, STRONG, one).over(store), FLOAT) for one in (LIGHT, STRONG, APART, Augmentation())}
    assert len(keys) == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weak", "pool"])
def test_knowledge_in_feature_maps_is_of_the_teachers_own_views(script, differing, mode):
    code, out = script("distill", [*PAIR, "--mode", mode, "--knowledge", "attention", "--max-steps", "4"])
    assert code == 0, out
