"""Teachers with data settings of their own: the labels they are trained on, and the size of the images they see."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, TINY, same, weights, write_table
from PIL import Image
from test_ranks import by_ranks, team
from torch.nn.functional import avg_pool2d

from kd.config import parsing
from kd.config.layout import RunPaths
from kd.config.resolve import resolve
from kd.config.settings import Data, DistillSettings
from kd.data.augmentation import Augmentation
from kd.data.dataset import open_dataset, read_index
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.reports import report as reports
from kd.runs.data import RunData
from kd.runs.session import Session
from kd.studies import few_labels, modes
from kd.system import ranks
from kd.system.signals import StopSignals
from kd.teachers.outputs import OwnImages

CPU = torch.device("cpu")
FEW = Path("runs/synthetic-patient-32-labels0.3")
LARGE = Path("runs/synthetic-patient-48")
ALL = ["--labeled-fraction", "0.3", "--teacher-labeled-fraction", "1"]
SIZE = ["--teacher-image-size", "48"]
STUDENT = "normal/kdwide-kdtiny/seed0"
TEACHER = "teacher/kdwide/seed0"


def plan_of(*words):
    [settings] = parsing.parse(DistillSettings, [*map(str, words)])
    return resolve(settings)


def own_views(size, epochs_of=24, rows=40, augmentation=Augmentation("light")):
    """Return (augmented views of the student at 24 px, the same views at another size)."""
    index = synthetic.read(112, 0)
    stores = [Store(index, f"cache{number}", side, "squash", 0) for number, side in enumerate((epochs_of, size))]
    for store in stores:
        store.ensure(np.arange(112))
    order = {"batch_size": 12, "seed": 3, "shuffle": True, "augmentation": augmentation, "classes": 7}
    views = Views(stores[0], np.arange(rows), index.labels, device=CPU, **order)
    return views, views.over(stores[1])


# Labels


@pytest.mark.parametrize("more", [{}, {"valid_per_class": 3, "test_per_class": 2}, {"train_per_class": 12}, {"balance": "draw"}])
def test_every_fraction_of_the_labels_has_the_same_validation_and_test_splits(more):
    data = {share: Data(dataset="synthetic", synthetic_images=196, image_size=32, labeled_fraction=share, **more) for share in (1.0, 0.3)}
    whole, few = (open_dataset(one, read_index(one)).splits for one in data.values())
    assert np.array_equal(whole.valid, few.valid) and np.array_equal(whole.test, few.test)
    assert set(few.train) < set(whole.train) or more.get("train_per_class")


@pytest.mark.parametrize("mode", ["normal", "unlabeled"])
def test_the_student_has_the_labels_of_its_fraction_only(mode):
    plan = plan_of(*PAIR, *ALL, *SIZE, "--mode", mode)
    with StopSignals(None) as signals:
        session = Session(signals)
        teachers = session.open(plan.teacher_data)  # even if the teacher's labels are read first
        data = RunData(plan, session)
    kept = np.unique(data.dataset.splits.train)
    hidden = np.setdiff1d(teachers.splits.train, kept)
    labels = teachers.index.labels
    assert len(hidden) > 80 and (labels[hidden] >= 0).all() and (data.dataset.index.labels[hidden] == -1).all()
    assert np.array_equal(data.train.labels.numpy(), labels[data.dataset.splits.train]) and not set(data.train.rows) & set(hidden)
    assert data.unlabeled.labels is None and (data.pool is None or data.pool.labels is None)
    [twin] = {id(store): store for store in data.teachers_stores.values()}.values()
    assert data.train.over(twin).labels is None
    assert data.dataset.split_hash != teachers.split_hash


def test_one_process_reads_the_files_once_and_shares_decoded_images(monkeypatch):
    reads = []
    monkeypatch.setattr("kd.runs.session.read_index", lambda data: reads.append(data) or read_index(data))
    plan = plan_of(*PAIR, *ALL)
    with StopSignals(None) as signals:
        session = Session(signals)
        student, teacher = session.open(plan.settings.data), session.open(plan.teacher_data)
        session.open(plan_of(*PAIR, *ALL, *SIZE).teacher_data)
    assert len(reads) == 1 and student.store is teacher.store and student is session.open(plan.settings.data)


def test_the_missing_teacher_is_the_run_of_train_teacher(script):
    code, out = script("distill", [*PAIR, *ALL, "--labeled-seed", "1"])
    assert code == 0 and f"no teacher in {DATA / TEACHER}: training it first" in out
    assert "data synthetic with 100 % of the labels" in out
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--out", "own"])[0] == 0
    own = Path("own") / DATA.name / TEACHER
    assert same(weights(own), weights(DATA / TEACHER))
    settings = [json.loads((folder / "settings.json").read_text()) for folder in (own, DATA / TEACHER)]
    assert {**settings[0], "out": "runs"} == settings[1]


def test_a_finished_teacher_is_found_and_what_it_knew_is_printed_and_recorded(script):
    assert script("train_teacher", ["--model", "kdwide", *TINY])[0] == 0
    before = (DATA / TEACHER / "report.json").read_bytes()
    code, out = script("distill", [*PAIR, *ALL])
    text = "trained on the labels of 100 % of the train split, the student on those of 30 %"
    assert code == 0 and "training it first" not in out and f"note: Teacher kdwide: {text}." in out
    assert (DATA / TEACHER / "report.json").read_bytes() == before
    report = reports.read(FEW / STUDENT)
    [member] = report["teacher"]["members"]
    assert member["differences"] == [text] and member["source"] == f"{DATA.name}/{TEACHER}"
    assert report["settings"]["teacher_labeled_fraction"] == 1.0 and not list(FEW.glob("teacher"))
    assert report["teacher"]["valid_accuracy"] == reports.read(DATA / TEACHER)["results"]["best"]["valid_accuracy"]


def test_its_student_learns_from_another_teacher_than_without_the_option(script):
    assert script("distill", [*PAIR, *ALL])[0] == 0
    assert script("distill", [*PAIR, *ALL[:2], "--tag", "plain"])[0] == 0
    assert not same(weights(FEW / STUDENT), weights(FEW / "normal-plain/kdwide-kdtiny/seed0"))


@pytest.mark.parametrize("option", [ALL[2:], SIZE])
def test_runs_with_and_without_the_option_do_not_share_a_folder(script, option):
    few = [*PAIR, *ALL[:2], "--max-steps", "1"]
    assert script("distill", few)[0] == 0
    code, out = script("distill", [*few, *option])
    assert code == 2 and f"{option[0].replace('-', '_').strip('_')}: null -> " in out and "Use --tag NAME for a separate folder" in out
    assert script("distill", [*few, *option, "--tag", "own"])[0] == 0
    code, out = script("distill", [*few, "--tag", "own"])
    assert code == 2 and "-> null" in out and "--tag NAME" in out


def test_the_values_of_the_student_change_nothing(script):
    assert script("distill", [*PAIR, "--max-steps", "1"])[0] == 0
    code, out = script("distill", [*PAIR, "--max-steps", "1", "--teacher-labeled-fraction", "1", "--teacher-image-size", "32"])
    assert code == 0 and "already finished" in out
    assert plan_of(*PAIR, *ALL[:2], "--teacher-labeled-fraction", "0.3").teacher_words == ""


def test_the_first_generation_of_a_chain_has_the_teacher_with_own_data(script):
    code, out = script("distill", ["--student", "kdtiny", *TINY, *ALL, *SIZE, "--mode", "self", "--generations", "2"])
    assert code == 0, out
    assert reports.read(LARGE / "teacher/kdtiny/seed0")["settings"]["labeled_fraction"] == 1.0
    first, second = (reports.read(FEW / f"self/{pair}/seed0")["teacher"]["members"][0] for pair in ("kdtiny-kdtiny", "kdtiny-generation1-kdtiny"))
    assert first["source"] == f"{LARGE.name}/teacher/kdtiny/seed0" and len(first["differences"]) == 2
    assert second["source"] == f"{FEW.name}/self/kdtiny-kdtiny/seed0" and second["differences"] == []


def test_a_file_with_all_labels_is_not_foreign_if_that_is_said(script):
    script("train_teacher", ["--model", "kdwide", *TINY, "--max-steps", "1"])
    script("train_teacher", ["--model", "kdwide", *TINY, "--max-steps", "1", *ALL[:2]])
    few = [*PAIR, "--max-steps", "1", *ALL[:2]]
    file = ["--teacher-checkpoint", DATA / TEACHER / "model.pt"]
    assert "was trained on other data" in script("distill", [*few, *file])[1]
    code, out = script("distill", [*few, *file, *ALL[2:]])
    assert code == 0 and "may have been trained on labels that" not in out and "trained on the labels of 100 %" in out
    code, out = script("distill", [*few, "--teacher-checkpoint", FEW / TEACHER / "model.pt", *ALL[2:], "--tag", "few"])
    assert code == 4 and "was trained on other data" in out and "--allow-foreign-teacher" in out


def test_labels_of_a_split_that_leaks_are_refused_before_anything_is_trained(script, labelled):
    rows = [line.split(",") for line in (labelled / "images.csv").read_text().splitlines()[1:]]
    rows = [[path, label, "p5" if path == "x/image15.png" else patient, split] for path, label, patient, split in rows]
    write_table(labelled, rows, "path,label,patient,split")
    words = [*PAIR, "--dataset", "folder", "--data-dir", labelled, "--split", "given", "--max-steps", "1", "--valid-per-class", "1"]
    code, out = script("distill", [*words, *ALL])
    assert code == 4 and "--teacher-labeled-fraction cannot be used with this split" in out and "training it first" not in out


def test_a_part_of_the_labels_of_the_thesis_split_is_refused(script):
    code, out = script("distill", [*PAIR, "--split", "thesis", "--teacher-labeled-fraction", "0.5"])
    assert code == 2 and "--teacher-labeled-fraction is not valid with --split thesis" in out


def test_modes_without_a_trained_teacher_do_not_use_the_options():
    plan = plan_of(*PAIR, *ALL, *SIZE, "--mode", "virtual")
    assert {"--teacher-labeled-fraction", "--teacher-image-size"} <= set(plan.idle) and plan.teacher_data == plan.settings.data
    plan = plan_of(*PAIR, *ALL, *SIZE, "--mode", "random")
    assert "--teacher-labeled-fraction" in plan.idle and plan.teacher_words == "48 px"
    assert (plan.teacher_data.image_size, plan.teacher_data.labeled_fraction) == (48, 0.3)


# Sizes


@pytest.mark.parametrize("augmentation", [Augmentation("light"), Augmentation("strong", (), 1.0)])
def test_at_the_same_size_the_teacher_sees_the_students_images_bit_for_bit(augmentation):
    views, other = own_views(24, augmentation=augmentation)
    own = OwnImages(other)
    assert other.store is not views.store
    for epoch in (0, 3):
        for batch in views.epoch(epoch):
            seen = own(batch)
            assert torch.equal(seen.images, batch.images) and seen.images.data_ptr() != batch.images.data_ptr()
            assert torch.equal(seen.slots, batch.slots) and torch.equal(seen.labels, batch.labels)


def test_at_another_size_the_teacher_sees_the_same_view_of_the_same_image():
    views, other = own_views(48)
    slots = np.arange(40)
    small = [next(views.batches(epoch, [slots])).images[:, 0] for epoch in range(6)]
    for epoch in range(6):
        batch = next(views.batches(epoch, [slots]))
        large = avg_pool2d(OwnImages(other)(batch).images[:, :1], 2)[:, 0]
        errors = torch.stack([(large - one).abs().mean((1, 2)) for one in small])
        others = errors[torch.arange(6) != epoch]
        assert (errors.argmin(0) == epoch).all() and errors[epoch].mean() < 0.5 * others.mean()


def test_the_images_of_the_teacher_are_decoded_at_its_size_and_not_enlarged(picture_tree):
    root = picture_tree("grain", {"a": 12, "b": 12}, size=(48, 48))
    plan = plan_of(*PAIR, *SIZE, "--dataset", "folder", "--data-dir", root)
    with StopSignals(None) as signals:
        data = RunData(plan, Session(signals))
    twin = data.teachers_stores[data.dataset.store]
    row = int(data.dataset.splits.train[0])
    own = np.asarray(Image.open(data.dataset.index.file(row)))
    assert np.array_equal(twin.gather(np.array([row]))[0, 0].numpy(), own) and data.dataset.store.shape == (1, 32, 32)


def test_two_ranks_show_the_teacher_the_images_of_one(tmp_path):
    views, other = own_views(48, rows=45)

    def seen():
        own, found = OwnImages(other), {}
        for batch in views.epoch(2):
            for slot, image in zip(batch.slots.tolist(), own(batch).images):
                found[slot] = image.clone()
        return found
    alone = seen()
    members = team(2, lambda: torch.save(seen(), f"rank{ranks.rank()}.pt"))
    both = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [member.code for member in members] == [0, 0] and both[0].keys() | both[1].keys() == alone.keys()
    assert all(torch.equal(image, alone[slot]) for found in both for slot, image in found.items())


def test_a_run_on_two_ranks_has_such_a_teacher(script):
    members = by_ranks(2, [*PAIR, *ALL, *SIZE])
    assert [member.code for member in members] == [0, 0], members[0].err
    assert reports.read(LARGE / TEACHER)["clock"]["ranks"] == 2
    code, out = script("evaluate", [FEW / STUDENT])
    assert code == 0 and out.count("(reproduced)") == 1


@pytest.mark.parametrize("mode, more", [("normal", []), ("unlabeled", ["--finetune", "kd"]), ("reverse", ["--knowledge", "kd+attention"])])
def test_stored_logits_are_the_live_ones_bit_for_bit(script, mode, more):
    reported = {}
    for name, live in (("live", ["--no-stored-logits"]), ("filling", []), ("stored", [])):
        code, out = script("distill", [*PAIR, *ALL, *SIZE, "--mode", mode, *more, *live, "--out", name])
        assert code == 0, out
        assert name != "stored" or ", 0 computed" in out or "attention" in more[-1]
        run = name / FEW.relative_to("runs") / f"{mode}/kdwide-kdtiny/seed0"
        report = {key: value for key, value in reports.read(run).items() if key not in ("clock", "settings")}
        report["teacher"].pop("remarks")  # that feature maps cannot be stored is said only where logits are
        reported[name] = weights(run), report
    assert same(reported["live"], reported["filling"]) and same(reported["live"], reported["stored"])


def test_its_logits_are_those_of_a_student_at_its_size(script):
    """The views are the same, and so is the key of the stored logits."""
    assert script("distill", [*PAIR, "--image-size", "48"])[0] == 0
    code, out = script("distill", [*PAIR, *SIZE])
    assert code == 0 and ", 0 computed" in out
    teachers = [reports.read(Path("runs") / data / STUDENT)["teacher"] for data in (LARGE.name, DATA.name)]
    assert [one["valid_accuracy"] for one in teachers] == [reports.read(LARGE / TEACHER)["results"]["best"]["valid_accuracy"]] * 2
    assert teachers[0]["hash"] == teachers[1]["hash"]
    assert teachers[1]["members"][0]["differences"] == ["it sees images of 48 pixels, the student of 32"]


@pytest.mark.parametrize("live", [[], ["--no-stored-logits"]], ids=["stored", "live"])
def test_a_run_that_is_stopped_at_every_step_continues_exactly(script, live):
    mode = "unlabeled"
    words = [*PAIR, *ALL, *SIZE, "--mode", mode, "--finetune", "kd", "--epochs", "1", *live]
    assert script("distill", words)[0] == 0
    shutil.copytree(LARGE, "stopped" / LARGE.relative_to("runs"))
    shutil.rmtree("cache/logits")
    for count in range(20):
        code, out = script("distill", [*words, "--out", "stopped", "--max-minutes", "0", "--save-every-minutes", "0"])
        if code == 0:
            break
        assert code == 143
    whole = FEW / f"{mode}/kdwide-kdtiny/seed0"
    run = "stopped" / whole.relative_to("runs")
    assert count > 4 and same(weights(run), weights(whole)) and reports.read(run)["teacher"] == reports.read(whole)["teacher"]


def test_the_pool_has_images_of_both_sizes(script, labelled, clinic):
    words = [*PAIR, "--mode", "unlabeled", "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic,
             "--batch-size", "4", *SIZE, "--labeled-fraction", "0.5", "--teacher-labeled-fraction", "1"]
    found = {}
    for name, more in (("live", ["--no-stored-logits"]), ("filling", []), ("stored", [])):
        code, out = script("distill", [*words, *more, "--out", name])
        assert code == 0 and out.count("unlabelled images:") == 1, out
        [run] = Path(name).glob("*/unlabeled/*/seed0")
        found[name] = weights(run), reports.read(run)["data"]["pool"]
    assert found["live"][1]["of_unlabeled_dir"] == 12 and same(found["live"], found["filling"]) and same(found["live"], found["stored"])


def test_several_teachers_share_the_images_of_their_size(script, monkeypatch):
    calls = []
    batches = Views.batches

    def counted(self, epoch, slots):
        calls.append(self.store.size)
        return batches(self, epoch, slots)
    monkeypatch.setattr(Views, "batches", counted)
    words = ["--teacher", "kdwide+kdtiny", "--student", "kdtiny", *TINY, *SIZE, "--no-stored-logits", "--max-steps", "3"]
    code, out = script("distill", words)
    assert code == 0, out
    for name in ("kdwide", "kdtiny"):
        assert (LARGE / "teacher" / name / "seed0/report.json").exists()
    report = reports.read(DATA / "normal/kdwide+kdtiny-kdtiny/seed0")
    assert len(report["teacher"]["members"]) == 2
    calls.clear()
    assert script("distill", [*words, "--tag", "again"])[0] == 0
    first, steps, evaluations = 1, 3, 2 * 2 + 2  # tried; trained; both teachers on validation and test, and on test again
    assert calls.count(48) <= first + steps + evaluations + 2


def test_maps_of_other_sizes_are_compared(script):
    code, out = script("distill", [*PAIR, *SIZE, "--knowledge", "hint", "--layers", "bn:bn", "--max-steps", "2"])
    assert code == 0, out


def test_a_teacher_that_cannot_process_its_size_is_refused(script, monkeypatch):
    script("train_teacher", ["--model", "kdwide", *TINY, "--image-size", "48", "--max-steps", "1"])
    from conftest import WideNet
    forward = WideNet.forward

    def fixed(self, images):
        assert images.shape[-1] != 48, "48 px are not supported"
        return forward(self, images)
    monkeypatch.setattr(WideNet, "forward", fixed)
    code, out = script("distill", [*PAIR, *SIZE, "--max-steps", "1"])
    assert code == 2 and "cannot process images of 48 pixels" in out and "--teacher-image-size" in out


def test_a_file_of_another_size_suggests_the_option(script):
    script("train_teacher", ["--model", "kdwide", *TINY, "--image-size", "48", "--max-steps", "1"])
    file = ["--teacher-checkpoint", LARGE / TEACHER / "model.pt", "--max-steps", "1"]
    code, out = script("distill", [*PAIR, *file])
    assert code == 0 and "image_size 48 instead of 32 (--teacher-image-size 48 shows it the images at its own size)" in out
    code, out = script("distill", [*PAIR, *file, *SIZE, "--tag", "own"])
    assert code == 0 and "instead of" not in out and "it sees images of 48 pixels, the student of 32" in out


def test_images_that_changed_between_the_sizes_are_refused(script, labelled, monkeypatch):
    real = Session.open

    def changing(self, data):
        dataset = real(self, data)
        if data.image_size == 48:
            dataset.store.hashes[:] += 1
        return dataset
    monkeypatch.setattr(Session, "open", changing)
    code, out = script("distill", [*PAIR, *SIZE, "--dataset", "folder", "--data-dir", labelled])
    assert code == 2 and "changed while they were decoded at 32 and at 48 pixels" in out


# Evaluation


@pytest.fixture
def few(prepared):
    """Prepare students of the same pair with and without a teacher of all labels, two seeds each."""
    commands = []
    for seed in ("0", "1"):
        words = [*PAIR, *ALL[:2], "--epochs", "1", "--seed", seed]
        alone = [*TINY, *ALL[:2], "--epochs", "1", "--seed", seed]
        commands += [("distill", [*words, "--mode", "normal"]), ("distill", [*words, "--mode", "unlabeled"]),
                     ("train_teacher", ["--model", "kdtiny", *alone])]
        for mode in ("normal", "unlabeled"):
            commands += [("distill", [*words, "--mode", mode, *ALL[2:], "--tag", "clinic"])]
        commands += [("distill", [*words, "--mode", "normal", *ALL[2:], *SIZE, "--tag", "large"])]
    prepared(commands)


def test_arms_name_students_whose_teacher_knew_other_labels(few, script):
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 0, out
    groups = {group["tag"]: group for group in json.loads(Path("runs/arms.json").read_text())["groups"]}
    assert groups.keys() == {"", "clinic", "large"} and {group["teacher"] for group in groups.values()} == {"kdwide"}
    plain, own, large = (groups[tag]["rows"][0] for tag in ("", "clinic", "large"))
    counts = {arm: cell["accuracy"]["n"] for arm, cell in plain["cells"].items()}
    assert counts == {"teacher": 2, "alone": 2, "normal": 2, "unlabeled": 2}
    counts = {arm: cell["accuracy"]["n"] for arm, cell in own["cells"].items()}
    assert counts == {"teacher": 2, "teacher (all labels)": 2, "alone": 2, "normal": 2, "unlabeled": 2,
                      "normal (all labels)": 2, "unlabeled (all labels)": 2}
    expected = [reports.read(DATA / f"teacher-clinic/kdwide/seed{seed}")["results"]["best"]["test_accuracy"] for seed in (0, 1)]
    assert own["cells"]["teacher (all labels)"]["accuracy"]["mean"] == pytest.approx(np.mean(expected))
    assert own["images"] == plain["images"] and own["fraction"] == 0.3
    gaps = {(one["of"], one["minus"]): one["gap"] for one in own["gaps"]}
    assert gaps["normal (all labels)", "normal"]["seeds"] == gaps["unlabeled (all labels)", "alone"]["seeds"] == 2
    assert "teacher (all labels, 48 px)" in large["cells"]  # its own run has other images
    assert "| teacher (all labels) | labels only | KD (labelled) |" in out
    assert "KD (labelled), teacher with all labels minus KD (labelled)" in out
    assert "Teacher kdwide (all labels): trained on the labels of 100 % of the train split, the student on those of 30 %." in out
    assert "trained on other labels than theirs" not in out


def test_arms_that_nobody_trained_are_named_only_where_teachers_have_the_students_data():
    every = ["alone", "normal (all labels)", "teacher (all labels)"]
    assert few_labels._names(every) == ["teacher (all labels)", "alone", "normal (all labels)"]
    assert few_labels._names([*every, "normal"]) == [
        "teacher", "teacher (all labels)", "alone", "normal", "unlabeled-only", "unlabeled", "normal (all labels)"]
    assert few_labels._names(["alone"]) == ["teacher", "alone", "normal", "unlabeled-only", "unlabeled"]


@pytest.mark.draws
def test_the_figure_of_the_arms_has_all_of_them(few, script):
    assert script("evaluate", ["--arms", "runs"])[0] == 0
    captions = few_labels._captions({"arms": ["teacher", "teacher (all labels)", "alone", "normal (all labels)"]})
    assert list(captions.values()) == ["labels only", "KD (labelled), teacher with all labels", "teacher", "teacher (all labels)"]
    assert Path("runs/arms-1.png").stat().st_size > 10_000


def test_an_unfinished_student_is_in_its_own_arm(few, script):
    (FEW / "normal-clinic/kdwide-kdtiny/seed1/report.json").unlink()
    script("evaluate", ["--arms", "runs"])
    groups = {group["tag"]: group for group in json.loads(Path("runs/arms.json").read_text())["groups"]}
    states = groups["clinic"]["rows"][0]["unfinished"]
    assert states["normal (all labels)"] == {"interrupted": 1} and states["normal"] == {}


def test_tables_name_the_teachers_and_their_commands_work(few, script):
    shutil.rmtree(FEW / "normal-clinic/kdwide-kdtiny/seed1")
    shutil.rmtree(FEW / "teacher/kdtiny/seed1")
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "kdwide (all labels)" in out and "kdtiny <- kdwide (all labels, 48 px)" in out
    assert "trained on other labels than theirs" not in out and "Teacher kdwide (all labels): trained on the labels of 100 %" in out
    assert "normal, teacher with all labels minus baseline" in out
    commands = {line.strip() for line in out.splitlines() if line.startswith("    python")}
    assert len(commands) >= 2 and not any("--model kdwide" in line for line in commands if "clinic" in line)
    for command in commands:
        words = command.split()
        code, said = script(words[1].removesuffix(".py"), words[2:])
        assert code == 0, (command, said)
    assert reports.read(FEW / "normal-clinic/kdwide-kdtiny/seed1")["settings"]["teacher_labeled_fraction"] == 1.0
    assert "teacher_labeled_fraction" not in (DATA / "teacher-clinic/kdwide/seed1/settings.json").read_text()


def test_runs_of_one_tag_are_told_apart_and_no_command_is_refused(script):
    """In one table: a student with all labels of the teacher, and another student with its own."""
    words = [*TINY, *ALL[:2], "--max-steps", "2"]
    assert script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, *ALL[2:]])[0] == 0
    assert script("distill", ["--teacher", "kdwide", "--student", "kdwide", *words])[0] == 0
    code, out = script("evaluate", ["--tables", "runs"])
    [found] = [one for one in json.loads(Path("runs/tables.json").read_text())["protocols"] if one["tables"]]
    [table] = found["tables"]
    assert [row["teacher"] for row in table["teachers"]] == ["kdwide", "kdwide (all labels)"]
    assert {(cell["student"], cell["teacher"]): cell["n"] for cell in table["cells"]} == {
        ("kdtiny", "kdwide"): 0, ("kdtiny", "kdwide (all labels)"): 1, ("kdwide", "kdwide"): 1, ("kdwide", "kdwide (all labels)"): 0}
    assert not [command for command in table["missing"] if "distill.py" in command]
    [family] = found["effects"]
    assert {row["mode"]: list(row["pairs"]) for row in family["rows"]}["normal"] == ["kdwide <- kdwide"]
    assert any("teacher_labeled_fraction: 1.0, None" in text for text in table["recipes"])


def test_a_later_generation_has_no_note_on_data_of_its_own(script):
    """Its teacher is a student itself, with the data of one."""
    assert script("distill", ["--student", "kdtiny", "--mode", "self", "--generations", "2", *TINY, *ALL, "--max-steps", "2"])[0] == 0
    code, out = script("evaluate", ["--tables", "runs"])
    notes = [line for line in out.splitlines() if line.startswith("Teacher kdtiny")]
    assert code == 0 and len(notes) == 1 and notes[0].startswith("Teacher kdtiny (all labels): trained on the labels of 100 %")


def test_power_keeps_the_teachers_apart(few, script):
    code, out = script("evaluate", ["--power", "runs"])
    found = {study["tag"]: study["mode"] for study in json.loads(Path("runs/power.json").read_text())["studies"] if study["mode"].startswith("normal")}
    assert code == 0 and found == {"": "normal", "clinic": "normal, teacher with all labels", "large": "normal, teacher with all labels, 48 px"}


def test_the_words_on_a_teachers_data_can_be_taken_off_its_name():
    for words in ([*ALL], [*ALL, *SIZE], [*SIZE], ["--teacher-labeled-fraction", "0.25"]):
        [settings] = parsing.parse(DistillSettings, [*PAIR, *words])
        name = modes.meaning_of(settings).teacher
        assert modes.without_words(name) == "kdwide" and modes.words_of(name) == resolve(settings).teacher_words != ""
    for plain in ("kdwide", "local-dir:my (copy)", "a+b"):
        assert modes.without_words(plain) == plain and modes.words_of(plain) == ""


def test_a_card_measures_both_at_their_own_size(script):
    assert script("distill", [*PAIR, *SIZE, "--max-steps", "1"])[0] == 0
    code, out = script("evaluate", ["--card", DATA / STUDENT])
    card = json.loads(RunPaths(DATA / STUDENT).card.read_text())
    assert code == 0 and "teacher 48 px, student 32 px" in out
    assert (card["teacher"]["image_size"], card["student"]["image_size"]) == (48, 32)
    large = script("distill", [*PAIR, "--image-size", "48", "--max-steps", "1"])[0]
    assert large == 0 and script("evaluate", ["--card", LARGE / STUDENT])[0] == 0
    assert card["teacher"]["gmac"] == json.loads(RunPaths(LARGE / STUDENT).card.read_text())["teacher"]["gmac"]


def test_shifted_images_are_shown_to_each_at_its_own_size(script):
    assert script("distill", [*PAIR, *ALL, *SIZE])[0] == 0
    code, out = script("evaluate", ["--shift", FEW / STUDENT, "--device", "cpu"])
    assert code == 0 and "note: kdwide (teacher, all labels, 48 px) sees images of 48 pixels, not of 32." in out
    networks = {one["caption"]: one for one in json.loads(Path("runs/shift.json").read_text())["networks"]}
    clean = networks["kdwide (teacher, all labels, 48 px)"]["mean"]["clean"]["mean"]
    assert clean == pytest.approx(reports.read(LARGE / TEACHER)["results"]["best"]["test_accuracy"])
    assert "kdtiny <- kdwide (all labels, 48 px), normal" in networks
