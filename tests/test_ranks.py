"""Several ranks form one run, with the same batches, gradients, predictions and files as a single process."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY, same, weights
from faults import Child
from torch import nn

from kd import models
from kd.config.settings import Training
from kd.data.augmentation import Augmentation
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.knowledge import KNOWLEDGE
from kd.loop import Hooks, Phase, fit, predict
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.system import ranks
from kd.system.devices import Precision
from kd.teachers.outputs import JointTeacher, TeacherOutputs
from kd.training import regressors
from kd.training.objectives import Distillation, Knowledge
from kd.training.state import State

CPU, FLOAT = torch.device("cpu"), Precision("cpu", "off")


def team(count, call, seconds=90):
    """Run call() in `count` forked ranks, as started by torchrun, and return them when all have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank):
        def work():
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
            with ranks.process_group():
                return call()
        return Child(work, seconds)
    members = [start(rank) for rank in range(count)]
    for member in members:
        member.code = member.wait()
    return members


def data(rows, augmentation=Augmentation("light")):
    index = synthetic.read(112, 0)
    store = Store(index, "cache", 24, "squash", 0)
    store.ensure(np.arange(112))
    how = {"batch_size": 12, "device": CPU}
    return (Views(store, np.arange(rows), index.labels, seed=3, shuffle=True, augmentation=augmentation, classes=7, **how),
            Views(store, np.arange(56, 84), index.labels, **how))


class Plain(nn.Module):
    """A network without BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 5, stride=4), nn.Linear(6, 7)

    def forward(self, images):
        return self.fc(torch.tanh(self.conv(images)).mean((2, 3)))


class Exact(models.Classifier):
    """A classifier in float64."""

    def __call__(self, images):
        return super().__call__(images.double())


def plain():
    torch.manual_seed(0)
    scale = torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)
    return Exact("plain", "plain", synthetic.CLASSES, Plain().double(), scale, scale)


def observed(batch):
    """Return the outputs of a teacher with maps."""
    maps = nn.functional.adaptive_avg_pool2d(batch.images.double(), 3)
    return TeacherOutputs(5 * maps.mean((2, 3)).repeat(1, 3)[None, :, :7], torch.ones(1), ((3 * maps,),))


def trained(network, rows=45, steps=20, lr=1e-3, optimizer=None, augmentation=Augmentation("light"), kind="kd"):
    """Return the state after some steps with labels and a teacher, with an incomplete last batch in each epoch."""
    torch.set_num_threads(1)
    views, valid = data(rows, augmentation)
    training = Training(lr=lr, batch_size=12, epochs=100, seed=3)
    taught = JointTeacher([lambda batch: batch.images.mean((2, 3)).repeat(1, 3)[:, :7] * 5], [1.0], CPU)
    helper, layers = None, ()
    if KNOWLEDGE[kind].regressor:
        helper, layers, taught = regressors.build({kind: KNOWLEDGE[kind]}, [(6, 3)], 3).double(), ("conv",), observed
    objective = Distillation(Knowledge({kind: 1.0}, (4.0,), regressors=helper), 0.5)
    state = State(network, training, FLOAT, helper)
    if optimizer is not None:
        state.optimizer = optimizer(network.module.parameters(), lr=lr)
    network.wrap_ddp()
    fit([state], [Phase("distil", views, taught, objective, 0, steps, lr, layers)], valid, training, Hooks())
    return state


@pytest.mark.parametrize("count, rows", [(2, 45), (3, 45), (2, 38), (3, 26)])  # in the last two, the last batch has two images
def test_ranks_learn_what_one_process_learns(count, rows):
    """Compare to 1e-10, in float64.

    In float32, Adam would amplify rounding differences to the size of its step.
    """
    alone = trained(plain(), rows).network.module.state_dict()

    def work():
        state = trained(plain(), rows)
        torch.save({"weights": state.network.module.state_dict(), "history": state.progress.history}, f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(count, work)] == [0] * count
    found = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    assert all(same(found[0], other) for other in found[1:])
    assert max((alone[key] - value).abs().max() for key, value in found[0]["weights"].items()) < 1e-10


@pytest.mark.parametrize("kind", [name for name, kind in KNOWLEDGE.items() if kind.regressor])
def test_ranks_train_the_regressor_that_one_process_trains(kind):
    alone = trained(plain(), kind=kind)
    alone = alone.network.module.state_dict() | alone.helper.state_dict()

    def work():
        state = trained(plain(), kind=kind)
        torch.save(state.network.module.state_dict() | state.helper.state_dict(), f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    start = regressors.build({kind: KNOWLEDGE[kind]}, [(6, 3)], 3).double().state_dict()
    assert same(first, second) and len(start) >= 1 and all((first[key] - value).abs().min() > 1e-4 for key, value in start.items())
    assert max((alone[key] - value).abs().max() for key, value in first.items()) < 1e-10


def test_ranks_learn_from_strong_and_mixed_views_what_one_process_learns():
    how = Augmentation("strong", mixup=1.0)
    alone = trained(plain(), augmentation=how).network.module.state_dict()
    other = trained(plain()).network.module.state_dict()

    def work():
        state = trained(plain(), augmentation=how)
        torch.save({"weights": state.network.module.state_dict(), "history": state.progress.history}, f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second) and max((alone[key] - value).abs().max() for key, value in first["weights"].items()) < 1e-10
    assert max((alone[key] - value).abs().max() for key, value in other.items()) > 1e-6


def test_every_rank_has_two_images_or_stands_in_with_two(monkeypatch):
    for size, world in ((24, 2), (5, 2), (3, 2), (2, 2), (5, 3), (1, 2)):
        monkeypatch.setattr(ranks, "world_size", lambda: world)
        own = []
        for rank in range(world):
            monkeypatch.setattr(ranks, "rank", lambda: rank)
            slots, share = ranks.part_of_batch(np.arange(10, 10 + size), True)
            assert len(slots) >= min(2, size) and (share == 0 or share == world * len(slots) / size)
            own += slots.tolist() if share else []
        assert sorted(own) == list(range(10, 10 + size))


def test_ranks_learn_in_float32_with_sgd_what_one_process_learns():
    def plain32():
        network = plain()
        scale = torch.full((1, 3, 1, 1), 0.5)
        return models.Classifier("plain", "plain", synthetic.CLASSES, network.module.float(), scale, scale)
    alone = trained(plain32(), lr=0.05, optimizer=torch.optim.SGD).network.module.state_dict()

    def work():
        torch.save(trained(plain32(), lr=0.05, optimizer=torch.optim.SGD).network.module.state_dict(), f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    found = torch.load("rank0.pt", weights_only=True)
    assert max((alone[key] - value).abs().max() for key, value in found.items()) < 1e-6


def test_batchnorms_buffers_are_equal_before_evaluation_and_in_what_is_saved():
    def work():
        state = trained(models.build("kdtiny", synthetic.CLASSES, seed=1), steps=7)
        torch.save([state.network.module.state_dict(), state.best_weights, state.progress.history], f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second) and first[0]["bn.num_batches_tracked"] == 7


@pytest.mark.case(28)
@pytest.mark.parametrize("size", [44, 45, 1])
@pytest.mark.parametrize("batch", [7, 64])
def test_every_image_is_predicted_once_on_any_number_of_ranks(size, batch):
    network = models.build("kdtiny", synthetic.CLASSES, seed=1)
    store = data(1)[0].store
    views = Views(store, np.arange(50, 50 + size), synthetic.read(112, 0).labels, batch_size=batch, device=CPU)
    alone = predict(network, views)
    for count in (2, 3):
        def work():
            np.save(f"rank{ranks.rank()}.npy", predict(network, views))
        assert [member.code for member in team(count, work)] == [0] * count
        for rank in range(count):
            found = np.load(f"rank{rank}.npy")
            assert found.shape == (size, 7) and np.allclose(found, alone, atol=1e-5)
            assert np.array_equal(found.argmax(1), alone.argmax(1))


def test_slots_that_come_twice_or_not_at_all_are_noticed():
    for slots in ([0, 1, 1], [0, 2, 3]):
        with pytest.raises(ValueError, match="repeated or missing"):
            ranks.gather_rows(torch.tensor(slots), torch.zeros(3, 2), 3)


def by_ranks(count, words, seconds=90):
    import distill
    return team(count, lambda: distill.main([str(word) for word in words]), seconds)


@pytest.mark.parametrize("mode, more", [("normal", []), ("normal", ["--knowledge", "hint+vid+rkd"]),
                                        ("unlabeled", ["--knowledge", "attention"]),
                                        ("self", []), ("smoothing", [])])
def test_a_whole_command_leaves_one_report_of_all_images(mode, more, script):
    members = by_ranks(2, [*PAIR, "--mode", mode, *more])
    assert [member.code for member in members] == [0, 0], members[1].err + members[0].err
    assert "2 ranks (cpu x 2), 24 images per step in total" in members[0].out and not members[1].out
    [run] = Path("runs").glob(f"*/{mode}/*/seed0")
    report = reports.read(run)
    assert len(read_predictions(run).labels) == report["data"]["parts"]["test"] and report["clock"]["ranks"] == 2
    assert report["history"]["steps"] == 2 * 6 and len({file.name.split(".")[5] for file in run.glob("events*")}) == 1
    assert script("evaluate", [run])[1].count("(reproduced)") == 1


def test_stored_logits_are_filled_by_all_ranks():
    assert [member.code for member in by_ranks(2, [*PAIR, "--mode", "normal"])] == [0, 0]
    first = weights(RUN)
    members = by_ranks(2, [*PAIR, "--mode", "normal", "--tag", "again"])
    assert "0 computed" in members[0].out
    assert same(first, weights(DATA / "normal-again/kdwide-kdtiny/seed0"))


def test_a_stop_of_one_rank_stops_all_and_goes_on_exactly():
    words = [*PAIR, "--mode", "normal", "--save-every-minutes", "0", "--epochs", "1"]
    assert [member.code for member in by_ranks(2, words)] == [0, 0]
    whole, report = weights(RUN), reports.read(RUN)
    for count in range(30):
        members = by_ranks(2, [*words, "--out", "stopped", "--max-minutes", "0"])
        if members[0].code == 0:
            break
        assert [member.code for member in members] == [143, 143] and "saved in" in members[0].err
    run = Path("stopped") / RUN.relative_to("runs")
    assert count > 10 and same(weights(run), whole) and reports.read(run)["history"] == report["history"]


@pytest.mark.case(27)
def test_a_killed_rank_ends_all_and_the_run_goes_on_on_another_number_of_ranks(script, monkeypatch):
    from kd.runs import active
    script("train_teacher", ["--model", "kdwide", *TINY])
    words = [*PAIR, "--mode", "normal", "--save-every-minutes", "0"]
    save = active.save

    def die(runs):
        save(runs)
        if runs[0].state.progress.total == 5 and ranks.rank() == 1:
            os.kill(os.getpid(), 9)
    with monkeypatch.context() as patch:
        patch.setattr(active, "save", die)
        members = by_ranks(2, words)
    assert members[1].code == -9 and members[0].code == 1 and "lost the connection to the other ranks" in members[0].err
    code, out = script("distill", words)
    assert code == 0 and "continuing from step 5" in out and reports.read(RUN)["history"]["steps"] == 12


def test_what_ranks_cannot_do_is_told(script):
    code, out = script("distill", [*PAIR, "--mode", "normal", "--sync-bn"])
    assert code == 2 and "GPUs only" in out
    members = by_ranks(2, [*PAIR, "--mode", "normal", "--batch-size", "1"])
    assert members[0].code == 2 and "at least two images per step" in members[0].err and TEACHER.parts


def test_pictures_are_decoded_once_by_whoever_has_the_cache():
    def work():
        store = Store(synthetic.read(112, 0), "shared", 24, "squash", 0)
        ranks.barrier()  # both find an empty cache
        Path(f"decoded{ranks.rank()}").write_text(str(store.ensure(np.arange(112))))
        assert store.hashes.any(1).all()
    assert [member.code for member in team(2, work)] == [0, 0]
    assert sorted(int(Path(f"decoded{rank}").read_text()) for rank in (0, 1)) == [0, 112]
