"""Cropping of fundus photographs.

The disc is found to within 3 % of its diameter for every size, position and exposure. An image
without a disc is not cut.
"""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kd.data.images.fundus import crop_to_circle


def drawn(width, height, x, y, diameter, peak=180, background=4, noise=0, specks=0):
    """Draw an orange disc, darker towards its rim, on a near-black background.

    Return uint8 [H, W, 3].
    """
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width] + 0.5
    off = np.hypot(columns - x, rows - y) / (diameter / 2)
    disc = (peak * (1 - 0.6 * off**2))[..., None] * (1, 0.5, 0.25)
    image = np.where(off[..., None] < 1, disc, background) + random.normal(0, noise, (height, width, 3))
    image[random.integers(0, height, specks), random.integers(0, width, specks)] = 255
    return np.clip(image, 0, 255).astype(np.uint8)


def assert_cropped(image, x, y, diameter):
    """Check that the crop is the square around the disc.

    Its side and its position must be within 3 % of the diameter.
    """
    square = crop_to_circle(Image.fromarray(image))
    assert square.mode == "RGB" and square.width == square.height
    assert square.width == pytest.approx(diameter, rel=0.03)
    left, top = round(x - square.width / 2), round(y - square.width / 2)
    reach = int(0.03 * diameter)
    steps = range(-reach, reach + 1)
    whole = Image.fromarray(image)
    assert any(whole.crop((left + i, top + j, left + i + square.width, top + j + square.width)).tobytes() == square.tobytes()
               for i in steps for j in steps)


@pytest.mark.parametrize("peak, background, noise", [(35, 2, 0), (60, 10, 3), (180, 4, 8), (255, 20, 3)])
@pytest.mark.parametrize("width, height, x, y, diameter", [
    (320, 240, 160, 120, 220), (320, 240, 110, 130, 150), (240, 240, 121, 119, 236), (96, 64, 50, 30, 56),
    (320, 240, 225, 75, 90)])
def test_discs_of_every_size_position_and_exposure(width, height, x, y, diameter, peak, background, noise):
    assert_cropped(drawn(width, height, x, y, diameter, peak, background, noise), x, y, diameter)


@pytest.mark.parametrize("x, y, diameter", [(160, 120, 280), (150, 118, 300), (130, 60, 200), (70, 120, 220), (160, 120, 350)])
def test_a_disc_that_the_image_cuts_is_completed_in_black(x, y, diameter):
    assert_cropped(drawn(320, 240, x, y, diameter), x, y, diameter)


def test_specks_text_and_shadows_do_not_move_the_disc():
    image = Image.fromarray(drawn(320, 240, 160, 120, 200, noise=5, specks=150))
    ImageDraw.Draw(image).text((6, 6), "OD 12.03.2015", fill=(255, 255, 255), font_size=16)
    image = np.array(image)
    assert_cropped(image, 160, 120, 200)
    assert_cropped((image * np.linspace(0.15, 1, 320)[None, :, None]).astype(np.uint8), 160, 120, 200)
    image[120:, 160:] = 3
    assert_cropped(image, 160, 120, 200)


@pytest.mark.parametrize("image", [
    np.zeros((60, 90, 3)), np.full((60, 90, 3), 9.0), np.full((90, 60, 3), 200.0),
    np.random.default_rng(0).integers(0, 256, (60, 90, 3)), np.tile(np.linspace(0, 255, 90)[None, :, None], (60, 1, 3)),
    np.pad(np.full((100, 160, 3), 150.0), ((40, 40), (40, 40), (0, 0))), np.full((1, 1, 3), 7.0), np.full((1, 71, 3), 200.0)],
    ids=["black", "dark", "full-bleed", "noise", "ramp", "rectangle", "one pixel", "one row"])
def test_without_a_disc_the_whole_image_is_padded_to_a_square(image):
    image = image.astype(np.uint8)
    height, width = image.shape[:2]
    square = np.asarray(crop_to_circle(Image.fromarray(image)))
    side = max(height, width)
    top, left = ((side - length) // 2 for length in (height, width))
    assert square.shape == (side, side, 3) and square.sum() == image.sum()
    assert (square[top:top + height, left:left + width] == image).all()


def test_the_input_image_is_unchanged_and_the_result_is_reproducible():
    image = Image.fromarray(drawn(320, 240, 160, 120, 200, noise=5))
    before = image.tobytes()
    assert crop_to_circle(image).tobytes() == crop_to_circle(image).tobytes() and image.tobytes() == before
    assert crop_to_circle(image.convert("L")).mode == "RGB"


@pytest.mark.parametrize("size", [(14_000, 50), (50, 14_000)])
def test_a_long_thin_image_becomes_a_square_that_fits_into_memory(size):
    cropped = crop_to_circle(Image.new("RGB", size))
    assert cropped.size == (4096, 4096)
