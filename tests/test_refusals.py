"""Bad input leads to one clear line and its exit code, in every command, before hours are spent."""

import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY
from faults import in_child
from PIL import Image

from kd.data.readers import folder
from kd.data.store import Store
from kd.reports import report as reports
from kd.system import checkpoint
from kd.system.errors import run_main

ALONE = ["--model", "kdtiny", *TINY]
STUDENT_ALONE = DATA / "teacher/kdtiny/seed0"


class Bomb:
    """An object that creates a file when an unsafe loader unpickles it."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


def plant(path, kind):
    """Write a file that runs code when it is unpickled: a zip, torch's legacy format, or a bare pickle."""
    if kind == "raw":
        path.write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    else:
        torch.save({"state_dict": Bomb(), "weight": torch.ones(2)}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.case(10)
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw"])
def test_no_command_runs_code_from_a_file(script, injected, kind):
    plant(Path("bomb.pt"), kind)
    script("train_teacher", ["--model", "kdwide", *TINY])
    script("train_teacher", ALONE)
    script("distill", [*PAIR, "--mode", "normal", "--max-minutes", "0"])
    plant(RUN / "resume.pt", kind)
    plant(STUDENT_ALONE / "model.pt", kind)
    commands = [("distill", [*PAIR, "--mode", "normal"]), ("evaluate", [STUDENT_ALONE]),
                ("distill", [*PAIR, "--mode", "normal", "--tag", "a", "--teacher-checkpoint", "bomb.pt"]),
                ("train_teacher", [*ALONE, "--tag", "b", "--weights", "bomb.pt"]),
                ("distill", ["--teacher", "kdtiny", "--student", "kdwide", "--mode", "reverse", *TINY])]
    for name, argv in commands:
        code, out = script(name, argv)
        assert code == 4 and "more than weights" in out.splitlines()[-1], out
    assert not Path("exploded").exists()
    injected(len(commands))


@pytest.fixture
def trained(prepared):
    """Prepare a finished run, and return a function that changes the content of its model.pt."""
    prepared([("train_teacher", ["--model", "kdwide", *TINY])])

    def change(function):
        content = checkpoint.load(TEACHER / "model.pt")
        function(content)
        torch.save(content, TEACHER / "model.pt")
    return change


def reversed_classes(content):
    content["classes"] = content["classes"][::-1]


@pytest.mark.case(11, 21)
@pytest.mark.parametrize("change, words", [
    (reversed_classes, ["'wrist', 'shoulder'", "'elbow', 'finger'"]),
    (lambda content: content["classes"].pop(), ["fc.weight: file has (7, 192), network has (6, 192)"]),
    (lambda content: content.update(architecture="kdtiny"), ["kdtiny", "(12, 3, 3, 3)"]),
    (lambda content: content["state_dict"].update({"conv.weight": torch.ones(12, 1, 3, 3)}), ["(12, 1, 3, 3)", "(12, 3, 3, 3)"]),
    (lambda content: content.update(state_dict={f"module.{k}": v for k, v in content["state_dict"].items()}), ["module."]),
    (lambda content: content.update(format=2), ["format 2", "up to 1"]),
    (lambda content: content.pop("input"), ["missing: ['input']"]),
    (lambda content: content["input"].pop("mean"), ["missing: ['mean']"]),
    (lambda content: content.update(classes=5), ["classes is int"]),
    (lambda content: content.update(classes=["a", 7]), ["classes"]),
    (lambda content: content.update(name="nosuch", architecture="nosuch"), ["Network 'nosuch'"]),
    (lambda content: content.update(state_dict={"a": 3}), ["state_dict"]),
    (lambda content: content["data"].update(patients=[]), ["patients is list"]),
    (lambda content: content["data"]["patients"].update(train=[[1]]), ["patients.train"]),
    (lambda content: content["input"].update(std=[0.0, 1.0, 1.0]), ["std"]),
    (lambda content: content["state_dict"].update({"fc.bias": torch.zeros(7).to_sparse()}), ["sparse"])])
def test_a_model_that_does_not_fit_is_refused_with_both_sides_named(script, trained, change, words):
    trained(change)
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code in (2, 4) and all(word in out.splitlines()[-1] for word in words), out


@pytest.mark.case(19)
def test_a_teacher_with_nan_weights_is_refused_before_the_first_step(script, trained):
    trained(lambda content: content["state_dict"]["fc.bias"].fill_(float("nan")))
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 3 and "Teacher kdwide" in out and "not finite for 28 of 28 images" in out and "step 0" in out
    assert "learning rate 0.001" in out and not list(RUN.glob("resume*"))


@pytest.mark.case(19)
def test_a_model_with_nan_weights_is_not_evaluated(script, trained):
    trained(lambda content: content["state_dict"]["fc.bias"].fill_(float("nan")))
    code, out = script("evaluate", [TEACHER])
    assert code == 4 and "logits are not finite" in out.splitlines()[-1]


@pytest.mark.case(15)
def test_a_folder_that_cannot_be_read_is_told(script, picture_tree, monkeypatch):
    root = picture_tree("set", {"a": 12, "b": 12, "c": 12})
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    assert code == 2 and "cannot be read: c (Permission denied)" in out.splitlines()[-1]


@pytest.mark.case(20)
@pytest.mark.parametrize("name, argv", [
    ("train_teacher", ["--weights", "x" * 300]), ("train_teacher", ["--dataset", "mura", "--data-dir", "x" * 300]),
    ("train_teacher", ["--dataset", "folder", "--data-dir", "x" * 300]), ("train_teacher", ["--out", "x" * 300]),
    ("train_teacher", ["--device", "meta"]), ("train_teacher", ["--train-per-class", "1000000000000000"]),
    ("train_teacher", ["--config", "bad.toml"]), ("train_teacher", ["--config", "null.toml"]),
    ("train_teacher", ["--tag", "a\ud800"]),
    ("train_teacher", ["--config", "x" * 300]), ("evaluate", ["x" * 300]), ("evaluate", ["a\0b"])])
def test_arguments_that_no_machine_can_take_are_one_line(name, argv):
    Path("bad.toml").write_text("weight_decay = 1" + "0" * 400)
    Path("null.toml").write_text('data_dir = "a\\u0000b"')
    more = ["--model", "kdtiny", *TINY] if name == "train_teacher" else []
    child = in_child(lambda: __import__(name).main([*more, *argv]))
    assert child.code in (2, 4, 74) and child.err.startswith("error: ") and child.err.count("\n") == 1, child.err


def test_a_closed_stdout_ends_no_training():
    def closed():
        sys.stdout = None
        return run_main(lambda: __import__("train_teacher").main(ALONE))

    assert in_child(closed).code == 0


@pytest.mark.case(19)
def test_a_run_that_diverges_leaves_a_finite_file_to_go_on_from(script):
    argv = [*ALONE, "--save-every-minutes", "0"]
    assert script("train_teacher", [*argv, "--max-minutes", "0"])[0] == 143
    content = checkpoint.load(STUDENT_ALONE / "resume.pt")
    content["state"]["optimizer"]["state"][0]["exp_avg"].fill_(float("inf"))
    checkpoint.save(STUDENT_ALONE / "resume.pt", content)
    code, out = script("train_teacher", argv)
    assert code == 3 and "not finite after step" in out and "(learning rate 0.001)" in out.splitlines()[-1]
    weights = checkpoint.load(STUDENT_ALONE / "resume.pt")["state"]["weights"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.case(24)
@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/x", "file", "file/below"])
def test_an_out_folder_that_cannot_be_is_refused_before_data_are_read(script, out):
    Path("file").touch()
    for name, argv in (("train_teacher", ALONE), ("distill", [*PAIR, "--mode", "normal"])):
        code, text = script(name, [*argv, "--out", out])
        assert code == 74 and "cannot be written" in text.splitlines()[-1] and not Path("cache").exists()
    code, text = script("train_teacher", [*ALONE, "--cache-dir", out])
    assert code == 74 and "cannot be written" in text.splitlines()[-1]


def write_csv(root, text):
    (root / "images.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.case(17)
@pytest.mark.parametrize("text, words", [
    ("image,label\na/image0.png,a\n", ["header 'image,label'", "the column path is missing", "--columns path=NAME"]),
    ("path;label\nnone.png;a\n", ["row 2 'none.png' (no such file)"]),
    ("path,label,path\n", ["header 'path,label,path'", "'path' appears twice"]),
    ("", ["header ''"]), ("path,label\n", ["no rows below its header"]),
    ("path,label\na/image0.png,a\n./a/image0.png,b\n", ["1 image has several labels", "'a/image0.png' (a in row 2, b in row 3)"]),
    ("path,label,split\na/image0.png,a,train\na/image0.png,a,test\n", ["row 3 'a/image0.png' (listed in row 2 with another split)"]),
    ("path,label,pateint\na/image0.png,a,p\nb/image0.png,b,q\n", ["'pateint' (patient)", "--columns patient=pateint"]),
    ("path,label\nnone.png,a\n", ["row 2 'none.png' (no such file)"]),
    ("path,label\nout/none,a\n", ["row 2 'out/none' (no such file)"]),
    ("path,label\na,a\n", ["row 2 'a' (no such file)"]),
    ("path,label,split\na/image0.png,a,holdout\n", ["row 2", "unknown split 'holdout'"]),
    ("path,label\na/image0.png\n", ["row 2", "number of fields differs"]),
    ("path,label\na/image0.png,a\0\n", ["row 2", "NUL"]), ("path,label\na\0b.png,a\n", ["NUL"]),
    ('path,label\n"a/image0.png,a\n', ["cannot be read as CSV"]), (b"path,label\n\xff\xfe.png,a\n", ["row 2 '\xff\xfe.png' (no such file)"]),
    ("path,label\n" + "x" * 300_000 + ",a\n", ["cannot be read as CSV"]), ("path,label\n" + "y" * 5000 + ",a\n", ["row 2"]),
    ("path,label\na/image0.png,\nb/image0.png,b\n", ["only ['b'] found; 1 image has no label in images.csv"]),
    ("path,label\n" + "".join(f"gone{k}.png,a\n" for k in range(25)), ["row 2", "row 11", "(25 in all)"])])
def test_a_bad_table_is_refused_with_row_and_value(script, picture_tree, text, words):
    root = picture_tree("set", {"a": 2, "b": 2})
    (root / "out").symlink_to("/etc")
    write_csv(root, text)
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    line = out.splitlines()[-1]
    assert code == 2 and ("images.csv" in line or "Images in" in line), out
    assert all(word in line for word in words) and not Path("cache").exists() and "\0" not in line, line


@pytest.mark.case(17)
def test_an_unknown_label_is_refused_where_the_classes_are_known(script, picture_tree):
    script("train_teacher", ALONE)
    root = picture_tree("set", {"a": 2})
    write_csv(root, "path,label\na/image0.png,hand\na/image1.png,foot\n")
    code, out = script("evaluate", [STUDENT_ALONE, "--dataset", "folder", "--data-dir", root])
    assert code == 2 and "row 3 'a/image1.png' (unknown label 'foot', the network's classes are elbow" in out.splitlines()[-1]


@pytest.mark.case(17)
def test_byte_order_mark_line_ends_quotes_and_blank_lines_are_no_faults(picture_tree):
    root = picture_tree("set", {"a": 3, "b": 2})
    (root / "a/image0.png").rename(root / "a/one, two.png")
    write_csv(root, '\ufeffpath,label\r\n\r\n"a/one, two.png","sick"\r\n,\r\na/image1.png,"a ""b"""\r\n\r\n')
    index = folder.read(str(root))
    assert [sample.path for sample in index.samples] == ["a/image1.png", "a/one, two.png"]
    assert index.classes == ('a "b"', "sick")


@pytest.mark.case(15)
def test_strange_files_named_as_pictures_are_listed_and_none_hangs(script, picture_tree):
    root = picture_tree("set", {"a": 12, "b": 12})
    for name, target in (("memory", "/proc/self/mem"), ("zero", "/dev/zero"), ("kmsg", "/proc/kmsg"), ("gone", "nowhere")):
        (root / f"a/{name}.png").symlink_to(target)
    os.mkfifo(root / "b/pipe.png")
    (root / "b/folder.png").mkdir()
    with open(root / "b/huge.png", "wb") as file:
        os.truncate(file.fileno(), 3 << 30)
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    assert code == 2 and "gone.png (No such file" in out.splitlines()[-1], out
    (root / "a/gone.png").unlink()
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    line = out.splitlines()[-1]
    assert code == 2 and all(word in line for word in (
        "memory.png (empty)", "zero.png (not a regular file)", "kmsg.png (empty)", "pipe.png (not a regular file)",
        "huge.png (3221225472 bytes, more than 1 GiB)")) and "folder.png" not in line, line


@pytest.mark.case(14)
def test_a_decompression_bomb_takes_no_memory(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    Image.new("1", (20_000, 20_000)).save(root / "a/image0.png")

    def decode():
        import resource
        store = Store(folder.read(str(root)), "cache", 16, "squash", 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            store.ensure(np.arange(2))
        finally:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "KiB more")

    child = in_child(decode)
    assert child.code == 2 and "pixels" in child.err and int(child.out.split()[0]) < 50_000


@pytest.mark.case(16)
def test_names_that_are_not_utf8_train_and_are_escaped(script, picture_tree):
    root = picture_tree("set", {"a": 16, "b": 16})
    os.rename(os.fsencode(root / "b"), os.fsencode(root) + b"/b\xff")
    os.rename(os.fsencode(root / "a/image0.png"), os.fsencode(root) + b"/a/\xfe\x91.png")
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    run = Path("runs/set-patient-32/teacher/kdtiny/seed0")
    assert code == 0 and (run / "report.json").read_bytes().isascii()
    assert reports.read(run)["data"]["classes"] == ["a", "b\udcff"]
    assert r"\udcfe\udc91.png" in (run / "predictions.csv").read_text() + checkpoint.load(run / "model.pt").__repr__()
    code, out = script("evaluate", [run])
    assert code == 0 and "(reproduced)" in out and r"b\udcff" in out
    (root / os.fsdecode(b"a/\xfe\x91.png")).write_bytes(b"")
    child = in_child(lambda: __import__("evaluate").main([str(run)]))
    assert child.code == 2 and r"a/\udcfe\udc91.png (empty)" in child.err


@pytest.mark.case(16)
def test_links_in_circles_count_each_real_file_once(script, picture_tree):
    root = picture_tree("set", {"a": 16, "b": 16})
    (root / "a/up").symlink_to(root)
    (root / "b/self").symlink_to(root / "b")
    (root / "a/loop").symlink_to(root / "a/loop")
    assert len(folder.read(str(root)).samples) == 32


@pytest.mark.case(18)
@pytest.mark.parametrize("counts, words", [
    ({"a": 1}, "only ['a']"), ({"a": 3, "b": 0}, "only ['a']"), ({"a": 1, "b": 1}, "without images of"),
    ({"train/a": 4, "train/b": 0, "test/a": 1, "test/b": 2}, "train split of 'set' without images of b")])
def test_sets_too_small_to_train_on_are_refused(script, picture_tree, counts, words):
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", picture_tree("set", counts)])
    assert code == 2 and words in out.splitlines()[-1]


@pytest.mark.case(18)
def test_a_part_smaller_than_a_batch_and_a_class_that_the_test_part_lacks_give_defined_results(script, picture_tree):
    root = picture_tree("set", {"train/a": 5, "train/b": 4, "valid/a": 1, "valid/b": 1, "test/a": 3})
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root, "--batch-size", "64"])
    report = reports.read(Path("runs/set-patient-32/teacher/kdtiny/seed0"))
    assert code == 0 and report["history"]["steps"] == 2 and report["classification_report"]["b"]["recall"] is None
    assert script("evaluate", ["runs/set-patient-32/teacher/kdtiny/seed0"])[0] == 0


@pytest.mark.case(18)
def test_a_last_batch_of_one_trains_with_batch_normalisation(script, picture_tree):
    root = picture_tree("set", {"train/a": 5, "train/b": 4, "valid/a": 1, "test/b": 1})
    code, out = script("train_teacher", ["--model", "resnet18", *TINY, "--dataset", "folder", "--data-dir", root,
                                         "--batch-size", "4", "--epochs", "1"])
    assert code == 0 and reports.read(Path("runs/set-patient-32/teacher/resnet18/seed0"))["history"]["steps"] == 2


@pytest.mark.case(13)
def test_pictures_of_every_kind_are_read_and_hidden_ones_counted(picture_tree, script):
    root = picture_tree("set", {"a": 12, "b": 12})
    drawing = Image.open(root / "a/image0.png")
    drawing.save(root / "a/image1.png", "JPEG")  # with the wrong extension
    (root / "a/._image0.png").write_bytes(b"\0\5\x16\7")
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    assert code == 0 and "note: 1 hidden or system file was skipped." in out


@pytest.mark.case(29)
def test_a_plain_command_without_network_ends_within_seconds(script, monkeypatch):
    from kd.system import hub
    hub.require_pretrained.cache_clear()
    monkeypatch.setattr(hub, "_answers", lambda address: time.sleep(60))  # like a network that drops all packets
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    argv = [word for word in TINY if word != "--no-pretrained"]
    begun = time.monotonic()
    code, out = script("distill", ["--teacher", "seresnet50", "--student", "resnet18", "--mode", "normal", *argv])
    assert time.monotonic() - begun < 30  # waiting for the network would have taken 60
    assert code == 2 and "--weights FILE or --no-pretrained" in out.splitlines()[-1] and not Path("cache").exists()
