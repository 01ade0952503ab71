"""Losses against independent references, and at the limits of their number formats."""

import numpy as np
import pytest
import torch

from kd import losses
from kd.models import Outputs
from kd.system.errors import Problem
from kd.teachers.outputs import TeacherOutputs
from kd.training import objectives
from kd.training.class_weights import class_weights, image_weights
from kd.training.objectives import Distillation, Knowledge, Matching


def taught(logits):
    """Return the outputs of one teacher with these logits."""
    return TeacherOutputs(logits[None], torch.ones(1))


def kd_at(*temperatures):
    return Knowledge({"kd": 1.0}, temperatures)


MSE = Knowledge({"logit-mse": 1.0}, (1.0,))


def reference_kd(student, teacher, temperature):
    """Return T^2 KL in float64 by its definition: the sum of p log(p / q), averaged over rows."""
    def softmax(z):
        e = np.exp(z / temperature - (z / temperature).max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    p, q = softmax(teacher), softmax(student)
    return temperature**2 * float((p * (np.log(p) - np.log(q))).sum(1).mean())


@pytest.mark.parametrize("temperature", [1, 4, 20])
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_kd_equals_a_hand_written_float64_reference(temperature, classes):
    random = np.random.default_rng(classes)
    student, teacher = random.normal(0, 4, (2, 13, classes))
    got = losses.kd(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32), temperature)
    assert got.item() == pytest.approx(reference_kd(student, teacher, temperature), rel=2e-5, abs=1e-7)


def test_distillation_weighs_the_terms_as_hinton_does():
    student, teacher, labels = torch.randn(5, 7), torch.randn(5, 7), torch.tensor([0, 3, 6, 1, 1])
    terms = Distillation(kd_at(4.0), 0.3)(Outputs(student), taught(teacher), labels)
    rows = student.double().softmax(1)[torch.arange(5), labels]
    expected = 0.7 * -rows.log().mean().item() + 0.3 * reference_kd(student.double().numpy(), teacher.double().numpy(), 4.0)
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_gradients_are_finite_at_extreme_half_precision_logits(dtype, temperature):
    student = (torch.randn(6, 7).sign() * 50).to(dtype).requires_grad_()
    teacher = (torch.randn(6, 7).sign() * 50).to(dtype)
    objective = Distillation(kd_at(temperature), 0.5)
    objective(Outputs(student), taught(teacher), torch.zeros(6, dtype=torch.long))["loss"].backward()
    assert torch.isfinite(student.grad).all()


def test_half_precision_logits_lose_no_more_precision_inside_the_loss():
    """Check the precision at T = 20.

    With autocast's own log_softmax in bf16, the loss is wrong by a factor of hundreds and may even
    be negative.
    """
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 7).bfloat16(), torch.randn(64, 7).bfloat16()
    expected = reference_kd(student.double().numpy(), teacher.double().numpy(), 20.0)
    assert losses.kd(student, teacher, 20.0).dtype == torch.float32
    assert losses.kd(student, teacher, 20.0).item() == pytest.approx(expected, rel=1e-3)


def test_the_mean_is_over_the_batch_only():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    each = [losses.kd(student[i:i + 1], teacher[i:i + 1], 4.0).item() for i in range(4)]
    assert losses.kd(student, teacher, 4.0).item() == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.case(21)
@pytest.mark.parametrize("shapes", [((8, 7), (8, 1)), ((8, 7), (1, 7)), ((8, 1), (8, 1)), ((8, 7), (8, 6)), ((7,), (7,))])
def test_logits_that_would_broadcast_are_refused(shapes):
    with pytest.raises(Problem, match="both must be"):
        losses.kd(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 4.0)


def test_gradient_ratio_follows_the_weights():
    student, teacher, labels = torch.randn(9, 7), torch.randn(9, 7), torch.randint(7, (9,))
    half, most = (objectives.gradient_ratio(student, taught(teacher), labels, Distillation(kd_at(4.0), alpha)) for alpha in (0.5, 0.8))
    assert most == pytest.approx(4 * half, rel=1e-5)
    assert objectives.gradient_ratio(student, taught(teacher), labels, Distillation(kd_at(4.0), 1.0)) == float("inf")


def test_class_weights_give_every_class_the_same_total_weight():
    labels = torch.tensor([0, 0, 0, 1])
    weights = class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([2 / 3, 2]) and weights[labels].mean() == pytest.approx(1)
    logits = torch.randn(4, 2)
    by_hand = sum(weights[k] * -torch.log_softmax(row, 0)[k] for row, k in zip(logits, labels)) / 4
    assert losses.cross_entropy(logits, labels, weights).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_weight_of_an_image_is_that_of_its_class_or_the_expectation_over_its_classes():
    weights = torch.tensor([0.5, 1.0, 8.0])
    assert image_weights(torch.tensor([2, 0, 0]), weights).tolist() == [8.0, 0.5, 0.5]
    assert image_weights(torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.25, 0.25]]), weights).tolist() == [8.0, 2.5]
    assert image_weights(torch.tensor([2]), None) is None


def test_knowledge_with_class_weights_is_weighted_by_true_class_and_without_labels_by_the_teachers():
    random = torch.Generator().manual_seed(0)
    student, first, second = (torch.randn(6, 3, generator=random) for _ in range(3))
    labels, weights = torch.tensor([0, 0, 0, 0, 1, 2]), torch.tensor([0.5, 2.0, 2.0])
    teacher = TeacherOutputs(torch.stack([first, second]), torch.tensor([0.25, 0.75]))
    kinds = {"kd": 1.0, "logit-mse": 0.5, "dist": 0.1}
    knowledge = Knowledge(kinds, (2.0, 4.0), class_weights=weights)
    plain = Knowledge(kinds, (2.0, 4.0))
    alone = [plain.terms(Outputs(student[b:b + 1]), TeacherOutputs(teacher.logits[:, b:b + 1], teacher.weights), None) for b in range(6)]
    expected = 0.25 * torch.softmax(first, 1) @ weights + 0.75 * torch.softmax(second, 1) @ weights
    for known, of_images in ((labels, weights[labels]), (None, expected)):
        terms = knowledge.terms(Outputs(student), teacher, known)
        for name in ("kd", "logit-mse"):
            by_hand = sum(weight * own[name] for weight, own in zip(of_images, alone)) / 6
            assert terms[name].item() == pytest.approx(by_hand.item(), rel=1e-5)
        assert terms["dist"] == plain.terms(Outputs(student), teacher, known)["dist"]
    both = Distillation(knowledge, 0.3, weights)(Outputs(student), teacher, labels)
    ce = losses.cross_entropy(student, labels, weights)
    assert both["loss"].item() == pytest.approx((0.7 * ce + 0.3 * knowledge.total(knowledge.terms(Outputs(student), teacher, labels))).item())
    assert Distillation(plain, 0.3, weights)(Outputs(student), teacher, labels)["ce"] == both["ce"]


def test_weights_from_a_teacher_have_no_gradient_and_pull_an_image_by_its_weight():
    student, weights = torch.zeros(2, 3, requires_grad=True), torch.tensor([1.0, 1.0, 10.0])
    sure = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]).requires_grad_()
    knowledge = Knowledge({"logit-mse": 1.0}, (1.0,), class_weights=weights)
    assert not knowledge._image_weights(taught(sure.detach()), None).requires_grad
    gradient = torch.autograd.grad(Matching(knowledge)(Outputs(student), taught(sure.detach()), None)["loss"], student)[0]
    assert gradient[1, 2] / gradient[0, 0] == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_equal_a_hand_written_float64_reference(weighted):
    random = np.random.default_rng(0)
    logits, lam = random.normal(0, 3, (9, 5)), random.random(9)
    first, second = random.integers(5, size=(2, 9))
    weights = random.random(5) + 0.5 if weighted else np.ones(5)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = np.arange(9)
    of_first, of_second = (-weights[labels] * log_q[rows, labels] for labels in (first, second))
    expected = (lam * of_first + (1 - lam) * of_second).mean()
    shares = lam[:, None] * np.eye(5)[first] + (1 - lam[:, None]) * np.eye(5)[second]
    given = torch.tensor(weights) if weighted else None
    assert losses.cross_entropy(torch.tensor(logits), torch.tensor(shares), given).item() == pytest.approx(expected, rel=1e-12)
    assert losses.cross_entropy(torch.tensor(logits), torch.tensor(shares).float(), given).item() == pytest.approx(expected, rel=1e-6)
    half = torch.tensor(logits).bfloat16()
    assert losses.cross_entropy(half, torch.tensor(shares).float(), None if given is None else given.float()).dtype == torch.float32
    hard = torch.eye(5, dtype=torch.float64)[first]
    whole = losses.cross_entropy(torch.tensor(logits), torch.tensor(first), given).item()
    assert losses.cross_entropy(torch.tensor(logits), hard, given).item() == pytest.approx(whole, rel=1e-12)


def test_the_accuracy_and_the_gradient_ratio_of_soft_labels():
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    objective, hard = Distillation(kd_at(4.0), 0.5), torch.eye(4)[labels]
    same, soft = (objective(Outputs(student), taught(teacher), given) for given in (labels, hard))
    assert {key: value.item() for key, value in soft.items()} == pytest.approx({key: value.item() for key, value in same.items()})
    shares = torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.0, 0.4]])
    found = objectives.Supervised()(Outputs(torch.tensor([[0.0, 5.0, 1.0], [0.0, 1.0, 5.0]])), None, shares)
    assert found["accuracy"].item() == pytest.approx((0.8 + 0.4) / 2)
    ratios = [objectives.gradient_ratio(student, taught(teacher), given, objective) for given in (labels, hard)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)
    q = student.softmax(1)
    mixed = torch.tensor([0.3, 0.7, 0.0, 0.0]).expand(6, 4)
    of_labels = ((q - mixed) / 6).norm().item()
    of_knowledge = 4 * (((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 6).norm().item()
    assert objectives.gradient_ratio(student, taught(teacher), mixed, objective) == pytest.approx(of_knowledge / of_labels, rel=1e-4)


def test_the_matching_loss_takes_no_labels():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    for knowledge in (MSE, kd_at(2.0)):
        with pytest.raises(ValueError, match="reads none"):
            Matching(knowledge)(Outputs(student), taught(teacher), torch.zeros(4, dtype=torch.long))


def test_matching_losses_against_their_formulas():
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=random, dtype=torch.float64) for _ in range(2))
    mse = Matching(MSE)(Outputs(student), taught(teacher), None)
    assert mse["loss"].item() == pytest.approx(((student - teacher) ** 2).sum(1).div(2).mean().item(), rel=1e-6)
    assert mse["agreement"].item() == pytest.approx((student.argmax(1) == teacher.argmax(1)).double().mean().item())
    several = Matching(kd_at(1.0, 3.0, 9.0))(Outputs(student), taught(teacher), None)["loss"].item()
    by_hand = [t * t * (torch.softmax(teacher / t, 1) * (torch.log_softmax(teacher / t, 1) - torch.log_softmax(student / t, 1))
                        ).sum(1).mean().item() for t in (1, 3, 9)]
    assert several == pytest.approx(np.mean(by_hand), rel=1e-5)
    # Hinton, Vinyals and Dean 2015, section 2.1: for a high temperature and zero-mean logits,
    # T^2 * KL is the squared error divided by K.
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    hot, mse = (Matching(knowledge)(Outputs(student), taught(teacher), None) for knowledge in (kd_at(300.0), MSE))
    assert hot["loss"].item() == pytest.approx(mse["loss"].item() / 5, rel=0.02)
