"""Where networks look: maps, how alike they are, boxes, networks with random weights, contact sheets, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY, write_table
from matplotlib.text import Text
from PIL import Image, ImageDraw
from scipy import stats
from test_figures import drawn
from torch import nn

from kd.config.evaluate_settings import Judging
from kd.config.settings import Data
from kd.data.boxes import Box, placed, read_boxes
from kd.data.dataset import Dataset
from kd.data.images.pixels import Recipe, resized
from kd.data.index import Index, Sample
from kd.data.splits import Splits
from kd.data.store import Store
from kd.models import Classifier
from kd.reports import figure_layout as layout
from kd.reports.measures import differences, measure
from kd.reports.resampled import Predicted
from kd.reports.resampling import draw
from kd.studies.look import sheets, watch
from kd.studies.look.agreement import (
    CORRELATION,
    SHARE,
    difference,
    mean,
    peak,
    pointing,
    rank_correlation,
)
from kd.studies.look.gradcam import (
    Looked,
    NoMap,
    Together,
    enlarged,
    find_layer,
    grad_cam,
    look,
    normalized,
    through,
)
from kd.studies.look.look import write_look
from kd.studies.look.randomized import ALL, LAST_LAYER, cascade, steps
from kd.studies.look.summary import RANDOM, summarise
from kd.system.errors import Problem

ALONE = DATA / "teacher/kdtiny/seed0"
RUN1 = RUN.parent / "seed1"
HOW = Judging(device="cpu", batch_size=16)


@pytest.fixture
def real_sheets():
    """Build the sheets of this test, as in every run outside the tests."""


@pytest.fixture(autouse=True)
def quick_sheets(request, monkeypatch):
    """Replace all sheets by empty figures, unless a test uses `real_sheets`: they take longer than all the rest."""
    if "real_sheets" not in request.fixturenames:
        monkeypatch.setattr(sheets, "sheet", lambda *words: layout.new(1))


class Plain(nn.Module):
    """A network whose last feature map is a function of the image that is easy to follow."""

    def __init__(self, head, body=None, overwrite=False):
        super().__init__()
        self.feature_info = [{"module": "body"}]
        self.body, self.head, self.overwrite = body or nn.Identity(), head, overwrite

    def forward(self, images):
        features = self.body(images * 1)
        return self.head(features.clamp_(0.3, 0.7) if self.overwrite else features.clamp(0.3, 0.7))


class Pooled(nn.Module):
    """Logits from the mean over positions: W mean(A)."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, features):
        return features.mean((2, 3)) @ self.weights.T


def classifier(module, classes=2, dtype=torch.float32):
    zero, one = torch.zeros(1, 3, 1, 1, dtype=dtype), torch.ones(1, 3, 1, 1, dtype=dtype)
    return Classifier("plain", "plain", tuple("abcdefg"[:classes]), module.to(dtype).eval().requires_grad_(False), zero, one)


def random_images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_map_of_a_network_with_mean_pooling_is_known_by_hand():
    weights = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 2.0, 0.0]], dtype=torch.float64)
    images = random_images(2, 3, 4, 5, dtype=torch.float64)
    network = classifier(Plain(Pooled(weights)), dtype=torch.float64)
    network.module.forward = lambda own: network.module.head(network.module.body(own * 1))  # without the clamp
    features, gradient, logits = through(network, "body", images, torch.tensor([0, 1]))
    assert torch.equal(features, images) and torch.allclose(logits, images.mean((2, 3)) @ weights.T)
    for found, own, row in zip(grad_cam(features, gradient), images.numpy(), weights.numpy()):
        expected = np.maximum(np.tensordot(row / 20, own, 1), 0)  # dy/dA_k is W_k / 20 at each of the 20 positions
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("overwrite", [False, True])
def test_gradients_equal_finite_differences_also_if_the_layer_is_overwritten(overwrite):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6, 2))
    network = classifier(Plain(head, nn.Conv2d(3, 3, 1), overwrite), dtype=torch.float64)
    images = random_images(2, 3, 3, 4, dtype=torch.float64)
    classes = torch.tensor([1, 0])
    features, gradient, _ = through(network, "body", images, classes)
    torch.testing.assert_close(features, network.module.body(images))  # not clamped
    step = 1e-6
    for image, channel, y, x in [(0, 0, 0, 0), (0, 2, 1, 3), (1, 1, 2, 2), (1, 0, 0, 3)]:
        ends = []
        for sign in (1, -1):
            moved = features.clone()
            moved[image, channel, y, x] += sign * step
            ends.append(head(moved.clamp(0.3, 0.7))[image, classes[image]])
        assert gradient[image, channel, y, x] == pytest.approx(float(ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_maps_have_the_maximum_1_and_empty_ones_stay_0():
    maps = normalized(torch.tensor([[[0.0, 2.0], [1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert maps[0].tolist() == [[0, 1], [0.5, 0.25]] and not maps[1].any()


@pytest.mark.parametrize("pool, layer", [("token", "blocks.1"), ("avg", "blocks.2")])
def test_tokens_of_a_transformer_become_a_grid_at_the_last_block_with_a_gradient(pool, layer):
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, depth=3, embed_dim=24, num_heads=2,
                               num_classes=2, global_pool=pool)
    network = classifier(module)
    images, classes = random_images(2, 3, 32, 48), torch.tensor([0, 1])
    assert find_layer(network, images, classes) == layer
    features, _, _ = through(network, layer, images, classes)
    tokens = {}
    module.get_submodule(layer).register_forward_hook(lambda own, inputs, output: tokens.update(all=output))
    module(images)
    assert features.shape == (2, 24, 4, 6)
    torch.testing.assert_close(features[1, :, 2, 5], tokens["all"][1, module.num_prefix_tokens + 2 * 6 + 5])


def test_the_last_stage_with_several_positions_is_taken():
    torch.manual_seed(0)
    network = classifier(timm.create_model("resnet18", num_classes=2))
    classes = torch.tensor([0, 1])
    assert find_layer(network, random_images(2, 3, 64, 64), classes) == "layer4"
    assert find_layer(network, random_images(2, 3, 32, 32), classes) == "layer3"  # layer4 has one position
    network.module.feature_info = network.module.feature_info[-1:]
    with pytest.raises(NoMap, match=r"several positions for images of 32 pixels \(layer4 has 1 x 1\)"):
        find_layer(network, random_images(2, 3, 32, 32), classes)
    network.module.feature_info = []
    with pytest.raises(NoMap, match="no named stages"):
        find_layer(network, random_images(2, 3, 32, 32), classes)


def test_rank_correlations_equal_those_of_scipy_with_ties():
    random = np.random.default_rng(0)
    first, second = np.round(random.random((2, 6, 50)), 1)
    second[1] = first[1]
    second[2] = -first[2]
    found = rank_correlation(first, second)
    np.testing.assert_allclose(found, [stats.spearmanr(*pair).statistic for pair in zip(first, second)], atol=1e-12)
    assert found[1:3] == pytest.approx([1, -1])
    second[3] = 0.5 + 1e-9 * random.random(50)  # rounding only
    assert np.isnan(rank_correlation(first, second)).tolist() == [False, False, False, True, False, False]


def looked(maps):
    return Looked("layer", np.asarray(maps, np.float32), np.zeros((len(maps), 2), np.float32))


def test_teachers_together_have_the_weighted_mean_of_their_maps():
    random = np.random.default_rng(0)
    coarse, fine = random.random((3, 2, 2)), random.random((3, 4, 4))
    coarse[2], fine[2], fine[1] = 0, 0, 0
    both = Together([looked(coarse), looked(fine)], [0.25, 0.75])
    rows = np.array([1, 0])
    expected = 0.25 * enlarged(coarse[rows].astype(np.float32), 8) + 0.75 * enlarged(fine[rows].astype(np.float32), 8)
    np.testing.assert_allclose(both.maps(8, rows), expected, rtol=1e-5)
    assert both.empty.tolist() == [False, False, True]


def test_a_map_points_to_the_middle_of_its_highest_position():
    for size, (down, across) in ((2, (0, 0)), (2, (1, 0)), (3, (1, 2)), (4, (0, 2))):
        coarse = np.zeros((1, size, size), np.float32)
        coarse[0, down, across] = 1
        y, x = peak(enlarged(coarse, 12 * size)[0])
        assert abs(y + 0.5 - 12 * (down + 0.5)) <= 1 and abs(x + 0.5 - 12 * (across + 0.5)) <= 1


def test_pointing_counts_hits_in_any_box_and_an_empty_map_as_a_miss():
    maps = np.zeros((4, 2, 2))
    maps[:2, 0, 1] = 1  # the middle of the upper right quarter: x = 12, y = 4 of 16 pixels
    hit, miss = Box(10, 2, 14, 6), Box(0, 0, 11, 16)
    boxes = {0: [miss, hit], 1: [miss], 2: [Box(0, 0, 16, 16)]}
    found = pointing(Together([looked(maps)], [1.0]), 16, boxes, 4)
    np.testing.assert_array_equal(found, [1, 0, 0, np.nan])


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("width, height", [(200, 120), (90, 310), (128, 128)])
def test_boxes_follow_the_image_through_its_resizing(resize, width, height):
    image = Image.new("L", (width, height))
    box = Box(0.25 * width, 0.4 * height, 0.65 * width, 0.9 * height)
    ImageDraw.Draw(image).rectangle((round(box.left), round(box.top), round(box.right) - 1, round(box.bottom) - 1), fill=255)
    shown = resized(image, Recipe(64, resize, 1))[0] > 127
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    found = placed(box, width, height, 64, resize)
    expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose(found, expected, atol=1.01)
    assert found.has(int(columns.mean()), int(rows.mean())) and not found.has(0, 0)


def store_of(tmp_path, image, cells, save=None, **recipe):
    """Return the store of one image with the cells of the four columns of its boxes."""
    (save or image.save)(tmp_path / "one.png")
    extra = {name: (cell,) for name, cell in zip(("box_x", "box_y", "box_width", "box_height"), cells)}
    index = Index("films", ("a", "b"), (Sample("one.png", 0, "p", "p"),), root=tmp_path, extra=extra)
    store = Store(index, str(tmp_path / "cache"), 64, recipe.pop("resize", "squash"), 0, **recipe)
    store.ensure(np.array([0]))
    return store


def test_boxes_of_a_turned_image_are_those_of_the_upright_one(tmp_path):
    image = Image.new("L", (100, 50))  # the upright image is 50 wide and 100 high
    exif = Image.Exif()
    exif[0x0112] = 6
    store = store_of(tmp_path, image, ("10", "50", "20", "40"), lambda path: image.save(path, exif=exif))
    [box] = read_boxes(store, [0])[0]
    assert box == pytest.approx((10 * 64 / 50, 32, 30 * 64 / 50, 57.6))


def test_boxes_of_a_fundus_photograph_move_with_its_crop(tmp_path):
    image = Image.new("RGB", (300, 200))
    ImageDraw.Draw(image).ellipse((100, 20, 260, 180), fill=(200, 120, 60))
    ImageDraw.Draw(image).rectangle((170, 90, 189, 109), fill=(255, 255, 255))  # the middle of the disc
    store = store_of(tmp_path, image, ("170", "90", "20", "20"), crop="fundus")
    [box] = read_boxes(store, [0])[0]
    white = store.images[0].min(0) > 150
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    np.testing.assert_allclose(box, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), atol=1.5)


def test_several_boxes_stand_in_one_cell_and_reach_to_the_border_at_most(tmp_path):
    store = store_of(tmp_path, Image.new("L", (64, 32)), ("-5;40", "10; 0", "25 10", "40;8"))
    assert read_boxes(store, [0])[0] == [Box(0, 20, 20, 64), Box(40, 0, 50, 16)]


@pytest.mark.parametrize("cells, why", [
    (("left", "1", "2", "3"), "box_x is not a number"), (("1", "1", "0", "3"), "not above 0"), (("1", "nan", "2", "3"), "box_y is not a number"),
    (("99", "1", "2", "3"), "outside"), (("1 2", "1", "2", "3"), "different counts"), (("1", "", "", ""), "different counts")])
def test_boxes_that_are_none_are_refused(tmp_path, cells, why):
    with pytest.raises(Problem, match=rf"1 image has a box that cannot be used: one.png \(.*{why}"):
        read_boxes(store_of(tmp_path, Image.new("L", (64, 32)), cells), [0])


def test_boxes_need_all_four_columns_and_images_may_lack_one(tmp_path):
    image = Image.new("L", (64, 32))
    assert read_boxes(store_of(tmp_path, image, ("", " ", "", "")), [0]) == {}
    assert read_boxes(store_of(tmp_path, image, ()), [0]) is None
    with pytest.raises(Problem, match="has box_x, box_y, but not box_width, box_height"):
        read_boxes(store_of(tmp_path, image, ("1", "1")), [0])


def predictions(right, patients):
    labels = np.arange(len(right)) % 2
    answers = np.where(right, labels, 1 - labels)
    return Predicted(np.eye(2)[answers], labels, patients)


def test_intervals_of_means_are_those_of_the_accuracy():
    random = np.random.default_rng(0)
    patients = np.sort(random.integers(0, 30, 100))
    first, second = random.random((2, 3, 100)) < [[[0.8]], [[0.7]]]
    resamples = draw(patients)
    own = mean([first[0].astype(float)], resamples, SHARE)
    expected = measure(predictions(first[0], patients), ["accuracy"])["accuracy"]
    assert {key: own[key] for key in expected} == pytest.approx(expected) and own["images"] == 100
    gap = difference(first.astype(float), second.astype(float), resamples, SHARE)
    sides = [{seed: predictions(right, patients) for seed, right in enumerate(side)} for side in (first, second)]
    expected = differences(*sides, ["accuracy"])["accuracy"]
    assert {key: gap[key] for key in expected} == pytest.approx(expected)


def test_images_without_a_score_do_not_count():
    scores = np.array([0.5, np.nan, 0.7, 0.3])
    resamples = draw(np.array(["p", "p", "q", "r"]))
    own = mean([scores], resamples, CORRELATION)
    assert own["value"] == pytest.approx(0.5) and own["images"] == 3 and own["low"] < 0.5 < own["high"]
    one_patient = mean([np.array([0.5, 0.5, np.nan, np.nan])], resamples, CORRELATION)
    assert one_patient["value"] == 0.5 and one_patient["low"] is None and "two patients" in one_patient["reason"]
    assert mean([scores * np.nan], resamples, CORRELATION)["reason"] == "no image has it"
    assert mean([], resamples, CORRELATION)["value"] is None
    several = mean([scores, scores - 0.2], resamples, CORRELATION)
    assert several["value"] == pytest.approx(0.4) and several["seeds"] == 2


def test_the_cascade_begins_at_the_last_layer_and_ends_with_all_weights():
    with torch.device("meta"):  # no weights are needed
        networks = [timm.create_model(name, num_classes=2) for name in ("resnet18", "vgg11")]
    found, vgg = (dict(steps(classifier(module))) for module in networks)
    assert list(found) == [LAST_LAYER, "from layer4 on", "from layer3 on", "from layer2 on", ALL]
    assert found[LAST_LAYER] == {"fc.weight", "fc.bias"}
    owners = {key.split(".")[0] for key in found["from layer3 on"]}
    assert owners == {"layer3", "layer4", "fc"} and found[ALL] == set(networks[0].state_dict())
    layers = [{key.rpartition(".")[0] for key in keys} for keys in vgg.values()]
    assert layers[0] == {"head.fc"} and layers[1] == {"head.fc", "pre_logits.fc1", "pre_logits.fc2"}
    assert layers[2] == layers[1] | {"features.16", "features.18"}


def test_networks_of_the_cascade_are_random_from_the_step_on_only():
    import kd.models
    network = kd.models.build("kdtiny", ("a", "b"), seed=5)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    assert not torch.equal(*(list(cascade(network, draw))[-1][1].module.fc.weight for draw in (0, 1)))
    for step, random in cascade(network, 0):
        same = {key for key, value in random.module.state_dict().items() if torch.equal(value, before[key])}
        assert same.isdisjoint({"fc.weight", "fc.bias"}) and ("conv.weight" in same) == (step == LAST_LAYER)
    assert step == ALL and all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())


def scores(alike, random, count=60):
    noise = 0.05 * np.random.default_rng(0).standard_normal(count)
    noise -= noise.mean()
    draws = random + np.stack([noise, -noise, 2 * noise])
    return {"student_teacher": alike + noise, RANDOM + LAST_LAYER: draws + 0.1, RANDOM + ALL: draws}


def test_the_control_says_whether_maps_show_what_was_learned():
    resamples = draw(np.arange(60))
    apart = summarise([scores(0.7, 0.1)], resamples, None)["sanity"]
    assert "show something that was learned" in apart["says"] and "of 0.100 with its own" in apart["says"]
    assert [step["random"] for step in apart["steps"]] == [LAST_LAYER, ALL]
    alike = summarise([scores(0.7, 0.7)], resamples, None)["sanity"]
    assert "do not show what was learned" in alike["says"]
    apart = summarise([scores(0.0, 0.0)], resamples, None)["sanity"]
    assert "depend on the weights, but those of two trained networks are not" in apart["says"]
    one, other = scores(0.7, 0.1), scores(0.6, 0.3)
    other[RANDOM + ALL][0, :30] = np.nan  # empty maps
    both = summarise([one, other], resamples, None)["sanity"]
    assert both["steps"][1]["value"] == pytest.approx(0.2, abs=0.01) and both["steps"][1]["seeds"] == 2
    assert both["alike"]["value"] == pytest.approx(0.65) and both["difference"]["value"] == pytest.approx(0.45, abs=0.01)
    one[RANDOM + ALL] += np.array([[0.3], [-0.3], [0.0]])  # draws that differ make the interval wider
    wider, own = (summarise([some], resamples, None)["sanity"]["difference"] for some in (one, scores(0.7, 0.1)))
    assert wider["high"] - wider["low"] > 2 * (own["high"] - own["low"])
    single = scores(0.7, 0.1)
    del single["student_teacher"]
    alone = summarise([single], resamples, None)
    assert "1 would mean" in alone["sanity"]["says"] and alone["agreement"]["difference"]["value"] is None


def test_agreement_on_the_same_image_is_compared_with_that_on_two_images():
    noise = 0.05 * np.random.default_rng(1).standard_normal(60)
    for other, words in ((0.3, "agree more on the same image than on two of the class (by 0."), (0.7, "not shown to agree more")):
        own = scores(0.7, 0.1) | {"other_image": other + noise}
        assert words in summarise([own], draw(np.arange(60)), None)["agreement"]["says"]


def test_another_image_of_the_class_is_of_another_patient():
    labels, patients = [0, 0, 0, 1, 1, 1, 1, 2, 2], ["p", "p", "q", "r", "s", "s", "t", "u", "u"]
    samples = tuple(Sample(str(k), label, patient, patient) for k, (label, patient) in enumerate(zip(labels, patients)))
    splits = Splits(*[np.zeros(0, np.int64)] * 2, np.arange(9), np.zeros(0, np.int64))
    dataset = Dataset(Data(), Index("x", ("a", "b", "c"), samples), splits, None, "")
    others = watch.Images({8: dataset}, 8, np.arange(9), np.arange(9), None, 2).others
    for place, other in enumerate(others):
        assert other < 0 or (labels[place] == labels[other] and patients[place] != patients[other])
    assert (others[3:7] >= 0).all() and len(set(others[3:7])) == 4 and (others[7:] == -1).all()


def test_changed_answers_come_first_and_the_choice_is_repeated():
    labels = np.array([0, 1] * 20)
    changed = np.arange(40) % 4 == 0
    one = sheets.choose(labels, changed, 0)
    assert len(one.changed) == sheets.CHANGED and len(one.others) == sheets.OTHERS and one.left_out == 14
    assert changed[one.changed].all() and not changed[one.others].any() and not labels[one.rows].any()
    np.testing.assert_array_equal(one.rows, sheets.choose(labels, changed, 0).rows)
    none = sheets.choose(labels, changed, 1)
    assert not len(none.changed) and len(none.others) == sheets.CHANGED + sheets.OTHERS and none.all_changed == 0


LONG = "läsion_肺炎_a_class_of_a_study_with_a_very_long_name_of_many_characters_"


def a_sheet(count, networks, classes, long):
    random = np.random.default_rng(0)
    names = [f"{LONG if long else 'class '}{k}" for k in range(classes)]
    shown = []
    for number in range(count):
        answers = []
        for place in range(networks):
            own = enlarged(random.random((1, 3, 3), np.float32) * (number + place > 0), 32)[0]
            answers.append(sheets.Answer((number + place) % classes, 0.9, 0.05, own))
        image = random.integers(0, 256, (3 if number % 2 else 1, 32, 32), dtype=np.uint8)
        shown.append(sheets.Shown(10_000 + number, number < 4, image, answers, [Box(3, 4, 20, 30)] * (number % 2)))
    headings = [f"network: {LONG if long else ''}{k}" for k in range(networks)]
    notes = [" ".join(["A note of several lines about maps and images."] * 9)]
    return sheets.sheet(shown, 1, names, headings, notes)


@pytest.mark.draws
@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize("count, networks, classes, long", [(6, 3, 200, True), (1, 1, 2, False)])
def test_no_text_of_a_sheet_is_cut_or_runs_into_another(real_sheets, count, networks, classes, long):
    figure = a_sheet(count, networks, classes, long)
    renderer = drawn(figure).get_renderer()
    width, height = figure.bbox.size
    assert height <= 16 * layout.DPI
    below = []
    for text in figure.findobj(Text):
        box = text.get_window_extent(renderer)
        if text.get_text() and text.get_visible() and box.width and box.height:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
            below += [box] if "\np" in text.get_text() or "\nlabel" in text.get_text() else []
    assert len(below) == count * (1 + networks)
    bar = figure.axes[-1].get_window_extent(renderer)
    for number, box in enumerate(below):
        assert not box.overlaps(bar) and not any(box.overlaps(other) for other in below[:number])
    texts = [axes.get_xlabel() for axes in figure.axes]
    answers = [text.partition("\n")[0] for text in texts if text[:1] in "✓✗" and text]
    assert {text[:7] for text in answers} <= {"✓ right", "✗ wrong"} and len(answers) == count * networks
    if long:
        assert len({text[7:] for text in answers}) == 8  # shortened names still differ
        assert "empty map" in figure.axes[1].texts[0].get_text()


@pytest.fixture
def runs(prepared):
    """A pair, its student trained alone, and a second seed of both."""
    words = ["--max-steps", "8", "--epochs", "1"]
    prepared([(script, [*argv, *words, "--seed", seed]) for seed in "01" for script, argv in
              (("distill", PAIR), ("train_teacher", ["--model", "kdtiny", *TINY]))])


def test_a_run_gets_its_sheets_numbers_and_events(runs, script, real_sheets):
    code, out = script("evaluate", ["--look", RUN, "--device", "cpu"])
    assert code == 0, out
    found = json.loads((RUN / "look/look.json").read_text())
    assert (RUN / "look/look.md").read_text() in out and "| student and teacher " in out and "| last layer " in out
    assert [own["caption"] for own in found["networks"].values()] == ["kdwide (teacher)", "kdtiny <- kdwide, normal",
                                                                     "kdtiny (baseline)"]
    assert found["networks"]["student"]["maps"] == [{"layer": "bn", "positions": [16, 16], "image_size": 32}]
    report = json.loads((RUN / "report.json").read_text())
    assert found["networks"]["student"]["accuracy"] == pytest.approx(report["results"]["best"]["test_accuracy"])
    gap, agreement = found["agreement"]["difference"], found["agreement"]
    assert gap["low"] < gap["value"] < gap["high"] and agreement["student_teacher"]["images"] <= 28
    assert found["pointing"] == {"reason": "the data set has no columns box_x, box_y, box_width and box_height"}
    control = found["sanity"]["steps"]
    assert [step["random"] for step in control] == [LAST_LAYER, ALL]
    assert control[-1]["value"] < 0.8 and all(step["value"] < 1 for step in control)  # of its own maps it would be 1
    files = sorted(file.name for file in (RUN / "look").glob("look-*.png"))
    assert files == sorted(one["file"] for one in found["sheets"]) and len(files) == 7
    lines = (RUN / "predictions.csv").read_text().splitlines()
    for one in found["sheets"]:
        shown = [lines[line - 1].split(",") for line in one["shown_lines"]]
        assert {(row[0], row[4]) for row in shown} == {("test", one["class"])}
        assert len(shown) + one["not_shown"] == one["changed"] + one["not_changed"] == 4
    assert list((RUN / "look").glob("events.out.tfevents.*"))
    text = "".join(file.read_text(errors="replace") for file in (RUN / "look").iterdir())
    assert "patient0" not in text and "study1" not in text


def test_the_same_command_gives_the_same_files(runs):
    def files():
        return {file.name: file.read_bytes() for file in (RUN / "look").iterdir() if not file.name.startswith("events")}
    write_look([RUN], HOW)
    first = files()
    write_look([RUN], HOW)
    assert files() == first and len(list((RUN / "look").glob("events*"))) == 1


def test_maps_of_a_run_are_those_of_its_own_images(runs):
    """The student's correlation with its teacher, computed from the networks and images themselves."""
    import kd.teachers.model_file as model_file
    from kd.studies.images import own_images_by_size
    report = json.loads((RUN / "report.json").read_text())
    dataset = own_images_by_size(RUN, report, [32], HOW)[32]
    images = torch.from_numpy(dataset.store.images[dataset.splits.test]).float().expand(-1, 3, -1, -1) / 255
    labels = torch.from_numpy(dataset.index.labels[dataset.splits.test])
    maps = []
    for folder in (RUN, TEACHER):
        network = model_file.load(folder / "model.pt").network
        module = network.module.eval()
        with torch.enable_grad():
            features = module.bn(module.conv((images - network.mean) / network.std)).detach().requires_grad_()
            logits = module.fc(nn.functional.adaptive_avg_pool2d(torch.relu(features), 4).flatten(1))
            logits.gather(1, labels[:, None]).sum().backward()
        own = torch.relu((features.grad.mean((2, 3), keepdim=True) * features).sum(1)).detach()
        own = own / own.amax((1, 2), keepdim=True).clamp(min=1e-12)
        maps.append(nn.functional.interpolate(own[:, None], (32, 32), mode="bilinear")[:, 0].flatten(1).numpy())
    expected = [stats.spearmanr(np.round(one, 6), np.round(other, 6)).statistic for one, other in zip(*maps)
                if one.any() and other.any()]
    found = write_look([RUN], HOW)["agreement"]["student_teacher"]
    assert found["value"] == pytest.approx(np.mean(expected), abs=1e-4) and found["images"] == len(expected)


def test_several_seeds_are_summed_up_beside_the_runs(runs, capsys):
    result = write_look([RUN, RUN1], HOW)
    assert result == json.loads(Path("runs/look.json").read_text())
    [group] = result["groups"]
    each = [json.loads((run / "look/look.json").read_text())["agreement"] for run in (RUN, RUN1)]
    for name in ("student_teacher", "alone_teacher", "difference"):
        assert group["agreement"][name]["value"] == pytest.approx(np.mean([own[name]["value"] for own in each]))
        assert group["agreement"][name]["seeds"] == 2
    assert group["seeds"] == [0, 1] and Path("runs/look.md").read_text() in capsys.readouterr().out


def test_missing_networks_are_left_out_with_the_reason(runs, capsys):
    shutil.rmtree(TEACHER)
    shutil.rmtree(ALONE)
    found = write_look([RUN], HOW)
    assert list(found["networks"]) == ["student"] and len(found["left_out"]) == 2
    assert found["agreement"]["student_teacher"]["reason"] == "no image has it" and "1 would mean" in found["sanity"]["says"]
    assert "There is no other network" in capsys.readouterr().out
    only = write_look([RUN1.parent.parent.parent / "teacher/kdwide/seed1"], HOW)
    assert "trained on labels only" in only["left_out"][0] and only["sheets"][0]["changed"] == 0


def change(run, section, **values):
    report = json.loads((run / "report.json").read_text())
    report[section] |= values
    (run / "report.json").write_text(json.dumps(report))


def test_runs_without_logged_images_keep_their_sheets_out_of_tensorboard(runs, capsys):
    change(RUN, "settings", log_images=False)
    write_look([RUN], HOW)
    assert not list((RUN / "look").glob("events*")) and "--no-log-images" in capsys.readouterr().out


def test_many_images_are_drawn_and_counted(runs, monkeypatch):
    monkeypatch.setattr(watch, "MOST", 20)
    monkeypatch.setattr(watch, "CONTROLS", 6)
    found = write_look([RUN], HOW)
    assert found["method"]["images"] == 20 and found["method"]["drawn_with_seed"] == 0
    assert found["method"]["control_images"] == 6 and found["sanity"]["steps"][0]["images"] <= 6
    assert sum(one["changed"] + one["not_changed"] for one in found["sheets"]) == 20


def test_teachers_together_of_another_image_size_are_compared_at_the_students(runs, script):
    large = ["--model", "kdwide", *TINY, "--max-steps", "2", "--epochs", "1", "--image-size", "48"]
    assert script("train_teacher", large)[0] == 0
    argv = [*PAIR, "--teacher-image-size", "48", "--tag", "large", "--max-steps", "2", "--epochs", "1"]
    assert script("distill", argv)[0] == 0
    found = write_look([DATA / "normal-large/kdwide-kdtiny/seed0"], HOW)
    assert found["networks"]["teacher"]["maps"] == [{"layer": "bn", "positions": [24, 24], "image_size": 48}]
    assert found["agreement"]["student_teacher"]["value"] is not None


def test_boxes_of_a_table_are_pointed_at(script, tmp_path, picture_tree):
    root = picture_tree("hospital", {"x": 32}, size=(40, 30))
    rows = [(f"x/image{k}.png", "ab"[k // 2 % 2], f"p{k // 2}", "test" if k >= 20 else "train",
             *(("5", "10", "15", "20") if k != 21 else ("",) * 4)) for k in range(32)]
    write_table(root, rows, "path,label,patient,split,box_x,box_y,box_width,box_height")
    words = [*PAIR, "--max-steps", "2", "--epochs", "1", "--dataset", "folder", "--data-dir", root, "--split", "given"]
    code, out = script("distill", words)
    assert code == 0, out
    [run] = Path("runs").glob("hospital*/normal/*/seed0")
    found = write_look([run], HOW)["pointing"]
    assert found["images"] == found["student"]["images"] == 11 and found["reason"] is None
    assert found["area"] == pytest.approx(0.25, abs=0.02) and found["centre"] == 1  # 15 x 20 of 30 x 40
    assert 0 <= found["student"]["low"] <= found["student"]["value"] <= found["student"]["high"] <= 1
    moved = root.rename(tmp_path / "moved")
    code, out = script("evaluate", ["--look", run, "--data-dir", moved, "--device", "cpu"])
    assert code == 0 and json.loads((run / "look/look.json").read_text())["pointing"] == found
    (moved / "x/image25.png").unlink()
    with pytest.raises(Problem, match="image25.png"):
        write_look([run], Judging(device="cpu", data_dir=str(moved)))


@pytest.mark.parametrize("argv, why", [
    (["--look", "nowhere"], "nowhere"), (["--look", RUN, "--dataset", "folder"], "--dataset folder cannot be combined"),
    (["--look", RUN, "--shift", RUN], "exactly one of")])
def test_misuse_is_one_line(runs, script, argv, why):
    code, out = script("evaluate", argv)
    assert code != 0 and why in out and out.count("\n") == 0


def test_unfinished_runs_equal_seeds_and_other_images_are_refused(runs):
    (RUN1 / "report.json").rename(RUN1 / "kept.json")
    with pytest.raises(Problem, match="seed1"):
        write_look([RUN, RUN1], HOW)
    (RUN1 / "kept.json").rename(RUN1 / "report.json")
    change(RUN1, "settings", seed=0)
    with pytest.raises(Problem, match="are both kdtiny <- kdwide, normal, seed 0"):
        write_look([RUN, RUN1], HOW)
    change(RUN1, "data", split_hash="0")
    with pytest.raises(Problem, match=r"given by --look\) does not have the test images"):
        write_look([RUN, RUN1], HOW)
    assert not (RUN / "look").exists()


def test_a_student_without_a_map_is_refused_and_a_teacher_left_out(runs, monkeypatch):
    def without(refused):
        def fake(network, views, layer=None):
            if network.name == refused:
                raise NoMap(f"Network '{refused}' has no feature map. Leave it out.")
            return look(network, views, layer)
        monkeypatch.setattr("kd.studies.look.gradcam.look", fake)
    without("kdwide")
    found = write_look([RUN], HOW)
    assert list(found["networks"]) == ["student", "alone"] and "kdwide" in found["left_out"][0]
    assert found["sanity"]["reference"] == "student_alone"
    without("kdtiny")
    with pytest.raises(Problem, match="kdtiny"):
        write_look([RUN], HOW)
