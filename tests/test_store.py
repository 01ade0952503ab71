"""The store of decoded images.

Every kind of image is decoded correctly and only once, and bad files are listed together.
"""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kd.data.images.decoded import INTEGER
from kd.data.images.fundus import crop_to_circle
from kd.data.images.pixels import Range
from kd.data.index import Index, Sample
from kd.data.readers import folder
from kd.data.store import Store
from kd.system.errors import Problem

FULL = {INTEGER: Range(0, 65535, "16 bits")}


def opened(root, size=16, resize="squash", channels=0, crop="none"):
    index = folder.read(str(root))
    return Store(index, "cache", size, resize, channels, crop, FULL)


def all_rows(store):
    return np.arange(len(store.index.samples))


def test_images_are_decoded_once_and_only_on_request(picture_tree):
    root = picture_tree("set", {"a": 5, "b": 4})
    assert opened(root).ensure(np.array([0, 3, 3])) == 2
    assert opened(root).ensure(all_rows(opened(root))) == 7
    assert opened(root).ensure(all_rows(opened(root))) == 0


def test_rows_hold_the_resized_image(picture_tree):
    root = picture_tree("set", {"a": 2, "b": 1}, size=(40, 24))
    store = opened(root)
    store.ensure(all_rows(store))
    drawing = Image.open(root / "b" / "image0.png").resize((16, 16), Image.Resampling.BILINEAR)
    assert (store.gather(np.array([2, 2]))[1, 0].numpy() == np.asarray(drawing)).all()


def test_only_a_changed_file_is_decoded_again(picture_tree):
    root = picture_tree("set", {"a": 2, "b": 2})
    store = opened(root)
    store.ensure(all_rows(store))
    Image.new("L", (20, 24), 7).save(root / "a" / "image0.png")
    os.utime(root / "a" / "image0.png", ns=(1, 1))
    changed = opened(root)
    assert changed.ensure(all_rows(changed)) == 1 and (changed.images[0] == 7).all()


@pytest.mark.case(13)
def test_all_bad_files_are_listed_at_once_and_good_ones_are_kept(picture_tree):
    root = picture_tree("set", {"a": 4, "b": 4})
    whole = (root / "a" / "image1.png").read_bytes()
    (root / "a" / "image1.png").write_bytes(whole[:len(whole) // 2])
    (root / "b" / "image0.png").write_bytes(b"")
    (root / "b" / "image2.png").write_text("no image")
    store = opened(root)
    with pytest.raises(Problem) as caught:
        store.ensure(all_rows(store))
    assert all(name in str(caught.value) for name in ("a/image1.png", "b/image0.png", "b/image2.png"))
    for name in ("a/image1.png", "b/image0.png", "b/image2.png"):
        (root / name).write_bytes(whole)
    assert opened(root).ensure(all_rows(store)) == 3


def ramp16():
    return Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))


@pytest.mark.case(13)
@pytest.mark.parametrize("name, drawing, mean", [
    ("deep.png", ramp16(), 127.5), ("one.png", Image.new("1", (9, 9), 1), 255),
    ("rgba.png", Image.new("RGBA", (9, 9), (50,) * 4), 10),
    ("la.png", Image.new("LA", (9, 9), (60, 255)), 60), ("cmyk.jpg", Image.new("CMYK", (9, 9), (0, 0, 0, 255)), 0),
    ("palette.png", Image.new("L", (9, 9), 80).convert("P"), 80), ("dot.png", Image.new("L", (1, 1), 90), 90)])
def test_images_of_every_mode_become_grey(picture_tree, name, drawing, mean):
    root = picture_tree("set", {"a": 1, "b": 1})
    drawing.save(root / "b" / name)
    (root / "b" / "image0.png").unlink()
    store = opened(root)
    store.ensure(all_rows(store))
    assert store.channels == 1 and store.images[1].mean() == pytest.approx(mean, abs=1.0)


@pytest.mark.case(13)
def test_an_exif_rotation_is_applied(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    drawing = Image.fromarray(np.repeat([[0], [255]], 8, 0).repeat(16, 1).astype(np.uint8))
    exif = drawing.getexif()
    exif[0x0112] = 3
    drawing.save(root / "b" / "image0.png", exif=exif)
    store = opened(root)
    store.ensure(all_rows(store))
    assert store.images[1, 0, :7].mean() > 250 > 5 > store.images[1, 0, 9:].mean()


def test_grey_images_stored_as_rgb_take_one_channel_and_colour_takes_three(picture_tree, tmp_path):
    root = picture_tree("grey", {"a": 2, "b": 2})
    for file in root.rglob("*.png"):
        Image.open(file).convert("RGB").save(file)
    assert opened(root).channels == 1
    assert opened(picture_tree("colour", {"a": 2, "b": 2}, mode="RGB")).channels == 3


def test_padding_keeps_the_aspect_ratio(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    Image.new("L", (64, 16), 200).save(root / "a" / "image0.png")
    store = opened(root, resize="pad")
    store.ensure(all_rows(store))
    assert (store.images[0, 0, 7:9] == 200).all() and (store.images[0, 0, :4] == 0).all()


@pytest.mark.case(14)
def test_a_huge_image_is_refused_before_it_is_decoded(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    Image.new("1", (20_000, 20_000)).save(root / "a" / "image0.png")
    store = opened(root)
    with pytest.raises(Problem, match="more than 100 million|pixels"):
        store.ensure(all_rows(store))


def test_a_partial_write_is_continued(picture_tree, monkeypatch):
    root = picture_tree("set", {"a": 2, "b": 2})
    whole = opened(root)
    whole.ensure(all_rows(whole))
    pwrite = os.pwrite
    partly = opened(root, resize="pad")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, start: pwrite(file, data[:100], start))
        partly.ensure(all_rows(partly))
    again = Store(partly.index, "other", 16, "pad", 0)
    again.ensure(all_rows(again))
    assert (partly.images[:] == again.images[:]).all() and partly.images[:].any()


def test_identical_files_have_the_same_hash(picture_tree):
    root = picture_tree("set", {"a": 2, "b": 1})
    (root / "b" / "image0.png").write_bytes((root / "a" / "image1.png").read_bytes())
    store = opened(root)
    store.ensure(all_rows(store))
    assert (store.hashes[1] == store.hashes[2]).all() and (store.hashes[0] != store.hashes[1]).any()


@pytest.mark.case(15)
def test_a_fifo_named_like_an_image_does_not_hang(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    os.mkfifo(root / "b" / "pipe.png")
    store = opened(root)
    with pytest.raises(Problem, match="pipe.png .not a regular file"):
        store.ensure(all_rows(store))


def test_jpegs_are_read_at_a_smaller_scale_with_nearly_the_same_result(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    x = np.linspace(0, 3, 512)
    smooth = ((np.sin(x)[:, None] * np.cos(x)[None] + 1) * 120).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(smooth).save(content, "JPEG", quality=95)
    (root / "a" / "image0.png").unlink()
    (root / "a" / "image0.jpg").write_bytes(content.getvalue())
    store = opened(root)
    store.ensure(all_rows(store))
    exact = np.asarray(Image.fromarray(smooth).resize((16, 16), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(store.images[0, 0] - exact).mean() < 2


@pytest.fixture
def fundus_tree(picture_tree):
    """Write a grey image, and a wide black image with an orange disc of diameter 100.

    Return their folder.
    """
    root = picture_tree("set", {"a": 1, "b": 1})
    drawing = Image.new("RGB", (300, 120))
    ImageDraw.Draw(drawing).ellipse((150, 10, 249, 109), fill=(200, 90, 30))
    drawing.save(root / "b" / "image0.png")
    return root


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_fundus_image_is_cropped_before_it_is_resized_and_keeps_its_colour(fundus_tree, resize):
    store = opened(fundus_tree, size=32, resize=resize, crop="fundus")
    store.ensure(all_rows(store))
    square = crop_to_circle(Image.open(fundus_tree / "b/image0.png"))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert store.channels == 3 and (store.images[1] == expected).all() and 97 <= square.width <= 103
    assert store.images[1, :, 16, 16].tolist() == [200, 90, 30] and store.images[1, 0, 16, 1:31].min() > 150


def test_a_fundus_image_is_kept_grey_on_request(fundus_tree):
    store = opened(fundus_tree, channels=1, crop="fundus")
    store.ensure(all_rows(store))
    grey = round(0.299 * 200 + 0.587 * 90 + 0.114 * 30)
    assert store.images.shape[1] == 1 and store.images[1, 0, 8, 8] == grey


def test_a_16_bit_fundus_image_is_scaled_to_8_bits_before_its_disc_is_searched(picture_tree):
    root = picture_tree("set", {"a": 1, "b": 1})
    off = np.hypot(*(np.mgrid[:120, :200] - 59.5 - np.array([0, 40])[:, None, None]))
    Image.fromarray(np.where(off < 50, 40_000, 300).astype(np.uint16)).save(root / "a/image0.png")
    store = opened(root, crop="fundus")
    store.ensure(all_rows(store))
    assert store.images[0, :, 8, 8].tolist() == [round(40_000 / 257)] * 3 and store.images[0, :, 8, 1].min() > 140


def test_a_jpeg_is_read_at_twice_the_size_if_it_is_cropped(picture_tree, monkeypatch):
    root = picture_tree("set", {"a": 1, "b": 1})
    (root / "a/image0.png").unlink()
    Image.new("RGB", (512, 512), (200, 90, 30)).save(root / "a/image0.jpg")
    seen = []
    monkeypatch.setattr("kd.data.images.pixels.crop_to_circle", lambda drawing: seen.append(drawing.size) or drawing)
    store = opened(root, size=32, crop="fundus")
    store.ensure(np.array([0]))
    assert seen == [(64, 64)]


def test_the_crop_and_the_range_are_in_the_key_which_is_the_same_everywhere(picture_tree):
    samples = Sample("a.png", 0, "p", "s"), Sample("b.png", 1, "q", "t")
    index = Index("set", ("a", "b"), samples, draw=lambda row: np.zeros((8, 8), np.uint8), stamp="pinned", channels=1)
    assert Store(index, "cache", 16, "squash", 0).folder.name == "set-16-29c8f3247b240161"
    root = picture_tree("set", {"a": 1, "b": 1})
    plain, cropped = opened(root, channels=3), opened(root, channels=3, crop="fundus")
    assert plain.folder != cropped.folder and plain.recipe != cropped.recipe
    assert Store(plain.index, "cache", 16, "squash", 3).folder != plain.folder


def test_two_folders_with_equal_names_sizes_and_times_are_two_caches(tmp_path):
    stores = []
    for place, grey in (("a/images", 10), ("b/images", 240)):
        for name in ("x", "y"):
            (tmp_path / place / name).mkdir(parents=True)
            Image.new("L", (24, 24), grey + (name == "y")).save(tmp_path / place / name / "0.bmp")
            os.utime(tmp_path / place / name / "0.bmp", (1.7e9, 1.7e9))
        stores.append(opened(tmp_path / place))
        stores[-1].ensure(all_rows(stores[-1]))
    assert [store.images[0].max() for store in stores] == [10, 240] and (stores[0].hashes[0] != stores[1].hashes[0]).any()


def test_another_content_with_the_same_name_size_and_time_is_decoded_again(tmp_path):
    for name in ("x", "y"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (24, 24), 10).save(tmp_path / "set" / name / "0.bmp")
    first = opened(tmp_path / "set")
    first.ensure(all_rows(first))
    changed = tmp_path / "set/x/0.bmp"
    before = changed.stat()
    time.sleep(0.02)
    Image.new("L", (24, 24), 240).save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = opened(tmp_path / "set")
    assert again.ensure(all_rows(again)) == 1 and again.images[0].max() == 240 and (again.hashes[0] != first.hashes[0]).any()
