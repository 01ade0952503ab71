"""Shifted test images: what each shift does, which networks see them, and what is reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY

from kd.config.evaluate_settings import Judging
from kd.data.shifts import SHIFTS, STRENGTHS, shifted
from kd.data.views import Batch
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.studies.networks import Entry, collect
from kd.studies.robustness import COLUMNS, VERSIONS, accuracies, answers, scores
from kd.studies.shift import differences, write_shift
from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers import model_file

SIDE = 48
SLOTS = torch.tensor([4, 0, 9])
RUN1 = RUN.parent / "seed1"
ALONE = DATA / "teacher/kdtiny/seed0"
BOTH = DATA / "normal-both/kdwide+kdtiny-kdtiny/seed0"
HOW = Judging(device="cpu", batch_size=16)


def grey_images(side=SIDE):
    """Return three grey images with an edge, a disc and fine grain.

    They are float32 [3, 3, S, S], with one channel in memory.
    """
    places = (torch.arange(side) + 0.5) / side
    down, across = places[:, None], places[None, :]
    edge = (across > 0.4).float().expand(side, side)
    disc = ((down - 0.3) ** 2 + (across - 0.6) ** 2 < 0.05).float()
    grain = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    return torch.stack([0.2 + 0.4 * edge, 0.3 + 0.5 * disc, 0.1 + 0.6 * grain * disc])[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_grows_from_the_clean_image_within_0_and_1(name):
    images = grey_images()
    versions = [shifted(images, SLOTS, name, strength) for strength in range(STRENGTHS + 1)]
    assert torch.equal(versions[0], images) and len(SHIFTS[name].amounts) == STRENGTHS
    assert all(one.shape == images.shape and one.dtype == torch.float32 for one in versions)
    assert all(0 <= one.min() and one.max() <= 1 for one in versions)
    away = [(one - images).square().mean((1, 2, 3)) for one in versions]
    assert all((later > earlier).all() for earlier, later in zip(away, away[1:]))


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_is_shifted_the_same_way_in_any_batch_and_grey_stays_grey(name):
    images = grey_images()
    for strength in (1, STRENGTHS):
        every = shifted(images, SLOTS, name, strength)
        for k, slot in enumerate(SLOTS):
            torch.testing.assert_close(shifted(images[k:k + 1], slot[None], name, strength)[0], every[k], rtol=0, atol=1e-6)
        colours = shifted(images.contiguous(), SLOTS, name, strength)  # three channels in memory
        assert torch.equal(every[:, 0], every[:, 2])
        torch.testing.assert_close(colours[:, 0], colours[:, 2], rtol=0, atol=1e-6)
        torch.testing.assert_close(colours, every, rtol=0, atol=1e-3)


def test_noise_depends_on_the_slot_and_has_the_amount_of_the_table():
    flat = torch.full((2, 1, 64, 64), 0.5)
    first, second = shifted(flat, torch.tensor([3, 4]), "noise", 3) - 0.5
    assert not torch.allclose(first, second) and first.std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(shifted(flat[:1], torch.tensor([4]), "noise", 3)[0] - 0.5, second)


def test_shifts_have_the_effect_of_their_units():
    images = grey_images()
    weak = shifted(images, SLOTS, "contrast", 3)
    torch.testing.assert_close(weak.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(weak.std((2, 3)), images.std((2, 3)) / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(shifted(images, SLOTS, "brightness", 5), (images + 0.4).clamp(max=1), rtol=0, atol=1e-6)
    turned = shifted(torch.ones(1, 1, SIDE, SIDE), SLOTS[:1], "rotation", 5)[0, 0]
    assert turned[0, 0] == 0 and turned[SIDE // 2, SIDE // 2] == 1
    stripes = (torch.arange(SIDE) % 2).float().expand(1, 1, SIDE, SIDE)  # one pixel wide: they vanish at half the side
    coarse = shifted(stripes, SLOTS[:1], "resolution", 1)[..., 4:-4]
    torch.testing.assert_close(coarse, torch.full_like(coarse, 0.5), rtol=0, atol=1e-3)
    point = torch.zeros(1, 1, SIDE, SIDE)
    point[..., SIDE // 2, SIDE // 2] = 1
    spread = shifted(point, SLOTS[:1], "blur", 5)[0, 0].sum(0)
    assert (spread * (torch.arange(SIDE) - SIDE // 2) ** 2).sum() == pytest.approx((0.04 * SIDE) ** 2, rel=0.05)


@pytest.mark.parametrize("name", ["contrast", "brightness", "blur", "rotation"])
def test_images_of_any_size_are_shifted_by_the_same_amount(name):
    for strength in (3, STRENGTHS):
        small, large = ((shifted(images, SLOTS[:2], name, strength) - images).abs().mean().item()
                        for images in (grey_images(side)[:2] for side in (64, 192)))
        assert small == pytest.approx(large, rel=0.03)


def test_answers_cover_every_version_and_slot_in_order():
    class Part:
        def epoch(self, _):
            yield from (Batch(grey_images()[rows], None, SLOTS[rows], 0) for rows in ([0, 1], [2]))

        def __len__(self):
            return 3
    logits = answers(lambda images: images.mean((2, 3)), Part())
    assert logits.shape == (1 + len(SHIFTS) * STRENGTHS, 3, 3)
    for (name, strength), own in zip(VERSIONS, logits):
        expected = shifted(grey_images(), SLOTS, name, strength).mean((2, 3))
        np.testing.assert_allclose(own, expected, atol=1e-4)  # the mean grey of one channel, or of three


def test_scores_and_accuracies_of_a_classifier_made_by_hand():
    right = np.zeros((2, len(VERSIONS), 4), bool)
    right[:, 0] = [True, True, True, False]
    right[1, 0, 3] = True  # for the second seed, all are right
    place = VERSIONS.index(("noise", 1))
    right[0, place:place + 2, 0] = True  # one image is right at two strengths of noise
    right[1, VERSIONS.index(("rotation", 5))] = True
    found = accuracies(right)
    assert scores(right[0])[COLUMNS.index("noise")].tolist() == [0.4, 0, 0, 0]
    assert scores(right[0])[-1] == pytest.approx([2 / 30, 0, 0, 0])
    assert found["n"] == 2 and found["mean"]["clean"] == pytest.approx({"mean": 0.875, "sd": 0.125 * 2**0.5})
    assert [own["mean"] for own in found["accuracy"]["noise"]] == [0.125, 0.125, 0, 0, 0]
    assert found["accuracy"]["rotation"][4] == pytest.approx({"mean": 0.5, "sd": 0.5**0.5})
    assert found["mean"]["noise"]["mean"] == pytest.approx(0.05) and found["mean"]["rotation"]["mean"] == pytest.approx(0.1)
    assert found["mean"]["all"]["mean"] == pytest.approx((2 / 120 + 4 / 120) / 2)
    assert found["retained"]["mean"] == pytest.approx((2 / 120 / 0.75 + 4 / 120) / 2)
    assert accuracies(right[:1])["mean"]["clean"]["sd"] is None and accuracies(right[:, ::-1])["retained"] is None


@pytest.fixture
def runs(prepared):
    """Prepare a pair, its student trained alone, and a second seed of the student.

    The second seed has the same teacher. It is a copy of the first with other weights.
    """
    words = ["--max-steps", "2", "--epochs", "1"]
    prepared([("distill", [*PAIR, *words]), ("train_teacher", ["--model", "kdtiny", *TINY, *words])])
    shutil.copytree(RUN, RUN1)
    model = checkpoint.load(RUN / "model.pt", "model")
    model["state_dict"]["fc.bias"] += torch.arange(7) / 10
    checkpoint.save(RUN1 / "model.pt", {key: value for key, value in model.items() if key != "format"})
    change(RUN1, "settings", seed=1)
    change(RUN1, "student", weights_hash=model_file.state_hash(model["state_dict"]))


def change(run, section, **values):
    """Change values in a section of a report."""
    report = json.loads((run / "report.json").read_text())
    report[section] |= values
    (run / "report.json").write_text(json.dumps(report))


def taught_by_both():
    """Copy the first student's run as if kdwide and kdtiny (weights 0.3 and 0.7) had taught it."""
    shutil.copytree(RUN, BOTH)
    [member] = reports.read(RUN)["teacher"]["members"]
    other = {"name": "kdtiny", "architecture": "kdtiny", "source": str(ALONE.relative_to("runs")), "weight": 0.7,
             "hash": reports.read(ALONE)["student"]["weights_hash"]}
    change(BOTH, "teacher", name="kdwide+kdtiny", members=[member | {"weight": 0.3}, member | other])
    change(BOTH, "settings", tag="both")


@pytest.mark.draws
def test_runs_with_their_teachers_and_the_student_alone(runs, capsys):
    taught_by_both()
    result = write_shift([RUN, RUN1, RUN1, BOTH, TEACHER], HOW)
    assert result == json.loads(Path("runs/shift.json").read_text()) and Path("runs/shift.png").stat().st_size > 30_000
    rows = {row["caption"]: row for row in result["networks"]}
    assert {caption: (row["kind"], row["seeds"]) for caption, row in rows.items()} == {
        "kdwide (teacher)": ("teacher", [0]), "kdtiny (teacher)": ("teacher", [0]),
        "kdwide+kdtiny (teachers together, both)": ("teachers together", [0]), "kdtiny (baseline)": ("alone", [0]),
        "kdtiny <- kdwide, normal": ("distilled", [0, 1]), "kdtiny <- kdwide+kdtiny, normal, both": ("distilled", [0])}
    # On clean images, every network is as accurate as its own report says. The teachers together
    # are as accurate as a mixture of their logits, computed by hand from their predictions.
    for caption, folder in (("kdwide (teacher)", TEACHER), ("kdtiny (baseline)", ALONE),
                            ("kdtiny <- kdwide+kdtiny, normal, both", BOTH)):
        reported = reports.read(folder)["results"]["best"]["test_accuracy"]
        assert rows[caption]["mean"]["clean"] == {"mean": pytest.approx(reported), "sd": None}
    predictions = [read_predictions(folder) for folder in (TEACHER, ALONE)]
    odds = [np.exp(own.logits.astype(float)) for own in predictions]
    mixed = sum(share * own / own.sum(1, keepdims=True) for share, own in zip((0.3, 0.7), odds))
    together = rows["kdwide+kdtiny (teachers together, both)"]["mean"]["clean"]["mean"]
    assert together == pytest.approx((mixed.argmax(1) == predictions[0].labels).mean())
    assert [(one["of"], one["minus"], one["seeds"]) for one in result["differences"]] == [
        ("kdtiny <- kdwide, normal", "kdtiny (baseline)", [0]),
        ("kdtiny <- kdwide+kdtiny, normal, both", "kdtiny (baseline)", [0]),
        ("kdtiny <- kdwide+kdtiny, normal, both", "kdtiny <- kdwide, normal", [0])]
    assert result["differences"][2]["gaps"]["all"]["mean"] == 0  # the same weights
    out = capsys.readouterr().out
    [missing] = result["left_out"]
    assert out.count(missing) == 2 and "trained alone" in missing and "kdtiny/seed1" in missing  # when it is found, and in the file
    text = Path("runs/shift.md").read_text()
    assert text in out and f"| rotation (degrees) {' ' * 20} | clean" in text
    assert "kdtiny <- kdwide, normal minus kdtiny (baseline) (n = 1)" in text and "no verdict: 1 seed" in text


def test_every_member_of_an_ensemble_is_mixed_in_every_version(runs, monkeypatch):
    taught_by_both()
    random = np.random.default_rng(0)
    logits = {name: random.normal(0, 3, (len(VERSIONS), 28, 7)).astype(np.float32) for name in ("kdwide", "kdtiny")}
    monkeypatch.setattr("kd.studies.shift.answers", lambda network, views: logits[network.name])
    result = write_shift([BOTH], HOW)
    [row] = [row for row in result["networks"] if row["kind"] == "teachers together"]
    shares = {name: np.exp(own) / np.exp(own).sum(2, keepdims=True) for name, own in logits.items()}
    labels = read_predictions(RUN).labels
    right = (0.3 * shares["kdwide"] + 0.7 * shares["kdtiny"]).argmax(2) == labels
    assert [own["mean"] for own in row["accuracy"]["rotation"]] == pytest.approx(right[-STRENGTHS:].mean(1))
    assert row["mean"]["all"]["mean"] == pytest.approx(right[1:].mean())


def distilled(caption, seed, *teachers):
    """Return an entry of network `a`, taught by networks with these hashes."""
    return Entry(caption, "distilled", seed, {"student": {"name": "a"}, "settings": {"tag": ""},
                                              "teacher": {"members": [{"hash": name} for name in teachers]}}, [])


def steady(rows):
    """Return that no network predicts one class in any version."""
    return {caption: {seed: np.zeros(len(VERSIONS), bool) for seed in row} for caption, row in rows.items()}


def test_differences_pair_seeds_and_images():
    every = np.ones((len(VERSIONS), 4), bool)
    rows = {"a (baseline)": {0: ~every, 1: every}, "a <- b, normal": {1: every.copy(), 2: every}}
    rows["a <- b, normal"][1][VERSIONS.index(("blur", 2)), :2] = False
    patients = np.array(["p", "p", "q", "r"])
    [found] = differences([distilled("a <- b, normal", seed, "b") for seed in (1, 2)], rows, steady(rows), patients)
    assert found["seeds"] == [1] and found["gaps"]["clean"]["mean"] == 0
    assert found["gaps"]["blur"]["mean"] == pytest.approx(-0.1) and found["gaps"]["all"]["mean"] == pytest.approx(-0.1 / 6)
    assert found["gaps"]["blur"]["says"] == "no verdict: 1 seed" and found["gaps"]["blur"]["patients"] == 3
    more = {"a <- b, normal": {2: every}} | rows
    assert differences([distilled("a <- b, normal", 2, "b")], more, steady(more), patients) == []
    alone = differences([distilled("a <- b, normal", 1, "b")], rows, steady(rows), np.array(["p"] * 4))
    assert set(alone[0]["gaps"].values()) == {None}  # for one patient, no interval is defined


def test_a_network_that_predicts_one_class_on_shifted_images_gets_no_verdict_there():
    random = np.random.default_rng(0)
    rows = {name: {seed: random.random((len(VERSIONS), 60)) < share for seed in (0, 1, 2)}
            for name, share in (("a (baseline)", 0.9), ("a <- b, normal", 0.3))}
    collapsed = steady(rows)
    collapsed["a <- b, normal"][1][VERSIONS.index(("noise", 5))] = True
    [found] = differences([distilled("a <- b, normal", seed, "b") for seed in (0, 1, 2)], rows, collapsed, np.arange(60))
    says = {column: gap["says"] for column, gap in found["gaps"].items()}
    assert says["noise"] == says["all"] == "no verdict: 1 network predicts one class"
    assert {word for column, word in says.items() if column not in ("noise", "all")} == {"worse"}


def test_several_teachers_are_compared_with_a_single_one_of_them():
    rows = {caption: {0: np.ones((len(VERSIONS), 4), bool)} for caption in ("a <- b", "a <- c", "a <- b+d", "a <- e+f")}
    entries = [distilled("a <- b", 0, "b"), distilled("a <- c", 0, "c"), distilled("a <- b+d", 0, "b", "d"),
               distilled("a <- e+f", 0, "e", "f")]
    assert [(one["of"], one["minus"]) for one in differences(entries, rows, steady(rows), np.arange(4))] == [("a <- b+d", "a <- b")]


@pytest.mark.parametrize("key, value", [("split_hash", "0"), ("content_hash", "1"), ("image_size", 64)])
def test_runs_of_other_test_images_are_refused(runs, key, value):
    change(RUN1, "data", **{key: value})
    with pytest.raises(Problem, match=f"{RUN1}.*its {key} is {value}"):
        write_shift([RUN, RUN1], HOW)
    assert not Path("runs/shift.json").exists()


def test_data_that_has_changed_is_refused(runs):
    change(TEACHER, "settings", synthetic_seed=1)
    with pytest.raises(Problem, match="test images of run .* cannot be found, or their content has"):
        write_shift([TEACHER], HOW)


def test_teachers_and_baselines_that_do_not_fit_are_excluded(runs):
    taught_by_both()
    change(ALONE, "data", split_hash="0")
    shutil.rmtree(TEACHER)
    entries, left_out = collect([RUN, BOTH])
    assert {entry.kind for entry in entries} == {"teacher", "distilled"}  # neither the teachers together nor the student alone
    assert len(left_out) == 4 and sum("no finished run" in text for text in left_out) == 2
    change(ALONE, "student", weights_hash="0")
    assert any("its weights are 0, but" in text for text in collect([BOTH])[1])


def test_the_baseline_with_the_runs_own_tag_comes_first(runs):
    taught_by_both()
    tagged = DATA / "teacher-both/kdtiny/seed0"
    shutil.copytree(ALONE, tagged)
    change(tagged, "settings", tag="both")
    captions = [entry.caption for entry in collect([BOTH])[0]]
    assert "kdtiny (baseline, both)" in captions and "kdtiny (baseline)" not in captions
    pairs = [(one["of"], one["minus"]) for one in write_shift([BOTH, RUN], HOW)["differences"]]
    both, single = "kdtiny <- kdwide+kdtiny, normal, both", "kdtiny <- kdwide, normal"
    assert pairs == [(single, "kdtiny (baseline)"), (both, "kdtiny (baseline, both)"), (both, single)]


def test_a_teacher_that_was_a_student_keeps_its_own_row(runs):
    again = DATA / "self/kdtiny-generation1-kdtiny/seed0"
    shutil.copytree(RUN1, again)
    [member] = reports.read(RUN)["teacher"]["members"]
    own = {"name": "kdtiny", "source": str(RUN.relative_to("runs")), "hash": reports.read(RUN)["student"]["weights_hash"]}
    change(again, "teacher", name="kdtiny-generation1", members=[member | own])
    change(again, "settings", mode="self", seed=0)
    captions = [entry.caption for entry in collect([again, RUN])[0]]
    assert captions == ["kdwide (teacher)", "kdtiny (baseline)", "kdtiny <- kdwide, normal", "kdtiny <- kdtiny-generation1, self"]


def test_other_weights_of_the_same_caption_and_seed_are_reported(runs):
    change(RUN1, "settings", seed=0)
    entries, left_out = collect([RUN, RUN1])
    assert [entry.caption for entry in entries].count("kdtiny <- kdwide, normal") == 1
    assert any("has other weights than" in text for text in left_out)


def test_a_model_that_does_not_match_its_report_is_refused(runs):
    shutil.copy(RUN1 / "model.pt", RUN / "model.pt")
    with pytest.raises(Problem, match="Restore both") as caught:
        write_shift([RUN], HOW)
    assert caught.value.code == BAD_CHECKPOINT


def test_other_images_are_refused():
    with pytest.raises(Problem, match="--dataset"):
        write_shift([RUN], Judging(dataset="folder"))
