"""Training, teachers and evaluation on a CUDA GPU: every mode, the CPU's numbers, exact resume.

Run with -m gpu. The measured differences are printed at the end.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY, same, weights
from gpu_training import (
    AMPS,
    build,
    largest_difference,
    lesson,
    live_teacher,
    make_views,
    new_state,
    parameters_of,
    precision_of,
    snapshot,
    train,
    use_sgd,
    weights_of,
)

from kd.config import parsing
from kd.config.settings import DistillSettings, Training
from kd.data import feed
from kd.data.augmentation import Augmentation
from kd.data.dataset import open_dataset, read_index
from kd.data.shifts import SHIFTS, STRENGTHS, shifted
from kd.knowledge import KNOWLEDGE
from kd.loop import LOG_EVERY, predict
from kd.methods import MODES
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.system.devices import kind_of, pick_precision
from kd.system.errors import DIVERGED, Problem
from kd.system.seeds import seed_step
from kd.teachers import model_file
from kd.teachers.outputs import LiveNetwork, ObservedNetwork
from kd.teachers.stored_logits import TOLERANCE, StoredLogits, key_of
from kd.training.objectives import Supervised

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
CLOSE = 1e-4  # float32 on two devices, relative to the largest value
WORDS = {"off": "float32", "bf16": "bf16", "fp16": "fp16"}


def on(device, *words):
    """Return options that train on a device in a few steps."""
    return [*words, *TINY, "--device", device.type, "--max-steps", "3"]


def scaled_difference(found, expected):
    """Return the largest difference of two tensors, relative to the largest value expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


# Every mode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_in_every_precision(gpu, script, mode, amp):
    students = "kdtiny+kdwide" if MODES[mode].trains_several else "kdtiny"
    words = [*on(gpu, "--teacher", "kdwide", "--student", students), "--mode", mode, "--amp", amp]
    if MODES[mode].teacher.stop_at is not None:  # a teacher that is defective after so few steps
        stop = ["--stop-at-val-accuracy", "0.05", "--look-every", "1"]
        assert script("train_teacher", [*on(gpu, "--model", "kdwide"), "--amp", amp, *stop])[0] == 0
    code, out = script("distill", words)
    assert code == 0, out
    [folder] = Path("runs").glob(f"*/{mode}/*-kdtiny/seed0")
    report = reports.read(folder)
    assert report["clock"]["device"].startswith(f"{gpu.type} (")
    assert report["clock"]["precision"] == WORDS[amp] and report["history"]["steps"] == 3
    assert f"on {gpu.type}, {WORDS[amp]}" in out
    for row in report["history"]["epochs"]:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
    assert all(value.isfinite().all() for value in weights(folder).values())


@pytest.mark.parametrize("kind", KNOWLEDGE)
def test_every_kind_of_knowledge_has_the_losses_of_the_cpu(gpu, kind):
    rows = []
    for device in (CPU, gpu):
        teacher, objective, layers = lesson(device, kind)
        state = use_sgd(new_state(device, drop_rate=0.0))
        train(state, make_views(device), end=3, teacher=teacher, objective=objective, layers=layers)
        rows.append(state.progress.history[-1])
    for name in (f"train_{kind}", "train_loss"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-3), name


def test_auto_is_the_best_precision_of_the_device(gpu, script):
    expected = pick_precision("auto", gpu)
    if gpu.type == "cuda":
        capable = torch.cuda.get_device_capability(gpu)[0] >= 8
        assert expected.name == ("bf16" if capable else "fp16")
    assert script("train_teacher", on(gpu, "--model", "kdtiny"))[0] == 0
    run = DATA / "teacher/kdtiny/seed0"
    assert reports.read(run)["clock"]["precision"] == expected.words
    name = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else torch.__version__
    assert name in kind_of(gpu)


# The CPU's numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name, size", [("kdtiny", 32), ("resnet18", 64), ("seresnet50", 64)])
def test_logits_are_those_of_the_cpu(gpu, record_property, name, size, training):
    """In training, 53 BatchNorm layers amplify rounding: on one CPU, logits of SE-ResNet50 in
    float32 are 3e-5 away from those in float64, and those of the other networks 5e-7. With TF32
    instead of float32, the differences would be a thousand times as large.
    """
    allowed = 10 * CLOSE if training and name == "seresnet50" else CLOSE
    images = torch.rand(8, 1, size, size, generator=torch.Generator().manual_seed(0))
    logits = []
    for device in (CPU, gpu):
        network = build(device, name, drop_rate=0.0)
        network.module.train(training)
        logits.append(network(images.to(device).expand(-1, 3, -1, -1)))
        assert logits[-1].device.type == device.type
    difference = scaled_difference(logits[1], logits[0])
    mode = "train" if training else "eval"
    record_property("measured", f"logits of {name} ({mode}) differ from the CPU's by"
                                f" {difference:.1e} of the largest")
    assert difference < allowed


@pytest.mark.parametrize("name", ["kdtiny", "resnet18"])
def test_three_steps_of_sgd_end_in_the_weights_of_the_cpu(gpu, record_property, name):
    ends = []
    for device in (CPU, gpu):
        state = use_sgd(new_state(device, name=name, drop_rate=0.0))
        before = weights_of(state)
        ends.append(weights_of(train(state, make_views(device), end=3)))
        assert largest_difference(before, ends[-1]) > 100 * CLOSE
    difference = largest_difference(*ends)
    record_property("measured", f"weights of {name} after 3 steps of SGD differ from the CPU's by"
                                f" {difference:.1e}")
    assert difference < CLOSE


def test_three_steps_of_adam_stay_within_three_steps_of_the_cpu(gpu, record_property):
    """Measure the difference, and assert only the bound that Adam itself has.

    The first step of Adam is the sign of the gradient times the learning rate, even for a gradient
    of 1e-9, whose sign is a matter of rounding. In three steps with constant gradients or with any
    others, a weight moves by at most 1.004 lr each, and two weights that move apart by twice that.
    """
    training, ends = Training(epochs=1, batch_size=12, lr=1e-3, seed=3), []
    for device in (CPU, gpu):
        state = new_state(device, training=training, drop_rate=0.0)
        train(state, make_views(device), training=training, end=3)
        ends.append(parameters_of(state))
    difference = largest_difference(*ends)
    record_property("measured", f"weights after 3 steps of Adam differ from the CPU's by"
                                f" {difference:.1e}, {difference / training.lr:.2g} lr")
    assert all(value.isfinite().all() for value in ends[1].values())
    assert difference <= 2 * 3 * 1.004 * training.lr + 1e-6


@pytest.mark.parametrize("how", [Augmentation("light"), Augmentation("strong", mixup=1.0)])
def test_views_are_those_of_the_cpu(gpu, how):
    batches = [make_views(device, 64, augmentation=how)[0].epoch(1) for device in (gpu, CPU)]
    for found, expected in zip(*batches, strict=True):
        assert found.images.device.type == gpu.type and found.slots.device == CPU
        assert torch.equal(found.slots, expected.slots)
        assert torch.equal(found.labels.cpu(), expected.labels)
        # A rounding error of 1e-6 pixels in a coordinate, times a contrast of up to 1.
        assert (found.images.cpu() - expected.images).abs().max() < 2e-5


def test_normalised_images_are_those_of_the_formula(gpu):
    images = torch.rand(5, 1, 32, 32, device=gpu).expand(-1, 3, -1, -1)
    network = build(gpu)
    network.module = torch.nn.Identity()
    found = network(images)
    expected = (images.cpu() - network.mean.cpu()) / network.std.cpu()
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.cpu() - expected).abs().max() < 1e-5


def test_dropout_is_a_function_of_seed_epoch_and_step(gpu):
    def kept(*key):
        seed_step(gpu, *key)
        return torch.nn.functional.dropout(torch.ones(4096, device=gpu), 0.5)

    first = kept(3, 1, 2)
    torch.manual_seed(99)
    torch.rand(1000, device=gpu)
    assert torch.equal(kept(3, 1, 2), first) and 0.4 < (first == 0).float().mean() < 0.6
    others = [kept(*key) for key in ((4, 1, 2), (3, 2, 2), (3, 1, 3))]
    assert not any(torch.equal(other, first) for other in others)


# The ways to the device -------------------------------------------------------------------------


def test_resident_images_and_images_gathered_ahead_give_the_same_batches(gpu, monkeypatch):
    """While the device is busy, images that are gathered ahead must not be overwritten."""
    found, busy = [], torch.rand(1024, 1024, device=gpu)
    for way in (feed.resident, feed.ahead):
        monkeypatch.setattr("kd.data.views.feed", way)
        views, batches = make_views(gpu, batch_size=5)[0], []
        for epoch in range(2):
            for batch in views.epoch(epoch):
                if gpu.type == "cuda":
                    for _ in range(20):
                        busy = busy @ busy / 512
                batches.append([batch.images, batch.labels, batch.slots])
        found.append(batches)
    assert len(found[0]) == 2 * 10 and same(*found)


# Stored logits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("name, size", [("kdwide", 24), ("seresnet50", 64)])
def test_stored_logits_are_those_of_the_live_teacher(gpu, record_property, name, size, amp):
    """If the live teacher repeats itself bit for bit, then what is stored is the same bit for bit.

    If it does not, because cuDNN may choose other algorithms, the tolerance of the stored logits
    is allowed.
    """
    views, network = make_views(gpu, size, batch_size=16)[0], build(gpu, name, seed=9)
    precision = precision_of(gpu, amp)
    live, key = LiveNetwork(network, precision), key_of(network, "w", views, precision)
    first, again = ([live(batch) for batch in views.epoch(2)] for _ in range(2))

    def stored():
        store = StoredLogits("cache", network, key, views, precision)
        logits = [store(batch) for batch in views.epoch(2)]
        store.close()
        return store, logits

    filling, filled = stored()
    reading, read = stored()
    assert (filling.computed, reading.computed, reading.asked) == (49, 0, 49) and same(filled, read)
    expected, found = torch.cat(first), torch.cat(read)
    spread = (expected.max() - expected.min()).item()
    repeats = (expected - torch.cat(again)).abs().max().item() / spread
    difference = (found - expected).abs().max().item() / spread
    record_property("measured", f"logits of {name} ({amp}), of their range: live a second time"
                                f" {repeats:.1e}, stored {difference:.1e}")
    assert difference <= (TOLERANCE[WORDS[amp]] if repeats else 0)
    assert found.dtype == torch.float32 and found.device.type == gpu.type


def test_a_second_run_reads_all_stored_logits(gpu, script):
    words = [*on(gpu, *PAIR[:4]), "--mode", "normal"]
    assert script("distill", words)[0] == 0
    code, out = script("distill", [*words, "--tag", "again"])
    assert code == 0 and ", 0 computed" in out and "discarded" not in out


def test_features_of_a_teacher_are_those_that_the_student_sees(gpu):
    batch = next(make_views(gpu)[0].epoch(0))
    network = build(gpu, "kdwide", seed=9)
    for amp in AMPS:
        taught = ObservedNetwork(network, precision_of(gpu, amp), ("bn",))(batch)
        live = LiveNetwork(network, precision_of(gpu, amp))(batch)
        [features] = taught.features
        assert features.dtype == torch.float32 and features.shape == (12, 12, 12, 12)
        assert scaled_difference(taught.logits, live) < (1e-5 if amp == "off" else 2e-2)
        assert not live.is_inference() and not features.is_inference()


# Exact resume -----------------------------------------------------------------------------------


def assert_resumed(what, resumed, whole, again, exact, record_property):
    """Check that resumed weights differ from the whole run's no more than the run from itself.

    With equal repetitions (`exact`), a resumed run must be equal. Otherwise the difference may be
    three times as large, because two repetitions do not show the largest difference.
    """
    repeated = max(largest_difference(other, whole) for other in again)
    difference = max(largest_difference(other, whole) for other in resumed)
    record_property("measured", f"{what}: a repeated run differs by {repeated:.1e}, a resumed one"
                                f" by {difference:.1e}")
    assert difference <= (0 if exact else 3 * repeated)


@pytest.mark.parametrize("name, amp, steps", [*(("kdtiny", amp, 12) for amp in AMPS),
                                              ("resnet18", "bf16", 6)])
def test_resuming_ends_in_the_same_state(gpu, record_property, name, amp, steps):
    views, teacher = make_views(gpu), live_teacher(gpu, amp)
    _, objective, _ = lesson(gpu, "kd", amp)

    def run(saved=None):
        state, kept = new_state(gpu, amp, name), {}
        if saved is not None:
            state = new_state(gpu, amp, name, Training(seed=77))
            torch.manual_seed(12345)  # the generator of a new process may hold anything
            state.load_state_dict(saved)

        def keep(state):
            if saved is None and state.progress.total in (1, steps // 2, steps - 1):
                kept[state.progress.total] = snapshot(state)
        train(state, views, end=steps, teacher=teacher, objective=objective,
              after_step=keep)
        return snapshot(state), weights_of(state), kept

    whole, weights_of_whole, snapshots = run()
    assert whole["progress"]["total"] == steps and whole["progress"]["ended"]
    again = [run() for _ in range(2)]
    resumed = [run(saved) for saved in snapshots.values()]
    exact = all(same(state, whole) for state, _, _ in again)
    assert_resumed(f"{name} in {amp}", [one for _, one, _ in resumed], weights_of_whole,
                   [one for _, one, _ in again], exact, record_property)
    assert len(resumed) == 3 and (not exact or all(same(state, whole) for state, _, _ in resumed))
    assert whole["scaler"] == resumed[0][0]["scaler"]


def test_a_stopped_command_goes_on_to_the_same_weights(gpu, script, record_property):
    words = [*on(gpu, *PAIR[:4]), "--mode", "normal", "--amp", "fp16"]
    for out in ("whole", "second"):
        assert script("distill", [*words, "--out", out])[0] == 0
    code, starts = 143, 0
    while code == 143 and starts < 12:
        code, out = script("distill", [*words, "--out", "stopped", "--max-minutes", "0"])
        starts += 1
    assert code == 0 and starts > 3
    whole, second, stopped = (weights(Path(out) / RUN.relative_to("runs"))
                              for out in ("whole", "second", "stopped"))
    assert_resumed("a stopped command", [stopped], whole, [second], same(whole, second),
                   record_property)


@pytest.mark.gpu("a run that moves from the GPU to the CPU")
def test_a_run_that_was_begun_on_a_gpu_goes_on_on_a_cpu(gpu, script):
    words = [*on(gpu, "--model", "kdwide"), "--amp", "off"]
    assert script("train_teacher", [*words, "--max-minutes", "0"])[0] == 143
    code, out = script("train_teacher", [*words, "--device", "cpu"])
    assert code == 0 and "continuing from step 1" in out
    assert reports.read(TEACHER)["clock"]["device"].startswith("cpu (")


# Divergence -------------------------------------------------------------------------------------


# A gradient that overflows in fp16 is no divergence: the scale is lowered.
@pytest.mark.parametrize("poison, amp", [*(("loss", amp) for amp in AMPS), ("gradient", "off"),
                                         ("gradient", "bf16")])
def test_a_step_that_is_not_finite_is_noticed_in_time_and_saves_nothing(gpu, poison, amp):
    training, before = Training(epochs=1, batch_size=2, lr=0.02, seed=3), {}

    def objective(student, teacher, labels):
        terms = Supervised()(student, teacher, labels)
        if state.progress.total == 2:
            before.update(weights_of(state))
            if poison == "loss":
                terms["loss"] = terms["loss"] * float("nan")
            else:
                student.logits.register_hook(lambda gradient: gradient * float("inf"))
        return terms

    state = new_state(gpu, amp, training=training)
    with pytest.raises(Problem, match="not finite at step 2 .learning rate 0.02") as caught:
        train(state, make_views(gpu, batch_size=2), training=training, objective=objective)
    assert caught.value.code == DIVERGED and "changed no weight" in str(caught.value)
    # A GPU is not asked after every step.
    assert state.progress.total == (LOG_EVERY if gpu.type == "cuda" else 3)
    if amp != "fp16":  # with a scale, the steps after the bad one are taken
        after = weights_of(state)
        assert all(torch.equal(before[key], after[key])
                   for key, _ in state.network.module.named_parameters())
    with pytest.raises(Problem, match="not finite at step 2"):
        state.state_dict()


def test_a_diverged_run_leaves_no_model_and_only_finite_saves(gpu, script):
    words = ["--lr", "1e30", "--epochs", "6", "--save-every-minutes", "0", "--max-steps", "30"]
    code, out = script("train_teacher", [*on(gpu, "--model", "kdwide"), *words])
    assert code == DIVERGED and "diverged: " in out and "--lr" in out
    assert not (TEACHER / "model.pt").exists() and not (TEACHER / "report.json").exists()
    for file in TEACHER.glob("*.pt"):
        saved = torch.load(file, weights_only=True)["state"]["weights"]
        assert all(value.isfinite().all() for value in saved.values())


# Evaluation -------------------------------------------------------------------------------------


def test_predictions_on_the_gpu_are_those_of_the_report_and_of_the_cpu(gpu, script):
    words = on(gpu, "--teacher", "kdwide", "--student", "resnet18")
    assert script("distill", [*words, "--mode", "random"])[0] == 0
    [run] = Path("runs").glob("*/random/*/seed0")
    for device in (gpu.type, "cpu"):
        code, out = script("evaluate", [run, "--device", device])
        assert code == 0 and "(reproduced)" in out
    [settings] = parsing.parse(DistillSettings, words)
    dataset = open_dataset(settings.data, read_index(settings.data))
    written, found = read_predictions(run, "test").logits, []
    for device in (gpu, CPU):
        network = model_file.load(run / "model.pt").network.to(device)
        found.append(predict(network, dataset.views("test", device)))
    largest = np.abs(written).max()
    assert np.array_equal(found[0].argmax(1), written.argmax(1))
    assert np.abs(found[0] - written).max() < 1e-5 * largest  # written with a few digits
    assert np.abs(found[1] - written).max() < CLOSE * largest
    best_two = np.sort(written, 1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > 2 * CLOSE * largest
    assert clear.mean() > 0.9
    assert np.array_equal(found[1].argmax(1)[clear], written.argmax(1)[clear])


def test_cards_and_shifted_images_are_computed_on_the_gpu(gpu, script):
    assert script("distill", [*on(gpu, *PAIR[:4]), "--mode", "normal"])[0] == 0
    code, out = script("evaluate", ["--card", RUN, "--device", gpu.type])
    card = json.loads((RUN / "card.json").read_text())
    assert code == 0 and card["device"] == gpu.type and card["student"]["latency_32"] > 0
    clean = {}
    for device in (gpu.type, "cpu"):
        code, out = script("evaluate", ["--shift", RUN, "--device", device])
        assert code == 0, out
        networks = json.loads(Path("runs/shift.json").read_text())["networks"]
        clean[device] = [network["mean"]["clean"] for network in networks]
    assert clean[gpu.type] == clean["cpu"] and len(clean["cpu"]) == 2


def test_maps_of_where_networks_look_are_those_of_the_cpu(gpu, script):
    assert script("distill", [*on(gpu, *PAIR[:4]), "--mode", "normal"])[0] == 0
    found = []
    for device in (gpu.type, "cpu"):
        code, out = script("evaluate", ["--look", RUN, "--device", device])
        assert code == 0, out
        found.append(json.loads((RUN / "look/look.json").read_text()))
    one, other = (result["agreement"]["student_teacher"]["value"] for result in found)
    assert found[0]["networks"] == found[1]["networks"] and one == pytest.approx(other, abs=0.01)


@pytest.mark.parametrize("name", SHIFTS)
def test_shifted_images_are_those_of_the_cpu(gpu, name):
    batches = [next(make_views(device, size=64)[1].epoch(0)) for device in (gpu, CPU)]
    for strength in range(1, STRENGTHS + 1):
        found, expected = (shifted(one.images, one.slots, name, strength) for one in batches)
        assert found.device.type == gpu.type
        assert (found.cpu() - expected).abs().max() < CLOSE
