"""Stored logits: equal to those of the live teacher, and safe whatever happens to the file.

They are not found if anything that they depend on changes.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAIR, RUN, TINY, same

from kd import models
from kd.data.augmentation import Augmentation
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.reports import report as reports
from kd.system.checkpoint import load
from kd.system.devices import Precision
from kd.teachers import stored_logits
from kd.teachers.outputs import LiveNetwork, collect_logits
from kd.teachers.stored_logits import StoredLogits, key_of

CPU, FLOAT, HALF = torch.device("cpu"), Precision("cpu", "off"), Precision("cpu", "bf16")
SLOTS = 49


def make_views(size=24, seed=3, augmentation=Augmentation("light"), batch_size=12, rows=SLOTS, index=None):
    index = index or synthetic.read(112, 0)
    store = Store(index, "cache", size, "squash", 0)
    store.ensure(np.arange(rows))
    return Views(store, np.arange(rows), index.labels, batch_size=batch_size, device=CPU, seed=seed, shuffle=True,
                 augmentation=augmentation)


def teacher(seed=9, name="kdwide"):
    return models.build(name, synthetic.CLASSES, seed=seed)


def stored(views, network=None, weights="w", precision=FLOAT):
    network = network or teacher()
    return StoredLogits("cache", network, key_of(network, weights, views, precision), views, precision)


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))
    return fail


def epoch_of(function, views, epoch):
    return [function(batch) for batch in views.epoch(epoch)]


@pytest.mark.parametrize("precision", [FLOAT, HALF], ids=["float32", "bf16"])
def test_what_is_stored_equals_the_live_teacher_bit_for_bit(precision):
    views, network = make_views(), teacher()
    alive = LiveNetwork(network, precision)
    first = stored(views, network, precision=precision)
    for epoch in (0, 2):
        assert same(epoch_of(first, views, epoch), epoch_of(alive, views, epoch))
    first.close()
    again = stored(views, network, precision=precision)
    for epoch in (2, 0):
        assert same(epoch_of(again, views, epoch), epoch_of(alive, views, epoch))
    assert (first.computed, again.computed, again.asked) == (2 * SLOTS, 0, 2 * SLOTS)
    again(next(views.epoch(1)))
    assert again.computed == 12  # a new epoch has new views


def test_views_that_never_change_are_stored_once():
    views = make_views(augmentation=Augmentation())
    views.shuffle = False
    store = stored(views)
    epoch_of(store, views, 0), epoch_of(store, views, 5)
    assert store.computed == SLOTS


def test_unchanged_views_in_changing_batches_equal_the_live_teacher_bit_for_bit():
    network = teacher(name="resnet18").to(CPU)  # large enough for the size of a batch to affect rounding
    alive = LiveNetwork(network, FLOAT)
    for seed in (3, 4):
        views = make_views(96, seed, augmentation=Augmentation(), batch_size=16, rows=40)
        for _ in range(2):
            store = stored(views, network)
            for epoch in (1, 0):
                assert same(epoch_of(store, views, epoch), epoch_of(alive, views, epoch))
            store.close()


def test_anything_that_changes_the_logits_changes_the_key(tmp_path):
    def key(views=None, network=None, weights="w", precision=FLOAT):
        return key_of(network or teacher(), weights, views or make_views(), precision)

    moved = teacher()
    moved.mean = moved.mean + 0.1
    replaced = make_views()
    replaced.store.hashes[5] += 1
    other_device = make_views()
    other_device.device = torch.device("meta")
    shorter = make_views()
    shorter.shown = 40
    keys = [key(), key(weights="v"), key(network=teacher(name="kdtiny")), key(network=moved), key(make_views(seed=4)),
            key(make_views(augmentation=Augmentation())), key(make_views(size=16)), key(make_views(rows=48)), key(precision=HALF),
            key(replaced), key(make_views(index=synthetic.read(112, 1))), key(other_device), key(make_views(batch_size=5)),
            key(shorter)]
    assert len(set(keys)) == len(keys) == 14 and key() == keys[0]


def test_a_changed_view_recipe_changes_the_key(monkeypatch):
    before = key_of(teacher(), "w", make_views(), FLOAT)
    monkeypatch.setattr("kd.data.augmentation.TURN", 11.0)
    assert key_of(teacher(), "w", make_views(), FLOAT) != before


def test_rows_of_a_teacher_that_answers_otherwise_are_thrown_away(capsys):
    views = make_views()
    wrong = stored(views, teacher(seed=1))
    epoch_of(wrong, views, 0)
    wrong.close()
    right = stored(views, teacher(seed=9))  # the same name and hash, by mistake
    assert "discarded and computed again" in capsys.readouterr().out
    assert same(epoch_of(right, views, 0), epoch_of(LiveNetwork(teacher(seed=9), FLOAT), views, 0)) and right.computed == SLOTS


@pytest.mark.case(8)
def test_damaged_rows_are_holes(injected):
    views = make_views()
    expected = epoch_of(LiveNetwork(teacher(), FLOAT), views, 0)
    whole = stored(views)
    epoch_of(whole, views, 0)
    whole.close()
    content, random = whole.path.read_bytes(), np.random.default_rng(0)
    for number in range(40):
        damaged = bytearray(content)
        if number % 4 == 0:
            damaged = damaged[:random.integers(len(content))]
        elif number % 4 == 1:
            place = random.integers(len(content) - 64)
            damaged[place:place + 64] = bytes(64)
        elif number % 4 == 2:
            damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        else:
            one, two = random.permutation(SLOTS)[:2] * 32
            damaged[one:one + 32], damaged[two:two + 32] = content[two:two + 32], content[one:one + 32]
        whole.path.write_bytes(damaged)
        again = stored(views)
        assert same(epoch_of(again, views, 0), expected) and 0 < again.computed <= SLOTS
    injected(40)


def test_a_cache_that_is_deleted_while_it_is_used_hurts_nobody():
    views = make_views()
    first = stored(views)
    epoch_of(first, views, 0)
    first.path.unlink()
    alive = LiveNetwork(teacher(), FLOAT)
    assert same(epoch_of(first, views, 1), epoch_of(alive, views, 1))
    first.close()
    second = stored(views)
    assert same(epoch_of(second, views, 0), epoch_of(alive, views, 0)) and second.computed == SLOTS


@pytest.mark.case(23)
def test_a_full_disk_costs_the_storing_and_nothing_else(monkeypatch, capsys):
    views = make_views()
    store = stored(views)

    epoch_of(store, views, 5)
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(28))
        found = [epoch_of(store, views, epoch) for epoch in range(8)]
    assert same(found, [epoch_of(LiveNetwork(teacher(), FLOAT), views, epoch) for epoch in range(8)])
    assert capsys.readouterr().out.count("disk full") == 1 and store.computed == 8 * SLOTS  # stored rows are still read
    store.close()


@pytest.mark.case(24)
@pytest.mark.parametrize("name", ["open", "preadv", "fstat", "close"])
def test_a_file_that_fails_costs_the_storing_and_nothing_else(monkeypatch, capsys, name):
    views, expected = make_views(), epoch_of(LiveNetwork(teacher(), FLOAT), make_views(), 0)
    first = stored(views)
    epoch_of(first, views, 0)
    first.close()
    with monkeypatch.context() as patch:
        patch.setattr(f"kd.teachers.stored_logits.os.{name}", failing(116))
        store = stored(views)
        assert same(epoch_of(store, views, 0), expected)
        store.close()
    assert store.computed == (0 if name in ("fstat", "close") else SLOTS) and store.file is None
    assert capsys.readouterr().out.count("warning") == (name != "close")


@pytest.mark.case(24)
def test_a_place_that_cannot_be_written_costs_the_storing_and_nothing_else(capsys):
    Path("cache").mkdir()
    Path("cache/logits").write_text("a file, no folder")
    views = make_views()
    store = stored(views)
    assert same(epoch_of(store, views, 0), epoch_of(LiveNetwork(teacher(), FLOAT), views, 0))
    store.close()
    assert capsys.readouterr().out.count("no longer stored") == 1


@pytest.mark.case(4)
def test_rows_of_a_killed_run_are_read_again():
    def killed():
        views = make_views()
        store = stored(views)
        for epoch in range(9):
            epoch_of(store, views, epoch)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    views = make_views()
    again = stored(views)
    for epoch in range(9):
        assert same(epoch_of(again, views, epoch), epoch_of(LiveNetwork(teacher(), FLOAT), views, epoch))
    assert process.exitcode == -signal.SIGKILL and again.computed == SLOTS  # the last epoch has not been written


def _fill(number):
    views = make_views()
    store = stored(views)
    for epoch in range(6):
        epoch_of(store, views, (epoch + 3 * number) % 6)
    store.close()


def test_two_processes_fill_one_file_at_once():
    views = make_views()
    both = [multiprocessing.get_context("fork").Process(target=_fill, args=(number,)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    after = stored(views)
    for epoch in range(6):
        assert same(epoch_of(after, views, epoch), epoch_of(LiveNetwork(teacher(), FLOAT), views, epoch))
    assert after.computed == 0 and [process.exitcode for process in both] == [0, 0]


def test_answers_of_a_part_are_those_of_the_network():
    views = make_views(augmentation=Augmentation())
    views.shuffle = False
    store = stored(views)
    first = collect_logits(store, views)
    assert np.array_equal(first, collect_logits(LiveNetwork(teacher(), FLOAT), views)) and first.shape == (SLOTS, 7)
    assert np.array_equal(collect_logits(store, views), first) and store.computed == SLOTS


def test_a_student_has_the_same_weights_with_stored_logits_and_without(script):
    results = {}
    for name, more in (("live", ["--no-stored-logits"]), ("filling", []), ("stored", [])):
        code, out = script("distill", [*PAIR, "--mode", "normal", "--out", name, *more])
        assert code == 0
        results[name] = out
    runs = [name / RUN.relative_to("runs") for name in map(Path, results)]
    weights = [load(run / "model.pt")["state_dict"] for run in runs]
    assert same(weights[0], weights[1]) and same(weights[0], weights[2])
    reported = [{key: value for key, value in reports.read(run).items() if key not in ("clock", "settings")} for run in runs]
    assert reported[0] == reported[1] == reported[2]
    assert "logits" not in results["live"] and ", 0 computed" in results["stored"]
    assert not [line for line in results["filling"].splitlines() if ", 0 computed" in line]


def test_a_teacher_leaves_the_logits_that_its_student_reports(script, tmp_path, monkeypatch):
    """A student with `--max-steps 1` asks for one batch, and for the validation and the test split."""
    assert script("train_teacher", ["--model", "kdwide", *TINY])[0] == 0
    files = sorted((tmp_path / "cache/logits").iterdir())
    assert len(files) == 2
    before = [file.read_bytes() for file in files]
    code, text = script("distill", [*PAIR, "--max-steps", "1"])
    assert code == 0 and ", 24 computed," in text
    assert [file.read_bytes() for file in files] == before
    teacher = reports.read(RUN)["teacher"]
    found = reports.read(Path("runs/synthetic-patient-32/teacher/kdwide/seed0"))["results"]["best"]
    assert teacher["valid_accuracy"] == found["valid_accuracy"] and teacher["test_accuracy"] == found["test_accuracy"]


def test_a_teacher_that_cannot_store_its_logits_is_finished_nevertheless(script, monkeypatch):
    monkeypatch.setattr("kd.runs.finish.store", lambda *_: stored_logits.store("/dev/null", *_[1:]))
    assert script("train_teacher", ["--model", "kdwide", *TINY])[0] == 0
    assert not Path("cache/logits").exists()
