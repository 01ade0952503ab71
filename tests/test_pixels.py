"""Images of every depth and format show the same film, or are refused by name."""

import io
import json

import films
import numpy as np
import pytest
import torch
from PIL import Image

from kd.config.settings import Data
from kd.data import ranges
from kd.data.dataset import open_dataset, read_index
from kd.data.images import pixels
from kd.data.images.pixels import Range
from kd.system.errors import Problem
from kd.system.names import NOT_STORED

FLAGS = ["--dataset", "folder", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--no-pretrained", "--device", "cpu"]


def write_set(kind: str, root, patients: int = 12):
    """Write films of 2 classes with known patients in one format; return the reference, uint8 [N, 128, 128]."""
    greys, lines = [], ["path,label,patient"]
    root.mkdir(parents=True)
    for number in range(2 * patients):
        greys.append(films.film(number * 4))
        write = films.write_dicom if kind in films.DICOM_FORMATS else films.write
        write(kind, root / f"{number:03d}", greys[-1])
        name = next(root.glob(f"{number:03d}*")).name
        lines.append(f"{name},{'ab'[number % 2]},P{number}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    return np.stack(greys)


def opened(root, **more):
    data = Data(dataset="folder", data_dir=str(root), image_size=128, cache_dir="cache", **more)
    return open_dataset(data, read_index(data))


def require(kind):
    """Skip a test without the packages that read this format."""
    if kind in films.DICOM_FORMATS:
        pytest.importorskip("pydicom")
    if kind == "dicom-jpeg2000":
        pytest.importorskip("openjpeg")


@pytest.mark.parametrize("kind", [*films.FORMATS, *films.DICOM_FORMATS])
def test_the_same_film_gives_the_same_image_in_every_format(tmp_path, kind):
    require(kind)
    greys = write_set(kind, tmp_path / "set")
    dataset = opened(tmp_path / "set")
    seen = dataset.store.images[:, 0].astype(int)
    # A film of 10 or 12 bits keeps its value up to rounding; one level is lost where 12 bits are measured as a range.
    assert np.abs(seen - greys).max() <= 1 and len(np.unique(seen)) > 250
    expected = {"png8": [], "tiff8": [], "float-unit": ["float"], "float": ["float"]}.get(kind, ["integer"])
    expected = [] if kind in films.DICOM_FORMATS else expected  # DICOM files state their range
    assert sorted(dataset.describe()["ranges"]) == expected


@pytest.mark.parametrize("kind, lowest, highest, expected", [
    ("integer", 0, 1023, (0, 1023)), ("integer", 3, 4000, (0, 4095)), ("integer", 0, 200, (0, 255)),
    ("integer", 0, 65535, (0, 65535)), ("integer", -1024, 3000, (-1024, 3000)), ("float", 0, 1, (0, 1)),
    ("float", 0.2, 0.7, (0, 1)), ("float", 0, 4000.5, (0, 4000.5)), ("float", -1, 1, (-1, 1)), ("float", 0, 1.0003, (0, 1.0003))])
def test_a_range_is_that_of_the_bits_in_use_or_of_the_values(kind, lowest, highest, expected):
    assert pixels.range_for(kind, lowest, highest, "measured")[:2] == expected


def test_the_range_is_measured_over_the_train_split_and_values_beyond_it_are_counted(tmp_path):
    write_set("png12", tmp_path / "set")
    first = opened(tmp_path / "set")
    row = first.splits.test[0]
    values = films.deep(films.film(row * 4), 12) * 3
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "set" / f"{row:03d}.png")
    dataset = opened(tmp_path / "set")
    assert dataset.describe()["ranges"]["integer"] == [0.0, 4095.0, "measured over the train split"]
    assert "1 image has values outside this range, which are clipped." in dataset.describe()["notes"]
    row = first.splits.train[0]
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(tmp_path / "set" / f"{row:03d}.png")
    assert opened(tmp_path / "set").describe()["ranges"]["integer"][:2] == [0.0, 65535.0]


def test_the_range_is_measured_only_once(tmp_path, monkeypatch):
    write_set("png12", tmp_path / "set")
    opened(tmp_path / "set")
    monkeypatch.setattr(ranges, "measure", lambda *_: pytest.fail("measured again"))
    opened(tmp_path / "set")


def test_bits_set_the_range_and_values_above_it_are_refused(tmp_path):
    greys = write_set("png12", tmp_path / "set")
    dataset = opened(tmp_path / "set", bits=16)
    assert dataset.store.images.max() == 4095 // 257 + 1 or dataset.store.images.max() == 16
    assert np.abs(opened(tmp_path / "set", bits=12).store.images[:, 0].astype(int) - greys).max() <= 1
    with pytest.raises(Problem, match=r"000.png \(values 0 to 4095, but --bits 10 means 0 to 1023\)"):
        opened(tmp_path / "set", bits=10)


def saved(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("values", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(values):
    image = np.ones((8, 8), np.float32)
    image[3, 4] = values
    with pytest.raises(ValueError, match="1 of its values are NaN or infinite"):
        pixels.decode(saved(Image.fromarray(image), "tiff"))


def shown(content, **ranges):
    image, _ = pixels.to_8_bits(pixels.decode(content), ranges)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode, colour, expected", [
    ("RGBA", (200, 100, 50, 0), 0), ("RGBA", (200, 200, 200, 255), 200), ("LA", (100, 51), 20), ("LA", (90, 255), 90)])
def test_transparent_images_are_shown_on_black(mode, colour, expected):
    assert (shown(saved(Image.new(mode, (4, 4), colour))) == expected).all()


def test_a_transparent_colour_of_a_palette_or_of_grey_is_black():
    image = Image.fromarray(np.array([[10, 200]], np.uint8))
    assert shown(saved(image, transparency=200))[0, :, 0].tolist() == [10, 0]
    palette = image.convert("P")
    assert shown(saved(palette, transparency=200))[0, :, 0].tolist() == [10, 0]


@pytest.mark.parametrize("channels, value, expected", [
    (4, (4000, 4000, 4000, 0), 0), (4, (4000, 4000, 4000, 32768), 2000), (3, (4000,) * 3, 4000), (1, (4000,), 4000)])
def test_16_bit_colour_and_alpha_keep_all_bits(channels, value, expected):
    values = np.broadcast_to(np.array(value, np.uint16), (3, 5, channels))
    decoded = pixels.decode(films.png(values))
    assert decoded.values.shape[:2] == (3, 5) and np.abs(decoded.values.astype(int) - expected).max() <= 1


def test_16_bit_grey_with_alpha_is_refused_by_name():
    with pytest.raises(ValueError, match="layout that is not supported; save it as a 16-bit RGB PNG"):
        pixels.decode(films.png(np.zeros((4, 4, 2), np.uint16)))


@pytest.mark.parametrize("photometric, expected", [(1, [0, 128, 255]), (0, [255, 127, 0])])
def test_white_is_zero_is_turned_over_at_16_bits(photometric, expected):
    values = np.array([[0, 2048, 4095]], np.uint16)
    seen = shown(films.tiff(values, photometric=photometric), integer=Range(0, 4095, ""))
    assert seen[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind, options", [
    ("gif", {"save_all": True}), ("png", {"save_all": True}), ("webp", {"save_all": True}), ("tiff", {"save_all": True})])
def test_animated_and_multi_page_files_are_refused(kind, options):
    frames = [Image.fromarray(films.film(row, 16)) for row in (0, 8, 16)]
    with pytest.raises(ValueError, match="3 pages or frames, but one image is needed"):
        pixels.decode(saved(frames[0], kind, append_images=frames[1:], **options))


def test_the_first_image_of_an_mpo_photograph_is_read():
    first, second = (Image.fromarray(np.full((16, 16, 3), grey, np.uint8)) for grey in (200, 10))
    content = saved(first, "mpo", save_all=True, append_images=[second])
    assert abs(int(shown(content).mean()) - 200) <= 1


def test_an_eps_file_named_png_starts_no_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"
    with pytest.raises(Exception) as caught:
        pixels.decode(content)
    assert pixels.why_unreadable(caught.value) == "not an image of a known format"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_image_is_turned_upright_as_pillow_turns_one_of_8_bits(orientation):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    upright = []
    for values in (grey, grey.astype(np.uint16) * 257):
        image = Image.fromarray(values)
        exif = image.getexif()
        exif[0x0112] = orientation
        upright.append(shown(saved(image, "png", exif=exif), integer=Range(0, 65535, ""))[:, :, 0])
    assert np.array_equal(upright[0], upright[1]) and (orientation < 5) == (upright[1].shape == (2, 3))


def test_a_large_film_is_converted_in_strips(monkeypatch):
    values = np.arange(40_000, dtype=np.uint16).reshape(200, 200)
    whole = pixels._scaled(values, 0, 65535)
    monkeypatch.setattr(pixels, "STRIP", 700)
    assert np.array_equal(pixels._scaled(values, 0, 65535), whole)
    assert np.array_equal(whole, np.round(values / 257).astype(np.uint8))


def test_a_network_is_applied_to_images_of_another_depth(tmp_path, script):
    for kind in ("png12", "png8", "png16", "float-unit"):
        write_set(kind, tmp_path / kind)
    run = "runs/png12-patient-32/teacher/kdtiny/seed0"
    assert script("train_teacher", ["--model", "kdtiny", "--data-dir", "png12", *FLAGS])[0] == 0
    assert (tmp_path / run / "model.pt").is_file()
    answers = {}
    for kind, more in (("png12", []), ("png8", []), ("float-unit", []), ("png16", ["--bits", "16"])):
        code, said = script("evaluate", [run, "--dataset", "folder", "--data-dir", kind, "--device", "cpu", *more])
        assert code == 0, said
        file = next((tmp_path / run).glob(f"evaluation-{kind}-*/predictions.csv"))
        lines = file.read_text().splitlines()[1:]
        answers[kind] = np.array([line.split(",")[-4:-2] for line in lines], dtype=float)
    for kind in ("png8", "float-unit", "png16"):
        assert np.abs(answers[kind] - answers["png12"]).max() < 0.05
    code, said = script("evaluate", [run, "--dataset", "folder", "--data-dir", "png16", "--device", "cpu"])
    assert code == 2 and "has 24 images with many values outside the range of the run's own images (0 to 4095)" in said and "--bits 16" in said
    write_set("signed", tmp_path / "signed")
    code, said = script("evaluate", [run, "--dataset", "folder", "--data-dir", "signed", "--device", "cpu"])
    assert code == 2 and "They have values from -1024 to 3071: convert them" in said
    write_set("png10", tmp_path / "png10")
    code, said = script("evaluate", [run, "--dataset", "folder", "--data-dir", "png10", "--device", "cpu"])
    assert code == 0 and "note: All 24 images with more than 8 bits in --data-dir 'png10' are darker than half of the range" in said and "--bits 10." in said


def test_16_bit_colour_is_seen_as_colour(tmp_path):
    (tmp_path / "set").mkdir()
    lines = ["path,label"]
    for number in range(12):
        values = np.zeros((16, 16, 3), np.uint16)
        values[..., number % 2] = 4000 - number
        films.write_bytes(tmp_path / "set" / f"{number}", "png", films.png(values))
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    (tmp_path / "set/images.csv").write_text("\n".join(lines) + "\n")
    assert opened(tmp_path / "set").store.channels == 3


def test_a_premultiplied_16_bit_tiff_is_refused_by_name():
    content = films.tiff(np.full((4, 4, 4), 1000, np.uint16))
    changed = content.replace(b"\x53\x01", b"\x52\x01", 1)  # the tag of the sample format becomes that of the extra sample
    assert changed != content and Image.open(io.BytesIO(changed)).mode == "RGBA"
    with pytest.raises(ValueError, match="layout that is not supported"):
        pixels.decode(changed)


def test_bits_are_strict_whatever_is_in_the_cache(tmp_path):
    write_set("png12", tmp_path / "set")
    row = opened(tmp_path / "set").splits.test[0]
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(tmp_path / "set" / f"{row:03d}.png")
    assert opened(tmp_path / "set").describe()["ranges"]["integer"][:2] == [0, 4095]
    with pytest.raises(Problem, match="but --bits 12 means 0 to 4095"):
        opened(tmp_path / "set", bits=12)


def test_a_range_measured_beyond_the_train_split_is_measured_again_when_these_images_change(tmp_path):
    write_set("png8", tmp_path / "set")
    rows = opened(tmp_path / "set").splits.test
    for value in (4000, 60_000):
        for row in rows:
            Image.fromarray(np.full((16, 16), value + row, np.uint16)).save(tmp_path / "set" / f"{row:03d}.png")
        found = opened(tmp_path / "set").describe()["ranges"]["integer"]
        assert found[:2] == [0, 4095 if value == 4000 else 65535] and found[2].startswith("measured over all images used")


def test_the_range_does_not_depend_on_the_fraction_of_labels(tmp_path):
    write_set("png12", tmp_path / "set", patients=30)
    dataset = opened(tmp_path / "set", labeled_fraction=0.1)
    hidden = np.setdiff1d(dataset.splits.pool, dataset.splits.train)[0]
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(tmp_path / "set" / f"{hidden:03d}.png")
    for fraction in (0.1, 1.0):
        assert opened(tmp_path / "set", labeled_fraction=fraction).describe()["ranges"]["integer"][1] == 65535


def test_unlabelled_images_of_another_depth_are_refused_and_their_range_is_recorded(tmp_path, script):
    for kind in ("png8", "png12", "png16"):
        write_set(kind, tmp_path / kind)
        (tmp_path / f"{kind}-archive").mkdir()
        for number in range(24):
            films.write(kind, tmp_path / f"{kind}-archive" / f"{number}", films.film(400 + number))
    pair = ["--teacher", "kdwide", "--student", "kdtiny", "--mode", "unlabeled", *FLAGS]
    code, said = script("distill", [*pair, "--data-dir", "png12", "--unlabeled-dir", "png16-archive"])
    assert code == 2 and "--unlabeled-dir 'png16-archive' has 24 images with many values outside the range of the data set" in said
    code, said = script("distill", [*pair, "--data-dir", "png16", "--unlabeled-dir", "png12-archive"])
    assert code == 0 and "note: --unlabeled-dir: All 24 images with more than 8 bits" in said
    code, said = script("distill", [*pair, "--data-dir", "png8", "--unlabeled-dir", "png12-archive"])
    assert code == 0 and "measured over the unlabelled images" in said
    run = tmp_path / "runs/png8-patient-32/unlabeled/kdwide-kdtiny/seed0"
    report = json.loads((run / "report.json").read_text())
    assert report["data"]["ranges"] == {} and report["data"]["pool"]["ranges"]["integer"][:2] == [0, 4095]
    assert torch.load(run / "model.pt", weights_only=True)["input"]["ranges"]["integer"][:2] == [0, 4095]


def test_networks_of_different_ranges_do_not_teach_or_are_compared_in_silence(tmp_path, script):
    write_set("png12", tmp_path / "set")
    base = ["--data-dir", "set", *FLAGS]
    assert script("train_teacher", ["--model", "kdtiny", "--bits", "16", *base])[0] == 0
    assert script("train_teacher", ["--model", "kdtiny", "--bits", "12", "--tag", "b", *base])[0] == 0
    runs = [tmp_path / f"runs/set-patient-32/teacher{tag}/kdtiny/seed0" for tag in ("", "-b")]
    code, said = script("evaluate", ["--shift", *runs, "--device", "cpu"])
    assert code == 2 and "in another range" in said
    code, said = script("distill", ["--teacher", "kdtiny", "--student", "kdwide", "--teacher-checkpoint", runs[0] / "model.pt",
                                    "--bits", "12", *base])
    assert code == 0 and "range of values 0 to 65535 instead of 0 to 4095" in said


@pytest.mark.parametrize("kind, change", [("signed", 32_767), ("float-unit", 255.0)])
def test_an_image_that_leaves_few_grey_levels_to_the_others_is_named(tmp_path, script, kind, change):
    write_set(kind, tmp_path / "set")
    row = opened(tmp_path / "set").splits.train[0]
    values = films.deep(films.film(row * 4), 12).astype(np.int16) - 1024 if kind == "signed" else films.film(row * 4) / np.float32(255)
    values[0, 0] = change
    if kind == "signed":
        films.write_bytes(tmp_path / "set" / f"{row:03d}", "tif", films.tiff(values, sample_format=2))
    else:
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "set" / f"{row:03d}.tif")
    dataset = opened(tmp_path / "set")
    rule = next(iter(dataset.describe()["ranges"].values()))[2]
    assert f"images use less than a quarter of it, but {NOT_STORED} has values from" in rule and f"to {change:g}" in rule
    code, said = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", "set"])
    assert code == 0 and "warning: images with more than 8 bits have one range, and 23 of 24 images use less" in said
    assert f"but {row:03d}.tif has values from" in said
