"""Fine-tuning on batches of which one half is unlabelled (--finetune mixed)."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import PAIR, TINY, same
from test_loop import CPU, FLOAT, panel_of, resumed_from_every_step, two_phases
from test_loop import views as views  # a fixture
from test_ranks import Hooks, plain, team

from kd import losses, models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, Training
from kd.data.augmentation import Augmentation
from kd.data.half_labelled import HalfLabelled
from kd.data.readers import synthetic
from kd.data.views import Views
from kd.loop import Phase, fit
from kd.models import Outputs
from kd.system import ranks
from kd.system.errors import Problem
from kd.teachers.outputs import JointTeacher, TeacherOutputs
from kd.training.objectives import Distillation, Knowledge
from kd.training.state import State

MATCHING = Knowledge({"logit-mse": 0.15}, (1.0,))


def halves(store, unlabelled, labelled, size=12, augmentation=Augmentation("light"), **more):
    """Return mixed batches of the rows of a store, and the views that they are made of."""
    how = {"batch_size": size, "device": CPU, "seed": 3, "shuffle": True, "augmentation": augmentation, "classes": 7}
    pool = Views(store, np.asarray(unlabelled), None, **how)
    train = Views(store, np.asarray(labelled), store.index.labels, **how, **more)
    return HalfLabelled(pool, train), pool, train


@pytest.mark.parametrize("size, unlabelled, labelled", [
    (12, range(3, 47), range(49)), (7, range(3, 47), range(20)), (12, range(4), range(49)), (12, range(40), range(3)), (2, range(5), range(5))])
def test_one_half_of_each_batch_has_the_labels_of_its_images(views, size, unlabelled, labelled):
    store = views[0].store
    mixed, pool, train = halves(store, unlabelled, labelled, size)
    without, some = size // 2, len(unlabelled)
    assert mixed.steps == train.steps and mixed.labelled_share == (size - without) / size
    taken = []
    for epoch in (0, 1):
        batches = list(mixed.epoch(epoch))
        assert len(batches) == train.steps and all(len(batch.images) == size for batch in batches)
        for batch in batches:
            slots = batch.slots.numpy()
            assert (slots[:without] < some).all() and (slots[without:] >= some).all()
            assert not batch.labels[:without].any()
            assert batch.labels[without:].argmax(1).tolist() == store.index.labels[mixed.rows[slots[without:]]].tolist()
            assert (batch.labels[without:].sum(1) == 1).all()
        slots = np.concatenate([batch.slots.numpy() for batch in batches])
        first, second = slots[slots < some], slots[slots >= some] - some
        assert np.array_equal(first, np.resize(pool.order(epoch), len(first)))
        assert np.array_equal(second, np.resize(train.order(epoch), len(second)))
        taken.append(slots.tolist())
    assert taken[0] != taken[1]


@pytest.mark.parametrize("augmentation", [Augmentation("light"), Augmentation("strong", mixup=0.8)], ids=["light", "mixup"])
def test_a_batch_is_a_pure_function_of_its_epoch_and_step(views, augmentation):
    mixed, *_ = halves(views[0].store, range(3, 47), range(49), augmentation=augmentation)
    again, *_ = halves(views[0].store, range(3, 47), range(49), augmentation=augmentation)
    list(again.epoch(5))
    whole = list(mixed.epoch(2))
    for step in (1, 3):
        for one, other in zip(whole[step:], again.epoch(2, step), strict=True):
            assert same(one, other)


def test_a_mixed_image_has_the_share_of_its_own_label_only(views):
    """An image without a label, mixed with a labelled one, has the partner's label with the partner's share."""
    mixed, pool, _ = halves(views[0].store, range(3, 47), range(49), augmentation=Augmentation(mixup=1.0))
    kinds = set()
    for batch in mixed.epoch(0):
        slots = batch.slots.numpy()
        mixing = mixed.augmentation.mixing(3, 0, mixed.order(0), len(mixed))
        for row, slot in enumerate(slots):
            partner, share = mixing.partners[slot], mixing.shares[slot]
            expected = np.zeros(7, np.float32)
            for place, weight in ((slot, share), (partner, 1 - share)):
                if place >= len(pool):
                    expected[views[0].store.index.labels[mixed.rows[place]]] += weight
            kinds.add((slot >= len(pool), partner >= len(pool)))
            assert np.allclose(batch.labels[row], expected, atol=1e-6)
    assert len(kinds) == 4


def test_its_stored_logits_are_not_those_of_other_batches(views):
    store = views[0].store
    mixed, pool, _ = halves(store, range(3, 47), range(49))
    plain_views = Views(store, mixed.rows, None, batch_size=12, device=CPU, seed=3, shuffle=True, augmentation=Augmentation("light"))
    found = {mixed.identity(), pool.identity(), plain_views.identity(), halves(store, range(3, 46), range(49))[0].identity(),
             halves(store, range(3, 47), range(48))[0].identity()}
    assert len(found) == 5 and halves(store, range(3, 47), range(49))[0].identity() in found
    with_mixup = [halves(store, range(3, 47), range(49), size, Augmentation(mixup=1.0))[0].identity() for size in (12, 13)]
    assert with_mixup[0] != with_mixup[1]  # other partners


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_label_term_of_the_labelled_images_and_the_knowledge_of_all(weighted):
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(7, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([2, 0, 0, 3])
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0]) if weighted else None
    shares = torch.zeros(7, 4)
    shares[torch.arange(3, 7), labels] = 1
    objective = Distillation(Knowledge({"logit-mse": 0.15}, (1.0,), class_weights=weights), 0.3, weights, 4 / 7)
    terms = objective(Outputs(student), TeacherOutputs(teacher[None], torch.ones(1)), shares)
    student, teacher, weights = student.double(), teacher.double(), weights.double() if weighted else None  # the reference
    own = 1 if weights is None else weights[labels]
    ce = -(own * student[3:].log_softmax(1)[torch.arange(4), labels]).mean()
    # The weight of an image is expected over the teacher's classes, also where a label is known.
    expected = 1 if weights is None else teacher.softmax(1) @ weights
    distance = (expected * (student - teacher).square().sum(1)).mean() / 2
    assert terms["loss"].item() == pytest.approx((0.7 * ce + 0.3 * 0.15 * distance).item(), rel=1e-6)
    assert terms["ce"].item() == pytest.approx(ce.item(), rel=1e-6) and terms["logit-mse"].item() == pytest.approx(distance.item())
    assert terms["accuracy"].item() == pytest.approx((student[3:].argmax(1) == labels).float().mean().item())


def test_with_a_label_for_every_image_the_loss_is_that_of_distillation():
    generator = torch.Generator().manual_seed(6)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([2, 0, 0, 3, 1, 1])
    taught = TeacherOutputs(teacher[None], torch.ones(1))
    whole = Distillation(MATCHING, 0.5)(Outputs(student), taught, labels)
    ce = losses.cross_entropy(student, labels)
    assert whole["loss"] == 0.5 * ce + 0.5 * MATCHING.total(MATCHING.terms(Outputs(student), taught, labels))


@pytest.mark.case(1)
@pytest.mark.parametrize("augmentation", [Augmentation("light"), Augmentation("strong", mixup=0.8)], ids=["light", "mixup"])
def test_it_resumes_from_every_step(views, augmentation):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    teach = panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), FLOAT)
    mixed, pool, _ = halves(views[0].store, range(3, 47), range(49), augmentation=augmentation)
    match, finetune = two_phases(views, training, teach)
    objective = Distillation(MATCHING, 0.5, None, mixed.labelled_share)
    phases = [dataclasses.replace(match, views=pool), dataclasses.replace(finetune, views=mixed, objective=objective)]
    resumed_from_every_step(views, training, Training(seed=77), phases=phases)


def learned(store, valid, size):
    torch.set_num_threads(1)
    mixed, *_ = halves(store, range(40), range(45), size)
    taught = JointTeacher([lambda batch: batch.images.mean((2, 3)).repeat(1, 3)[:, :7] * 5], [1.0], CPU)
    objective = Distillation(MATCHING, 0.5, None, mixed.labelled_share)
    network, training = plain(), Training(lr=1e-3, batch_size=size, epochs=100, seed=3)
    state = State(network, training, FLOAT)
    network.wrap_ddp()
    fit([state], [Phase("finetune", mixed, taught, objective, 0, 20, 1e-3)], valid, training, Hooks())
    return state


@pytest.mark.parametrize("count, size", [(2, 12), (2, 10), (3, 13)])  # in the last two, ranks have unequal numbers of labels
def test_ranks_learn_what_one_process_learns(views, count, size):
    store, valid = views[0].store, views[1]
    alone = learned(store, valid, size).network.module.state_dict()

    def work():
        state = learned(store, valid, size)
        torch.save({"weights": state.network.module.state_dict()}, f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(count, work)] == [0] * count
    found = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    assert all(same(found[0], other) for other in found[1:])
    assert max((alone[key] - value).abs().max() for key, value in found[0]["weights"].items()) < 1e-10


def plan_of(*words):
    [settings] = parsing.parse(DistillSettings, [*map(str, PAIR), "--mode", "unlabeled", *words])
    return resolve(settings)


def test_each_choice_of_fine_tuning_has_its_images_and_its_knowledge():
    found = {}
    for words in ([], ["--finetune", "ce"], ["--finetune", "kd"]):
        last = plan_of(*words).phases[-1]
        found[" ".join(words)] = last.half_labelled, last.reads_labels, last.knowledge.weights
    assert found == {"": (True, True, {"logit-mse": 0.15}), "--finetune ce": (False, True, {}), "--finetune kd": (False, True, {"kd": 1.0})}
    assert plan_of("--knowledge", "kd+attention", "--knowledge-weights", "2", "3").phases[-1].knowledge.weights == {"kd": 2.0, "attention": 3.0}


def test_what_mixed_batches_cannot_do_is_refused():
    with pytest.raises(Problem, match="--batch-size"):
        plan_of("--batch-size", "1")
    with pytest.raises(Problem, match="dkd .*needs labels"):
        plan_of("--knowledge", "dkd")
    assert plan_of("--batch-size", "1", "--finetune", "ce").idle == ()


@pytest.mark.parametrize("more", [["--balance", "draw"], ["--balance", "weights", "--balance-knowledge"], ["--labeled-fraction", "0.3"],
                                  ["--knowledge", "hint"]], ids=" ".join)
def test_a_run_of_mixed_batches_reports_both_terms(script, more):
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12", *(more if "fraction" in more[0] else [])])[0] == 0
    code, out = script("distill", [*PAIR, "--mode", "unlabeled", *more, "--max-steps", "8", "--match-share", "0.5"])
    assert code == 0 and "finetune: 4 steps on batches of which one half is of" in out, out
