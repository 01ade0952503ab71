"""Batches: pure functions of (seed, epoch, slot), with each image once and the right pixels."""

import threading

import numpy as np
import pytest
import torch

from kd.data import feed
from kd.data.augmentation import Augmentation, warp
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views

CPU = torch.device("cpu")


def view_recipe(seed, epoch, slots):
    """Return the matrices of light views."""
    return Augmentation("light").recipe(seed, epoch, slots).matrices


@pytest.fixture
def store():
    made = Store(synthetic.read(56, 0), "cache", 24, "squash", 0)
    made.ensure(np.arange(56))
    return made


def make(store, rows, **options):
    options = {"batch_size": 8, "device": CPU, "shuffle": True, "augmentation": Augmentation("light")} | options
    return Views(store, rows, store.index.labels, **options)


def test_the_same_seed_epoch_and_slot_give_the_same_view_in_any_batch(store):
    small, large = make(store, np.arange(50), batch_size=7), make(store, np.arange(50), batch_size=32)
    for epoch in (0, 3):
        first = {slot: image for batch in small.epoch(epoch) for slot, image in zip(batch.slots.tolist(), batch.images)}
        second = {slot: image for batch in large.epoch(epoch) for slot, image in zip(batch.slots.tolist(), batch.images)}
        assert first.keys() == second.keys() == set(range(50))
        assert all(torch.equal(first[slot], second[slot]) for slot in first)


@pytest.mark.parametrize("shown, sizes", [(33, [8] * 3 + [9]), (32, [8] * 4), (34, [8] * 4 + [2])])
def test_an_epoch_may_use_some_of_the_slots_and_the_next_uses_others(store, shown, sizes):
    views = make(store, np.arange(50), shown=shown)
    epochs = [[batch.slots.tolist() for batch in views.epoch(epoch)] for epoch in range(12)]
    assert [len(slots) for slots in epochs[0]] == sizes and views.steps == len(sizes)
    seen = [{slot for slots in own for slot in slots} for own in epochs]
    assert seen[0] != seen[1] and len(seen[0]) == shown and set.union(*seen) == set(range(50))
    assert [batch.slots.tolist() for batch in views.epoch(3, 2)] == epochs[3][2:]
    assert make(store, np.arange(50), shown=shown, shuffle=False).order(0).tolist() == list(range(shown))


def test_two_slots_of_one_image_differ(store):
    views = make(store, np.array([4, 4, 4, 9]))
    images = next(views.batches(0, [np.arange(3)])).images
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_seed_and_epoch_change_order_and_views(store):
    views, other = make(store, np.arange(56)), make(store, np.arange(56), seed=1)
    assert (views.order(0) != views.order(1)).any() and (views.order(0) != other.order(0)).any()
    assert not np.allclose(view_recipe(0, 0, 5), view_recipe(0, 1, 5))
    assert np.array_equal(view_recipe(0, 0, 5), view_recipe(0, 0, 500)[:5])


def test_an_epoch_can_start_at_any_step(store):
    views = make(store, np.arange(50))
    whole = [batch.slots.tolist() for batch in views.epoch(2)]
    assert [batch.slots.tolist() for batch in views.epoch(2, 3)] == whole[3:] and not list(views.epoch(2, views.steps))


@pytest.mark.parametrize("count, batch, sizes", [(50, 8, [8] * 6 + [2]), (49, 8, [8] * 5 + [9]), (1, 8, [1]), (8, 8, [8])])
def test_a_last_training_batch_of_one_joins_the_one_before_it(store, count, batch, sizes):
    views = make(store, np.arange(count), batch_size=batch)
    assert [len(found.labels) for found in views.epoch(0)] == sizes and views.steps == len(sizes)


def test_evaluation_uses_every_slot_once_in_order_and_unchanged(store):
    rows = np.array([5, 3, 3, 40, 7])
    views = make(store, rows, batch_size=4, shuffle=False, augmentation=Augmentation())
    batches = list(views.epoch(0))
    assert [len(batch.labels) for batch in batches] == [4, 1]
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(images, store.gather(rows).float().div(255).expand(-1, 3, -1, -1))
    assert torch.cat([batch.labels for batch in batches]).tolist() == store.index.labels[rows].tolist()


def test_warp_mirrors_and_shifts_as_the_matrix_says():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    assert torch.allclose(warp(image, mirror), image.flip(3), atol=1e-5)
    shift = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])  # reads one pixel to the right
    assert torch.allclose(warp(image, shift)[..., :3], image[..., 1:], atol=1e-5) and (warp(image, shift)[..., 3] == 0).all()


def test_recipes_stay_within_the_documented_range():
    recipe = view_recipe(0, 0, 4000)
    determinant = recipe[:, 0, 0] * recipe[:, 1, 1] - recipe[:, 0, 1] * recipe[:, 1, 0]
    assert 0.45 < (determinant < 0).mean() < 0.55
    assert np.abs(determinant).min() >= 1 / 1.1**2 - 1e-6 and np.abs(determinant).max() <= 1 / 0.9**2 + 1e-6
    assert np.abs(recipe[:, :, 2]).max() <= 0.1


@pytest.mark.parametrize("way", [feed.resident, feed.ahead])
def test_every_way_to_the_device_gives_the_same_images(store, way):
    rows = np.array([9, 4, 4, 50, 7, 11])
    batches = [np.array([0, 3]), np.array([2, 1, 5]), np.array([4])]
    found, expected = list(way(store, rows, CPU)(batches)), list(feed.mapped(store, rows)(batches))
    assert len(found) == 3 and all(torch.equal(one, other) for one, other in zip(found, expected))
    before = threading.active_count()
    early = way(store, rows, CPU)(batches)
    next(early)
    early.close()
    assert threading.active_count() == before and not list(way(store, rows, CPU)([]))


@pytest.mark.parametrize("free, way", [(10**9, "resident"), (56 * 24 * 24 * 4 - 1, "ahead")])
def test_a_gpu_holds_the_images_if_they_fit(store, monkeypatch, free, way):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**10))
    for name in ("resident", "ahead", "mapped"):
        monkeypatch.setattr(feed, name, lambda *_, name=name: name)
    rows = np.arange(56).repeat(2)  # repeated rows are in memory once
    assert feed.feed(store, rows, torch.device("cuda")) == way and feed.feed(store, rows, CPU) == "mapped"
