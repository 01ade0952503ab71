"""Every knowledge loss against float64 references written from the papers, and at known limits."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch

from kd import feature_losses, losses
from kd.knowledge import KNOWLEDGE
from kd.system.errors import Problem
from kd.training import regressors


def soft(row, T):
    return np.exp((row - max(row)) / T) / math.fsum(np.exp((row - max(row)) / T))


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def z_score(row):
    return (row - row.mean()) / math.sqrt(math.fsum((row - row.mean())**2) / len(row))


def dkd_of_a_row(s, t, T):
    # The label and beta come from the image's own logits, so that they are the same in any batch.
    label, beta, q, p = 2 * (t[1] > 0), abs(t[0]), soft(s, T), soft(t, T)
    q_rest, p_rest = np.delete(q, label), np.delete(p, label)
    target = kl([p[label], p_rest.sum()], [q[label], q_rest.sum()])
    return T**2 * (target + beta * kl(p_rest / p_rest.sum(), q_rest / q_rest.sum()))


def pseudo_label_of_a_row(s, t, T):
    return -math.log(soft(s, 1)[t.argmax()]) if soft(t, 1).max() >= 0.7 else 0.0


def ref_dist(student, teacher, T, rows=1, columns=1):
    q, p = (np.array([soft(row, T) for row in logits]) for logits in (student, teacher))
    relations = [(q, p)] * rows + [(q.T, p.T)] * columns
    return T**2 * sum(np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(*both)]) for both in relations)


def matched(*images):
    """Yield the images [C, H, W], reduced to the smaller height and width by means over bins.

    Where the sizes do not divide evenly, neighbouring bins overlap.
    """
    size = np.min([image.shape[1:] for image in images], axis=0)
    for image in images:
        rows, columns = ([slice(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip(image.shape[1:], size))
        yield np.array([[[plane[y, x].mean() for x in columns] for y in rows] for plane in image])


def attention_of_an_image(s, t, T):
    first, second = (sum(plane.ravel()**2 for plane in image) for image in matched(s, t))
    return math.fsum((first / np.linalg.norm(first) - second / np.linalg.norm(second))**2)


def ref_similarity(student, teacher, T):
    s, t = ([np.array([math.fsum((a * b).ravel()) for b in maps]) for a in maps] for maps in (student, teacher))
    return math.fsum(sum((a / np.linalg.norm(a) - b / np.linalg.norm(b))**2) for a, b in zip(s, t)) / len(s)


def neighbours(maps, width):
    """Yield p(j | i) over all other images j, for every image i."""
    rows = [image.reshape(len(image), -1).mean(1) for image in maps]
    rows = [row / np.linalg.norm(row) for row in rows]
    for i, one in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        if width:
            kernel = [math.exp(-math.fsum((one - other)**2) / (2 * width**2)) for other in others]
        else:
            kernel = [max((1 + math.fsum(one * other)) / 2, 1e-6) for other in others]
        yield np.array(kernel) / math.fsum(kernel)


def ref_pkt(width):
    scale = width**4 or 1
    return lambda student, teacher, T: scale * np.mean([kl(p, q) for q, p in zip(neighbours(student, width), neighbours(teacher, width))])


def huber(differences):
    return np.mean([d * d / 2 if abs(d) <= 1 else abs(d) - 0.5 for d in differences]) if differences else 0.0


def relative_distances(rows):
    found = [np.linalg.norm(a - b) for a, b in permutations(rows, 2)]
    apart = [d for d in found if d > 0]
    return [d / (math.fsum(apart) / len(apart)) if apart else 0.0 for d in found]


def cosines(rows):
    """Return the cosines of the angles at b between a and c; 0 where an arm has no length."""
    arms = [(a - b, c - b) for a, b, c in permutations(rows, 3)]
    return [math.fsum(u * v) / (np.linalg.norm(u) * np.linalg.norm(v)) if u.any() and v.any() else 0.0 for u, v in arms]


def ref_rkd(distance=1.0, angle=2.0):
    def reference(student, teacher, T):
        s, t = ([image.reshape(len(image), -1).mean(1) if image.ndim == 3 else image.ravel() for image in maps] for maps in (student, teacher))
        distances, angles = ([a - b for a, b in zip(of(s), of(t))] for of in (relative_distances, cosines))
        return distance * huber(distances) + angle * huber(angles)
    return reference


def variances(channels):
    return np.linspace(0.2, 7.0, channels)


def vid(student, teacher, T, weights=None):
    return feature_losses.vid((student, torch.tensor(variances(teacher.shape[1]), dtype=torch.float32)), teacher, weights)


def vid_of_an_image(s, t, T):
    terms = [math.log(math.sqrt(v)) + (a - b)**2 / (2 * v) for v, one, other in zip(variances(len(t)), *matched(s, t))
             for a, b in zip(one.ravel(), other.ravel())]
    return math.fsum(terms) / len(terms)


def mean(of_one):
    return lambda student, teacher, T: np.mean([of_one(s, t, T) for s, t in zip(student, teacher)])


ref_kd = mean(lambda s, t, T: T**2 * kl(soft(t, T), soft(s, T)))
OUTPUTS = {
    "kd": (losses.kd, ref_kd), "dist": (losses.dist, ref_dist),
    "logit_mse": (lambda s, t, T: losses.logit_mse(s, t), mean(lambda s, t, T: math.fsum((a - b)**2 for a, b in zip(s, t)) / 2)),
    "dkd": (lambda s, t, T: losses.dkd(s, t, 2 * (t[:, 1] > 0), T, t[:, 0].abs().float()), mean(dkd_of_a_row)),
    "probability_mse": (lambda s, t, T: losses.probability_mse(s, t), mean(lambda s, t, T: math.fsum((soft(s, 1) - soft(t, 1))**2))),
    "pseudo_label": (lambda s, t, T: losses.pseudo_label(s, t, 0.7), mean(pseudo_label_of_a_row)),
    "standardized": (losses.standardized, mean(lambda s, t, T: T**2 * kl(soft(z_score(t), T), soft(z_score(s), T))))}
INSIDE = {
    "attention": (lambda s, t, T: feature_losses.attention(s, t), mean(attention_of_an_image)),
    "similarity": (lambda s, t, T: feature_losses.similarity(s, t), ref_similarity),
    "pkt": (lambda s, t, T: feature_losses.pkt(s, t), ref_pkt(0)),
    "pkt of a Gaussian": (lambda s, t, T: feature_losses.pkt(s, t, width=0.7), ref_pkt(0.7)),
    "rkd": (lambda s, t, T: feature_losses.rkd(s, t), ref_rkd()),
    "rkd of distances": (lambda s, t, T: feature_losses.rkd(s, t, angle=0.0), ref_rkd(angle=0)),
    "rkd of angles": (lambda s, t, T: feature_losses.rkd(s, t, distance=0.0), ref_rkd(distance=0)),
    "vid": (vid, mean(vid_of_an_image)),
    "hint": (lambda s, t, T: feature_losses.hint(s, t), mean(lambda s, t, T: np.mean(np.subtract(*matched(s, t))**2) / 2))}
KINDS = OUTPUTS | INSIDE


def test_every_kind_has_a_reference():
    named = {name.split()[0].replace("_", "-") for name in KINDS}
    assert named == set(KNOWLEDGE), "write a float64 reference of the new kind into OUTPUTS or INSIDE"


temperatures, sizes = pytest.mark.parametrize("T", [1, 4, 20]), pytest.mark.parametrize("K", [3, 7, 100])


def draw(*shapes, spread=3.0):
    random = np.random.default_rng(sum(map(sum, shapes)))
    return [torch.tensor(random.normal(0, spread, shape), dtype=torch.float32) for shape in shapes]


def f64(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def slope(loss, student, *rest):
    return torch.autograd.grad(loss(student := student.detach().clone().requires_grad_(), *rest), student)[0]


def same_slope(got, reference, student):
    """Return whether the gradient `got` agrees with finite differences of `reference`.

    The differences are taken along a few random directions.
    """
    student, got = f64(student, got)
    return all((got * way).sum() == pytest.approx((reference(student + 1e-5 * way) - reference(student - 1e-5 * way)) / 2e-5,
                                                  abs=2e-5 + 1e-4 * np.linalg.norm(got) * np.linalg.norm(way))
               for way in np.random.default_rng(0).normal(0, 1, (4, *student.shape)))


@pytest.mark.parametrize("kind", OUTPUTS)
@temperatures
@sizes
def test_losses_of_outputs_equal_their_references(kind, T, K):
    (loss, reference), (student, teacher) = KINDS[kind], draw((6, K), (6, K))
    assert loss(student, teacher, T).item() == pytest.approx(reference(*f64(student, teacher), T), rel=1e-4)
    assert same_slope(slope(loss, student, teacher, T), lambda s: reference(s, *f64(teacher), T), student)


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("shapes", [((5, 3, 4, 4), (5, 3, 4, 4)), ((2, 6, 8, 4), (2, 6, 4, 6)), ((4, 2, 7, 5), (4, 2, 3, 3)),
                                    ((6, 3, 2, 2), (6, 8, 6, 6)), ((3, 8, 5, 7), (3, 2, 5, 7))])
def test_losses_of_features_equal_their_references(kind, shapes):
    (loss, reference), (student, teacher) = KINDS[kind], draw(*shapes)
    if kind in ("hint", "vid"):
        projectors, features = regressors.Projectors([(1, 1), (shapes[0][1], shapes[1][1])], seed=3), student.half()
        student, by_hand = projectors(features, 1), np.einsum("ocij,bchw->bohw", *f64(projectors.weights[1], features))
        assert student.dtype == torch.float32 and np.allclose(*f64(student), by_hand, atol=1e-5)
    # A KL divergence sums terms of both signs, so its rounding error is larger.
    rounding = 1e-7 if kind.startswith("pkt") else 1e-12
    assert loss(student, teacher, 0).item() == pytest.approx(reference(*f64(student, teacher), 0), rel=1e-5, abs=rounding)
    assert same_slope(slope(loss, student, teacher, 0), lambda s: reference(s, *f64(teacher), 0), student)


WEIGHTED = {
    "kd": losses.kd, "standardized": losses.standardized,
    "logit_mse": lambda s, t, T, weights: losses.logit_mse(s, t, weights),
    "dkd": lambda s, t, T, weights: losses.dkd(s, t, 2 * (t[:, 1] > 0), T, t[:, 0].abs().float(), weights),
    "probability_mse": lambda s, t, T, weights: losses.probability_mse(s, t, weights),
    "pseudo_label": lambda s, t, T, weights: losses.pseudo_label(s, t, 0.7, weights),
    "attention": lambda s, t, T, weights: feature_losses.attention(s, t, weights),
    "hint": lambda s, t, T, weights: feature_losses.hint(s, t, weights), "vid": vid}


def test_every_kind_that_is_a_mean_over_images_has_a_test_of_its_weights():
    assert {name.replace("_", "-") for name in WEIGHTED} == {name for name, kind in KNOWLEDGE.items() if kind.per_image}


@pytest.mark.parametrize("kind", WEIGHTED)
@temperatures
def test_weights_of_images_multiply_the_losses_of_the_images_and_the_sum_is_divided_by_their_number(kind, T):
    (_, reference), loss = KINDS[kind], WEIGHTED[kind]
    student, teacher = draw((6, 7), (6, 7)) if kind in OUTPUTS else draw((6, 3, 5, 5), (6, 3, 3, 3))
    weights = torch.tensor([0.0, 0.3, 1.0, 1.0, 2.5, 38.0])

    def by_hand(s, t=f64(teacher)[0]):
        return sum(w * reference(a[None], b[None], T) for w, a, b in zip(f64(weights)[0], s, t)) / len(s)

    assert loss(student, teacher, T, weights).item() == pytest.approx(by_hand(*f64(student)), rel=1e-4)
    got = slope(loss, student, teacher, T, weights)
    assert same_slope(got, by_hand, student) and (got[0] == 0).all()
    plain, ones = KINDS[kind][0](student, teacher, T), torch.ones(6)
    assert loss(student, teacher, T, None) == plain and loss(student, teacher, T, ones).item() == pytest.approx(plain.item(), rel=1e-5)
    others = student.clone()
    others[:4] += 1  # the gradient of an image does not depend on the other images
    assert torch.allclose(slope(loss, others, teacher, T, weights)[4:], got[4:], rtol=1e-5, atol=1e-6)
    half = loss(student.bfloat16(), teacher.bfloat16(), T, weights)
    assert half.dtype == torch.float32 and half.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_and_a_batch_is_the_mean_of_its_images_unless_images_are_compared(kind):
    loss, reference = KINDS[kind]
    student, teacher = draw((6, 7), (6, 7)) if kind in OUTPUTS else draw((4, 3, 5, 5), (4, 3, 3, 3), spread=300)  # 300^2 overflows float16
    for s, t in ((student.to(dtype), teacher.to(dtype)) for dtype in (torch.bfloat16, torch.float16)):
        assert loss(s, t, 20.0).dtype == torch.float32 and torch.isfinite(slope(loss, s, t, 20.0)).all()
        assert loss(s, t, 20.0).item() == pytest.approx(reference(*f64(s, t), 20.0), rel=1e-3)
    each = np.mean([loss(student[b:b + 1], teacher[b:b + 1], 20.0).item() for b in range(len(student))])
    assert (loss(student, teacher, 20.0).item() == pytest.approx(each, rel=1e-5)) != (kind.split()[0] in ("dist", "similarity", "pkt", "rkd"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.3, 50.0])
def test_extreme_and_equal_logits_have_a_value_and_a_slope(dtype, level):
    (a, b), even, zeros = (50 * logits.sign() for logits in draw((6, 7), (6, 7))), torch.full((6, 7), level), np.zeros((6, 7))
    for (loss, _), (s, t), T in product(OUTPUTS.values(), ((a, b), (a, -a), (a, a), (-b, a / 50), (a, even)), (1, 20)):
        assert math.isfinite(loss(s.to(dtype), t.to(dtype), T)) and torch.isfinite(slope(loss, s.to(dtype), t.to(dtype), T)).all()
    z = [z_score(row) for row in f64(a)[0]]
    for s, t, known in ((a, even, ref_kd(z, zeros, 4)), (even, a, ref_kd(zeros, z, 4))):
        assert losses.dist(s.to(dtype), t.to(dtype), 4).item() == pytest.approx(32)
        assert losses.standardized(s.to(dtype), t.to(dtype), 4).item() == pytest.approx(known, rel=1e-4)
    assert all(torch.isfinite(slope(loss, even, a, 4)).all() for loss in (losses.dist, losses.standardized))
    assert slope(losses.dist, a, even, 4).abs().max() < 1e-4


@pytest.mark.parametrize("shapes", [((6, 7), (6, 1)), ((6, 7), (1, 7)), ((6, 1), (6, 1)), ((6, 7), (6, 6)), ((6, 2), (6, 2))])
def test_logits_that_would_broadcast_are_refused_and_dkd_refuses_two_classes(shapes):
    (student, teacher), labels = map(torch.zeros, shapes), torch.zeros(6, dtype=torch.long)
    others = [] if shapes[0] == shapes[1] == (6, 2) else [(losses.logit_mse,), (losses.dist, 4), (losses.standardized, 4)]
    for loss, *more in [(losses.dkd, labels, 4, 8), *others]:
        with pytest.raises(Problem, match="both must be" if others else "--knowledge dkd"):
            loss(student, teacher, *more)


@temperatures
@sizes
def test_kd_is_dkd_with_beta_1_minus_p_and_at_a_high_temperature_a_squared_error(T, K):
    """Check KD against DKD and against its limit for a large T.

    KD is DKD with beta = 1 - p_t of each image. For a large T, q is nearly uniform and KL is half
    of chi^2: the sum of (d / KT)^2 * K / 2, where d is the difference of the centred logits. T^2 KL
    therefore does not depend on T.
    """
    (s, t), labels = draw((6, K), (6, K)), torch.arange(6) % K
    doubt = torch.tensor([1 - soft(row, T)[label] for row, label in zip(*f64(t), labels)]).float()
    whole, parts = slope(losses.kd, s, t, T), slope(losses.dkd, s, t, labels, T, doubt)
    assert losses.dkd(s, t, labels, T, doubt).item() == pytest.approx(losses.kd(s, t, T).item(), rel=1e-4)
    assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-5 * whole.abs().max())
    limit = (s - s.mean(1, True) - t + t.mean(1, True)).square().sum(1).mean().item() / (2 * K)
    assert [ref_kd(*f64(s + 3, t), 1e5), losses.kd(s + 3, t, 300.0).item()] == pytest.approx([limit, limit], rel=0.02)


@temperatures
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [1.0, 0.0]])
def test_a_mixture_has_the_probabilities_and_gradients_of_its_teachers(T, weights):
    student, other, *teachers = draw(*[(6, 7)] * (2 + len(weights)))
    mixed = losses.mixture(torch.stack(teachers), torch.tensor(weights), T)
    for of_all, *each in zip(*f64(mixed, *teachers)):
        assert soft(of_all, T) == pytest.approx(np.average([soft(row, T) for row in each], axis=0, weights=weights), rel=1e-4)
        assert of_all.mean() == pytest.approx(np.average(np.mean(each, axis=1), weights=weights), abs=1e-5)
    slopes = [weight * slope(losses.kd, student, teacher, T) for weight, teacher in zip(weights, teachers)]
    assert torch.allclose(slope(losses.kd, student, mixed, T), sum(slopes), atol=1e-5 * T)
    gaps = [np.average([losses.kd(s, teacher, T).item() for teacher in teachers], weights=weights) - losses.kd(s, mixed, T).item()
            for s in (student, other)]  # how much the teachers differ, for any student
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-4 * (1 + T)) and gaps[0] > -1e-3
    for half in (torch.stack(teachers), 50 * torch.stack(teachers).bfloat16()):
        alone, both = losses.mixture(half[:1], torch.ones(1), T), losses.mixture(half, torch.tensor(weights), T)
        assert torch.equal(alone, half[0].float()) and both.isfinite().all() and alone.dtype == both.dtype == torch.float32


@temperatures
def test_dist_ignores_a_scale_of_probabilities_and_two_values(T):
    """Check what DIST ignores.

    Under p -> m p + (1 - m) / K with one m for all images, both relations stay the same. With an m
    for each image, the relation between the classes of an image stays the same. The correlation of
    two values is always 1 or -1, so it has no gradient.
    """
    (s, t), dist = draw((6, 7), (6, 7)), lambda *logits: losses.dist(*logits, T).item()
    p = torch.tensor(np.array([soft(row, T) for row in f64(s)[0]]))
    one, each = (T * torch.log(m * p + (1 - m) / 7).float() for m in (0.4, torch.linspace(0.2, 0.9, 6).view(6, 1)))
    assert dist(one, s) == pytest.approx(0, abs=1e-5 * T**2) and dist(one, t) == pytest.approx(dist(s, t), rel=1e-4)
    assert dist(each, s) == pytest.approx(ref_dist(*f64(each, s), T, rows=0), rel=1e-3)
    for shape, rows, columns in (((6, 2), 0, 1), ((2, 7), 1, 0), ((2, 2), 0, 0)):
        s, t = draw(shape, shape, spread=1.0)
        got = slope(losses.dist, s, t, T)
        assert same_slope(got / T**2, lambda z, t=t, on=(rows, columns): ref_dist(z, *f64(t), T, *on) / T**2, s)
        assert (got.abs().max() > 1e-4 * T**2) == (rows or columns)


@temperatures
@pytest.mark.parametrize("K", [2, 3, 7, 100])
def test_standardized_logits_ignore_scale_and_have_a_cap(K, T):
    (s, t), a, b = draw((6, K), (6, K)), *(torch.linspace(*ends, 6).view(6, 1) for ends in ((0.3, 40), (-9, 5)))
    for one, other in ((a * s + b, t), (s, a * t + b), *([(s.sub(s.flip(1)).sign(), t.sub(t.flip(1)).sign())] if K == 2 else [])):
        assert losses.standardized(one, other, T).item() == pytest.approx(losses.standardized(s, t, T).item(), rel=2e-4)
    cap, sure = losses.standardized_cap(K, T), 1000 * torch.eye(K)
    assert soft(z_score(f64(sure)[0][0]), T)[0] == pytest.approx(cap) and ((K, T) != (7, 1) or round(cap, 3) == 0.744)
    assert max(soft(z_score(row**3), T).max() for row in np.random.default_rng(0).normal(0, 1, (50, K))) <= cap + 1e-9
    known = math.log(K) + cap * math.log(cap) + (1 - cap) * math.log((1 - cap) / (K - 1))
    assert losses.standardized(torch.zeros(K, K), sure, T).item() == pytest.approx(T**2 * known, rel=2e-4)


def test_what_attention_similarity_and_hint_ignore():
    (first, second), turn = draw((5, 4, 3, 3), (5, 7, 3, 3)), torch.linalg.qr(draw((36, 36))[0])[0]
    for same in (-30 * first, 0.01 * first, first.flip(1), torch.cat([first, first], 1)):
        assert max(feature_losses.attention(same, first), feature_losses.similarity(same, first)).item() == pytest.approx(0, abs=1e-10)
    scaled, turned = torch.linspace(-2, 9, 5).view(5, 1, 1, 1) * first, first.flatten(1) @ turn
    assert max(feature_losses.attention(scaled, first), feature_losses.similarity(turned, first)).item() == pytest.approx(0, abs=1e-10)
    assert feature_losses.similarity(first, second) > 0.01 and feature_losses.similarity(first[:1], second[:1]) < 1e-10
    here, there = torch.eye(9)[:5].view(5, 1, 3, 3), torch.eye(9)[4:].view(5, 1, 3, 3).flip(0)
    assert 0.01 < feature_losses.attention(first, second) < 2 and feature_losses.attention(here[:4], there[:4]).item() == pytest.approx(2)
    assert feature_losses.attention(0 * first, first).item() == pytest.approx(1) and not slope(feature_losses.attention, 0 * first, first).any()
    assert feature_losses.hint(first, first) == 0 and feature_losses.hint(first, first + 3).item() == pytest.approx(4.5)


def test_a_wide_kernel_of_pkt_is_half_the_variance_of_the_difference_of_cosines():
    """Check the limit of PKT for a wide kernel, which is that of T^2 KL for a large T.

    Here the logits are the cosines with the B - 1 other images, and T is sigma^2.
    """
    student, teacher = draw((9, 4, 3, 3), (9, 7, 3, 3))
    cosines = [rows @ rows.T for rows in (maps.mean((2, 3)) / maps.mean((2, 3)).norm(dim=1, keepdim=True) for maps in (student, teacher))]
    others = (cosines[0] - cosines[1])[~torch.eye(9, dtype=torch.bool)].view(9, 8)
    assert feature_losses.pkt(student, teacher, 2.0).item() == pytest.approx(others.var(1, correction=0).mean().item() / 2, rel=0.1)


@pytest.mark.parametrize("width", [0.0, 0.3, 2.0])
def test_pkt_ignores_lengths_rotations_and_positions_and_is_zero_for_two_images(width):
    (first, second), turn = draw((5, 4, 3, 3), (5, 7, 3, 3)), torch.linalg.qr(draw((4, 4))[0])[0]
    pooled = first.mean((2, 3))
    for same in (30 * first, first.flip(2), torch.cat([first, first], 1), pooled, pooled @ turn, torch.linspace(0.1, 9, 5).view(5, 1) * pooled):
        assert feature_losses.pkt(same, first, width).item() == pytest.approx(0, abs=1e-6)
    assert feature_losses.pkt(first, second, width) > 1e-4 and feature_losses.pkt(first[:, :, None], first, width) > 1e-4  # maps of other shapes are flattened
    for few in (1, 2):
        assert feature_losses.pkt(first[:few], second[:few], width) == 0 and not slope(feature_losses.pkt, first[:few], second[:few], width).any()
    assert torch.isfinite(slope(feature_losses.pkt, 0 * first, second, width)).all() and torch.isfinite(slope(feature_losses.pkt, -second, second, width)).all()


@pytest.mark.parametrize("distance, angle", [(1.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_ignores_shifts_rotations_scales_and_positions(distance, angle):
    (first, second), turn = draw((5, 4, 3, 3), (5, 7, 3, 3)), torch.linalg.qr(draw((4, 4))[0])[0]
    pooled = first.mean((2, 3))
    for same in (first, 30 * first, first - 7, first.flip(3), -first, torch.cat([first, first], 1), pooled, pooled @ turn):
        assert feature_losses.rkd(same, first, distance, angle).item() == pytest.approx(0, abs=1e-9)
        assert slope(feature_losses.rkd, same, first, distance, angle).abs().max() < 1e-4
    assert feature_losses.rkd(first, second, distance, angle) > 1e-3
    assert feature_losses.rkd(first[:, :, None], second[:, :, None], distance, angle).item() == pytest.approx(  # other shapes are flattened
        ref_rkd(distance, angle)(*f64(first.flatten(1), second.flatten(1)), 0), rel=1e-5)


def test_rkd_of_triangles_is_known():
    """Compare a triangle of right angle with one of equal sides, for which everything is known."""
    right, even = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5]])
    unit_of = 3 / (2 + 2**0.5)
    known = (2 * (unit_of - 1)**2 + (2**0.5 * unit_of - 1)**2) / 6
    assert feature_losses.rkd(right, even, angle=0.0).item() == pytest.approx(known, rel=1e-5)
    assert feature_losses.rkd(9 * right, even, 0.0, 1.0).item() == pytest.approx((0.5**2 + 2 * (0.5**0.5 - 0.5)**2) / 6, rel=1e-5)
    line = torch.tensor([[0.0, 0], [1, 0], [2, 0]])  # -1, 1, 1 against 1/2 three times: 1.5 is in the linear part
    assert feature_losses.rkd(line, even, 0.0, 1.0).item() == pytest.approx((1.0 + 2 * 0.125) / 3, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rkd_of_few_or_equal_images_has_a_value_and_a_slope(dtype):
    (student, teacher), reference = (maps.to(dtype) for maps in draw((6, 4, 2, 2), (6, 3, 2, 2))), ref_rkd()
    for few in (1, 2):
        s, t = student[:few], teacher[:few]
        assert feature_losses.rkd(s, t) == 0 and not slope(feature_losses.rkd, s, t).any()
    pair, zeros = student.clone(), 0 * student
    pair[3] = pair[1]
    for s, t in ((pair, teacher), (student, teacher[[0, 1, 1, 1, 4, 5]]), (pair, pair), (zeros, teacher), (student, 0 * teacher), (zeros, zeros)):
        assert feature_losses.rkd(s, t).item() == pytest.approx(reference(*f64(s, t), 0), rel=1e-4, abs=1e-9)
        got = slope(feature_losses.rkd, s, t)
        assert got.isfinite().all() and got.abs().max() < 10
    assert slope(feature_losses.rkd, pair, teacher)[[1, 3]].any() and not slope(feature_losses.rkd, zeros, teacher).any()
    assert slope(feature_losses.rkd, zeros + 1e-30, teacher).isfinite().all()


def test_rkd_is_exact_for_images_that_are_nearly_equal():
    """Check that distances are taken from differences.

    Taken from inner products of rows of length 6000, differences of 0.1 would be lost in float32.
    """
    student, teacher = (1000 + 0.02 * rows for rows in draw((6, 40), (6, 30)))
    assert feature_losses.rkd(student, teacher).item() == pytest.approx(ref_rkd()(*f64(student, teacher), 0), rel=1e-4)
    assert same_slope(0.01 * slope(feature_losses.rkd, student, teacher), lambda s: 0.01 * ref_rkd()(s, *f64(teacher), 0), student)


def test_rkd_in_parts_is_the_same_and_needs_no_more_memory_than_it_says(monkeypatch):
    student, teacher = draw((7, 5, 3, 3), (7, 9, 3, 3))
    whole, gradient, shapes, real = feature_losses.rkd(student, teacher), slope(feature_losses.rkd, student, teacher), set(), feature_losses._cosines
    monkeypatch.setattr(feature_losses, "ARMS_AT_ONCE", 2 * 7 * 9)
    monkeypatch.setattr(feature_losses, "_cosines", lambda rows, some: shapes.add(tuple((found := real(rows, some)).shape)) or found)
    assert feature_losses.rkd(student, teacher).item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(slope(feature_losses.rkd, student, teacher), gradient, rtol=1e-4, atol=1e-7)
    assert shapes == {(2, 7, 7), (1, 7, 7)}


def test_vid_of_a_fixed_variance_is_a_hint_and_the_best_variance_is_the_mean_square():
    student, teacher = draw((4, 3, 5, 5), (4, 3, 3, 3))
    for variance in (0.1, 1.0, 5.0):
        by_hand = feature_losses.hint(student, teacher).item() / variance + math.log(variance) / 2
        assert feature_losses.vid((student, torch.full((3,), variance)), teacher).item() == pytest.approx(by_hand, rel=1e-5)
    best = (teacher - feature_losses._averaged_to(student, [3, 3])).square().mean((0, 2, 3)).requires_grad_()
    loss = feature_losses.vid((student, best), teacher)
    assert loss.item() == pytest.approx((best.log().mean().item() + 1) / 2, rel=1e-5)
    assert torch.autograd.grad(loss, best)[0].abs().max() < 1e-6


@pytest.mark.parametrize("raw", [-300.0, 0.3, 300.0])
def test_gaussians_follow_a_float64_reference_and_stay_finite_for_a_constant_teacher(raw):
    [student, teacher], gaussians = draw((3, 4, 6, 6), (3, 5, 3, 3)), regressors.Gaussians([(1, 1), (4, 5)], seed=3)
    with torch.no_grad():
        gaussians.raw[1].fill_(raw)
    constant, weight = torch.zeros_like(teacher), f64(gaussians.weights[1])[0]

    def by_hand(values, weight=weight, target=f64(teacher)[0]):
        predicted = [np.einsum("oc,chw->ohw", weight[..., 0, 0], image) for image in f64(student)[0]]
        variance = np.log1p(np.exp(np.minimum(values, 30))) + np.maximum(values - 30, 0) + 1e-5
        return np.mean([(np.log(v) + (a - b)**2 / v) / 2 for s, t in zip(predicted, target)
                        for v, one, other in zip(variance, *matched(s, t)) for a, b in zip(one.ravel(), other.ravel())])

    loss = feature_losses.vid(gaussians(student.bfloat16().float(), 1), teacher)
    assert loss.dtype == torch.float32
    loss = feature_losses.vid(gaussians(student, 1), teacher)
    assert loss.item() == pytest.approx(by_hand(f64(gaussians.raw[1])[0]), rel=1e-4)
    of_weight, of_raw = torch.autograd.grad(loss, [gaussians.weights[1], gaussians.raw[1]])
    assert same_slope(of_weight / of_weight.norm(), lambda w: by_hand(f64(gaussians.raw[1])[0], w) / of_weight.norm().item(), gaussians.weights[1])
    if raw == 0.3:
        assert same_slope(of_raw, by_hand, gaussians.raw[1])
    for maps in (student, 0 * student, student.bfloat16(), student.half()):
        found = feature_losses.vid(gaussians(maps, 1), constant.to(maps.dtype))
        assert found.isfinite() and all(one.isfinite().all() for one in torch.autograd.grad(found, [gaussians.weights[1], gaussians.raw[1]]))


def test_the_variance_of_gaussians_starts_where_its_option_says_and_the_mean_is_that_of_projectors():
    plain, features = regressors.Projectors([(3, 5)], 7), draw((2, 3, 4, 4))[0]
    for given in ({}, {"variance": 0.001}, {"variance": 0.25}, {"variance": 1000.0}):
        kinds = {"hint": KNOWLEDGE["hint"], "kd": KNOWLEDGE["kd"], "vid": KNOWLEDGE["vid"]}
        found = regressors.build(kinds, [(3, 5)], 7, {"vid": given, "kd": {}})
        average, variance = found["vid"](features.half(), 0)
        assert list(found) == ["hint", "vid"] and average.dtype == variance.dtype == torch.float32
        assert variance.tolist() == pytest.approx([given.get("variance", 5.0)] * 5, rel=1e-3)
        assert torch.equal(average, plain(features.half(), 0)) and torch.equal(average, found["hint"](features.half(), 0))


def test_projectors_depend_on_their_seed_only():
    state, (first, again, other) = torch.get_rng_state(), (regressors.Projectors([(3, 5), (4, 2)], seed) for seed in (7, 7, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert [tuple(weight.shape) for weight in first.parameters() if weight.requires_grad] == [(5, 3, 1, 1), (2, 4, 1, 1)]
    for weight, same, unlike in zip(*(projectors.parameters() for projectors in (first, again, other))):
        assert torch.equal(weight, same) and not torch.equal(weight, unlike)
