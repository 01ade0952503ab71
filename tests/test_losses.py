"""The loss against references worked out in another way, and at the edges of its numbers."""

import numpy as np
import pytest
import torch

from kd import losses
from kd.errors import Problem


def reference_kd(student, teacher, temperature):
    """T^2 KL in float64, by its definition: sum of p log(p / q), mean over rows."""
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
    terms = losses.distillation(4.0, 0.3)(student, teacher, labels)
    rows = student.double().softmax(1)[torch.arange(5), labels]
    expected = 0.7 * -rows.log().mean().item() + 0.3 * reference_kd(student.double().numpy(), teacher.double().numpy(), 4.0)
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_gradients_are_finite_at_extreme_half_precision_logits(dtype, temperature):
    student = (torch.randn(6, 7).sign() * 50).to(dtype).requires_grad_()
    teacher = (torch.randn(6, 7).sign() * 50).to(dtype)
    losses.distillation(temperature, 0.5)(student, teacher, torch.zeros(6, dtype=torch.long))["loss"].backward()
    assert torch.isfinite(student.grad).all()


def test_half_precision_logits_lose_nothing_more_inside_the_loss():
    """Autocast's own log_softmax in bf16 is off by hundreds of times at T = 20 and may be negative."""
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 7).bfloat16(), torch.randn(64, 7).bfloat16()
    expected = reference_kd(student.double().numpy(), teacher.double().numpy(), 20.0)
    assert losses.kd(student, teacher, 20.0).dtype == torch.float32
    assert losses.kd(student, teacher, 20.0).item() == pytest.approx(expected, rel=1e-3)


def test_the_mean_is_over_the_batch_alone():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    each = [losses.kd(student[i:i + 1], teacher[i:i + 1], 4.0).item() for i in range(4)]
    assert losses.kd(student, teacher, 4.0).item() == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.case(21)
@pytest.mark.parametrize("shapes", [((8, 7), (8, 1)), ((8, 7), (1, 7)), ((8, 1), (8, 1)), ((8, 7), (8, 6)), ((7,), (7,))])
def test_logits_that_would_broadcast_are_refused(shapes):
    with pytest.raises(Problem, match="must both be"):
        losses.kd(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 4.0)


def test_gradient_ratio_follows_the_weights():
    student, teacher, labels = torch.randn(9, 7), torch.randn(9, 7), torch.randint(7, (9,))
    half, most = (losses.gradient_ratio(student, teacher, labels, 4.0, alpha) for alpha in (0.5, 0.8))
    assert most == pytest.approx(4 * half, rel=1e-5)
    assert losses.gradient_ratio(student, teacher, labels, 4.0, 1.0) == float("inf")
