from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.crop import (
    CropBox,
    crop_by_hand,
    crop_photos,
    crop_to,
    detail_map,
    enlargement,
    find_crop,
    find_faces,
    load_crops,
    save_crops,
)

SIZES = [(512, 512), (1024, 512), (600, 900), (960, 540), (160, 800), (645, 511), (511, 645)]


def scene(
    size: tuple[int, int], at: float, background: str, seed: int = 0
) -> tuple[Image.Image, tuple[int, ...]]:
    """A subject (a disc with eyes) whose middle stands at the share `at` of the longer side; and its edges."""
    width, height = size
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), (120, 140, 120), np.float32)
    if background == "gradient":
        pixels += np.linspace(-60, 60, width)[None, :, None]
    if background == "noise":
        pixels += random.normal(0, 18, (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    radius = 0.3 * min(size)
    along = radius + at * (max(size) - 2 * radius)
    x, y = (along, height / 2) if width >= height else (width / 2, along)
    edges = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(image)
    draw.ellipse(edges, (200, 60, 40))
    for side in (-1, 1):
        eye_x, eye_y, eye = x + side * radius * 0.4, y - radius * 0.2, radius * 0.15
        draw.ellipse((eye_x - eye, eye_y - eye, eye_x + eye, eye_y + eye), (20, 20, 20))
    return image, edges


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    import skimage.data

    return Image.fromarray(skimage.data.astronaut())


@pytest.mark.parametrize("background", ["plain", "gradient", "noise"])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_subject_is_kept_whole_wherever_it_stands(size, at, background):
    image, (left, top, right, bottom) = scene(size, at, background)
    box = find_crop(image, ways=("saliency", "detail"))
    assert box.side_px == min(size)
    assert box.left <= left + 1 and box.top <= top + 1 and box.right >= right - 1 and box.bottom >= bottom - 1


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_detail_alone_finds_a_subject_that_no_colour_sets_apart(at):
    image, (left, _, right, _) = scene((900, 400), at, "plain")
    box = find_crop(image.convert("L").convert("RGB"), ways=("detail",))
    assert box.reason == "detail"
    assert box.left <= left + 1 and box.right >= right - 1


def test_a_small_subject_comes_to_the_middle_of_the_square():
    image = Image.new("RGB", (1200, 400), (90, 120, 90))
    ImageDraw.Draw(image).ellipse((700, 180, 740, 220), (220, 30, 30))
    box = find_crop(image)
    assert abs((box.left + box.right) / 2 - 720) < 40


@pytest.mark.parametrize("shift", [0, 150, 380])
@pytest.mark.parametrize("tall", [False, True])
def test_a_face_is_inside_whole(astronaut, shift, tall):
    head = astronaut.crop((100, 20, 400, 320))
    page = Image.new("RGB", (300, 700) if tall else (700, 300), (128, 128, 128))
    page.paste(head, (0, shift) if tall else (shift, 0))
    box = find_crop(page)
    face = (72, 40, 172, 145)  # of the head, as eyes, mouth and chin show it
    left, top = (0, shift) if tall else (shift, 0)
    assert box.reason == "face"
    assert box.left <= face[0] + left and box.right >= face[2] + left
    assert box.top <= face[1] + top and box.bottom >= face[3] + top


def test_faces_are_found_in_large_photos_too_each_once(astronaut):
    for photo, eyes in [
        (astronaut.resize((2048, 2048)), (4 * 222, 4 * 110)),
        (astronaut.crop((60, 0, 380, 320)).resize((900, 900)), (456, 309)),  # where the cascade fires twice
    ]:
        (face,) = find_faces(photo)
        assert face.left < eyes[0] < face.right and face.top < eyes[1] < face.bottom


def test_without_scikit_image_the_crop_is_found_by_saliency(astronaut, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert find_faces(astronaut) == []
    assert find_crop(astronaut.crop((0, 0, 512, 300))).reason == "saliency"


@pytest.mark.parametrize("size", [(300, 200), (200, 300)])
def test_a_picture_of_nothing_is_cropped_in_its_centre(size):
    box = find_crop(Image.new("RGB", size, "navy"))
    assert box.reason == "centre"
    assert (box.left + box.right, box.top + box.bottom) == size
    assert detail_map(Image.new("RGB", size)) is None


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 5))
def test_every_box_is_the_largest_square_inside_its_picture(width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    box = find_crop(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), ways=("saliency", "detail"))
    assert 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height
    assert box.right - box.left == box.bottom - box.top == min(width, height)


def test_the_same_picture_is_cropped_the_same(astronaut):
    page = astronaut.crop((0, 0, 512, 260))
    assert len({find_crop(page) for _ in range(3)}) == 1


def test_an_unknown_way_names_the_known_ones():
    with pytest.raises(UserError) as error:
        find_crop(Image.new("RGB", (90, 70)), ways=("magic",))
    assert error.value.fix == "choose among face, saliency, detail."


@pytest.mark.parametrize("size_px", range(512, 1025, 64))
def test_the_crop_has_exactly_the_asked_size_at_every_shape(size_px):
    for size in [(645, 511), (511, 645), (1000, 999), (5937 // 4, 400)]:
        image = Image.new("RGB", size, "white")
        cropped = crop_to(image, find_crop(image, ways=()), size_px)
        assert cropped.size == (size_px, size_px)
        assert cropped.getextrema() == ((255, 255),) * 3  # no black edge of a box that was cut short


def test_a_crop_at_its_own_size_copies_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 255, (100, 160, 3), np.uint8)
    cropped = crop_to(Image.fromarray(pixels), CropBox(30, 0, 130, 100, "centre"), 100)
    assert np.array_equal(np.asarray(cropped), pixels[:, 30:130])


def test_blowing_up_is_said():
    box = CropBox(0, 0, 256, 256, "centre")
    assert (enlargement(box, 512), enlargement(box, 128)) == (2.0, 0.5)


def test_a_box_outside_its_picture_is_refused():
    with pytest.raises(UserError, match="not inside the picture of 90x70") as error:
        crop_to(Image.new("RGB", (90, 70)), CropBox(40, 0, 110, 70, "by hand"), 64)
    assert error.value.fix == "crop this photo again."


@given(st.tuples(st.integers(1, 99), st.integers(1, 99)), *[st.integers(-200, 200)] * 3)
def test_a_box_drawn_by_hand_is_brought_inside(size, left, top, side_px):
    box = crop_by_hand(size, left, top, side_px)
    assert 0 <= box.left < box.right <= size[0] and 0 <= box.top < box.bottom <= size[1]
    assert box.reason == "by hand" and box.right - box.left == box.bottom - box.top


def test_boxes_are_kept_found_again_and_forgotten_when_the_photo_changes(photo, tmp_path):
    one, two = photo("one.png"), photo("two.png", (100, 180))
    file = tmp_path / "crops.json"
    found = crop_photos(file, [one, two])
    assert list(found) == ["one.png", "two.png"]
    assert load_crops(file, [one, two]) == found
    photo("one.png", (300, 100))
    assert list(load_crops(file, [one, two])) == ["two.png"]
    assert crop_photos(file, [one, two])["one.png"].side_px == 100


def test_a_box_set_by_hand_wins_until_another_is_set_or_the_photo_changes(photo, tmp_path):
    one = photo("one.png")
    file = tmp_path / "crops.json"
    by_hand = crop_by_hand((160, 100), 5, 7, 80)
    crop_photos(file, [one])
    save_crops(file, {one: by_hand})
    assert crop_photos(file, [one], again=True) == {"one.png": by_hand}
    save_crops(file, {one: find_crop(Image.open(one))})
    assert load_crops(file, [one]) == {"one.png": by_hand}
    other = crop_by_hand((160, 100), 9, 0, 90)
    save_crops(file, {one: other})
    assert load_crops(file, [one]) == {"one.png": other}
    photo("one.png", seed=5)
    assert crop_photos(file, [one])["one.png"].reason != "by hand"


@pytest.mark.parametrize(
    "box", [[0, 0, 10], [0, 0, 10, 20], ["0", 0, 10, 10], None, [-1, 0, 9, 10], [5, 5, 5, 5]]
)
def test_a_box_that_was_edited_wrongly_is_named(photo, tmp_path, box):
    one, file = photo("one.png"), tmp_path / "crops.json"
    crop_photos(file, [one])
    stored = json.loads(file.read_text())
    stored["photos"]["one.png"]["box"] = box
    file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"no square for one\.png") as error:
        load_crops(file, [one])
    assert "[left, top, right, bottom]" in error.value.fix


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"photos": 3}', '{"schema": 99, "photos": {}}', '{"photos": {"a": 1}}']
)
def test_a_damaged_crops_file_is_a_clear_line(photo, tmp_path, text):
    (tmp_path / "crops.json").write_text(text)
    with pytest.raises(UserError) as error:
        load_crops(tmp_path / "crops.json", [photo("one.png")])
    assert "crops.json" in error.value.message and "delete it" in error.value.fix


def test_progress_of_cropping_counts_photos(photo, tmp_path):
    events = []
    crop_photos(tmp_path / "crops.json", [photo("a.png"), photo("b.png", seed=1)], events.append)
    assert [(event.task, event.done, event.total) for event in events] == [("crop", n, 2) for n in range(3)]
