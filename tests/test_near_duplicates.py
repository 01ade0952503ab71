"""Images that show the same are found, and images that only look similar are not."""

import io

import numpy as np
import pytest
from conftest import ROOT
from films import film
from PIL import Image, ImageEnhance

from kd.data.check import near_duplicates
from kd.data.check.near_duplicates import difference_hashes, find_pairs, fine_structures, thumbnail

CHEST = ROOT.parent / "shared/real/chest"


def jpeg(image, quality=75):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CHANGES = {
    "saved as JPEG": jpeg,
    "saved as a poor JPEG": lambda image: jpeg(image, 40),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger and of another shape": lambda image: image.resize((300, 260)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "in colour": lambda image: image.convert("RGB"),
    "with 16 bits": lambda image: Image.fromarray(np.asarray(image, np.float32) * 257),
    "smaller, darker and JPEG": lambda image: jpeg(ImageEnhance.Brightness(image.resize((90, 90))).enhance(0.9)),
}


def pairs(images):
    found, is_complete = find_pairs(np.array([thumbnail(image) for image in images]))
    assert is_complete
    return found.tolist()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change):
    originals = [Image.fromarray(film(4 * number)) for number in range(8)]
    changed = [CHANGES[change](image) for image in originals]
    assert sorted(pairs(originals + changed)) == [[k, k + 8] for k in range(8)]


def test_a_turned_or_mirrored_copy_is_not():
    image = Image.fromarray(film(3))
    assert pairs([image, image.rotate(90), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == []


def test_views_of_the_same_patient_are_not():
    assert pairs([Image.fromarray(film(row)) for row in range(200)]) == []


def test_discs_with_different_details_are_not():
    """The edge of the disc of fundus photographs is strong and the same in all of them."""
    down, right = np.mgrid[-1:1:128j, -1:1:128j]
    random = np.random.default_rng(0)
    images = []
    for _ in range(60):
        details = np.asarray(Image.fromarray(random.normal(0, 8, (24, 24)).astype(np.float32)).resize((128, 128)))
        disc = np.where(down**2 + right**2 < 0.85, 120 - 20 * down + details, 0)
        images.append(Image.fromarray(np.clip(disc, 0, 255).astype(np.uint8)))
    assert pairs(images) == []
    assert pairs([*images, jpeg(images[7]), images[9].resize((90, 90))]) == [[7, 60], [9, 61]]


def test_flat_images_have_no_thumbnail():
    assert thumbnail(Image.new("L", (40, 40), 7)) is None and thumbnail(Image.new("RGB", (9, 400), (1, 2, 3))) is None
    almost = np.full((64, 64), 90, np.uint8)
    almost[10, 10] = 92
    assert thumbnail(Image.fromarray(almost)) is None
    assert thumbnail(Image.fromarray(np.full((8, 8), 0.5, np.float32))) is None
    assert thumbnail(Image.fromarray(np.tile(np.linspace(0, 1e-3, 64, dtype=np.float32), (64, 1)))).max() == 255


def test_hashes_and_structures_of_known_thumbnails():
    right = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))[None]
    # Each cell is darker than its right neighbour, except the last of each row, which is compared with the first.
    assert np.bitwise_count(difference_hashes(right)).sum() == 16
    assert np.bitwise_count(difference_hashes(right) ^ difference_hashes(right[:, :, ::-1])).sum() == 256
    random = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    structures = fine_structures(random)
    assert np.allclose(np.linalg.norm(structures, axis=1), 1) and np.allclose(structures.mean(1), 0, atol=1e-6)
    assert structures.shape == (5, 1024) and difference_hashes(random).shape == (4, 5)


def test_blocks_find_what_one_comparison_of_all_finds(monkeypatch):
    random = np.random.default_rng(1)
    base = random.integers(0, 256, (90, 32, 32))
    thumbnails = np.clip(base[random.integers(0, 90, 300)] + random.normal(0, 12, (300, 32, 32)), 0, 255).astype(np.uint8)
    hashes, structures = difference_hashes(thumbnails), fine_structures(thumbnails)
    bits = np.bitwise_count(hashes[:, :, None] ^ hashes[:, None]).sum(0, dtype=int)
    alike = (bits <= near_duplicates.MAX_BITS) & (structures @ structures.T >= near_duplicates.MIN_CORRELATION)
    expected = np.argwhere(np.triu(alike, 1)).tolist()
    for rows, columns in ((7, 21), (64, 64), (1000, 1000)):
        monkeypatch.setattr(near_duplicates, "_ROWS", rows)
        monkeypatch.setattr(near_duplicates, "_COLUMNS", columns)
        found, is_complete = find_pairs(thumbnails)
        assert sorted(found.tolist()) == expected and is_complete and 200 < len(expected) < 2000


def test_the_search_ends_after_a_limit(monkeypatch):
    monkeypatch.setattr(near_duplicates, "LIMIT", 50)
    found, is_complete = find_pairs(np.repeat(np.array([thumbnail(Image.fromarray(film(0)))]), 200, axis=0))
    assert len(found) == 50 and not is_complete
    assert find_pairs(np.empty((0, 32, 32), np.uint8))[0].shape == (0, 2)


@pytest.mark.skipif(not CHEST.is_dir(), reason="needs the radiographs in ../shared")
def test_real_films_of_different_patients_are_not_near_duplicates():
    files = sorted(CHEST.glob("test/*/*.jpeg"))
    images = [Image.open(file).convert("L") for file in files]
    assert pairs(images) == [] and len(images) == 180
    changed = [jpeg(image.resize((150, 150))) for image in images[::6]]
    assert sorted(pairs([*images, *changed])) == [[6 * k, 180 + k] for k in range(30)]
