"""Looking into a model: attention and rollout, Grad-CAM, occlusion, and maps that find what was hidden in a picture."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import attention, gradcam, occlusion, patches
from fastsd_lib.vit.inside import Inside, as_picture
from fastsd_lib.vit.model import load_torch, open_model

WITH_ATTENTION = ("vit", "deit", "dinov2")
ALL = (*WITH_ATTENTION, "swin", "convnext")


@pytest.fixture(scope="module")
def insides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: Inside.of(open_model(make_vit(folder / kind, kind=kind, layers=3))) for kind in ALL}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return Image.open(photos(tmp_path_factory.mktemp("photos"), 1)[0])


@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_attention_has_all_layers_heads_and_tokens_and_its_rows_sum_to_one(insides, photo, kind):
    maps = attention.attention_maps(insides[kind], photo)
    tokens = 16 + (2 if kind == "deit" else 1)
    assert maps.shape == (3, 4, tokens, tokens)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-6)
    assert attention.class_token_maps(maps, insides[kind]).shape == (3, 4, 4, 4)


def test_attention_is_what_the_weights_say(insides, photo):
    """The first layer's first head by hand: softmax of q k / sqrt(d)."""
    inside = insides["vit"]
    block = inside.blocks[0]
    with torch.no_grad():
        tokens = block.layernorm_before(inside.base.embeddings(inside.pixels(photo)))[0]
        ask, answer = (
            tokens @ one.weight.T + one.bias for one in (block.attention.q_proj, block.attention.k_proj)
        )
        by_hand = (ask[:, :8] @ answer[:, :8].T / 8**0.5).softmax(dim=-1)
    np.testing.assert_allclose(attention.attention_maps(inside, photo)[0, 0], by_hand, atol=1e-6)


def test_logits_with_eager_attention_are_those_of_the_plain_model(insides, photo):
    inside = insides["vit"]
    plain = load_torch(inside.vit)
    with torch.no_grad():
        expected = plain(pixel_values=inside.pixels(photo)).logits
        np.testing.assert_allclose(inside.logits(inside.pixels(photo)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_models_without_attention_from_all_to_all_say_so_and_what_to_ask_instead(insides, photo, kind):
    for look in (attention.attention_maps, attention.rollout_map, attention.relevance_map):
        with pytest.raises(UserError, match=f"no attention maps to show: a {kind}") as error:
            look(insides[kind], photo)
        assert error.value.fix == "ask for gradcam or occlusion, which work with every model."
    with pytest.raises(UserError, match="no position embeddings"):
        patches.position_similarity(insides[kind])


def test_a_model_that_is_shown_larger_pictures_than_it_was_trained_on_has_more_patches(tmp_path, photo):
    folder = make_vit(tmp_path / "larger")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 48, "width": 48}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    inside = Inside.of(open_model(folder))
    assert inside.grid == (6, 6)
    assert attention.attention_maps(inside, photo).shape == (2, 4, 37, 37)
    assert gradcam.gradcam(inside, photo).shape == attention.rollout_map(inside, photo).shape == (6, 6)
    assert patches.position_similarity(inside).shape == (4, 4, 4, 4)  # as it was trained


def test_a_model_without_classes_has_nothing_to_explain(insides):
    with pytest.raises(UserError, match="no classes to explain") as error:
        Inside.of(dataclasses.replace(insides["vit"].vit, labels=()))
    assert error.value.fix == "take a model with a classifier, or train one on it."


# -- rollout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.5, 0.95])
def test_rows_of_a_rollout_sum_to_one(fusion, discard):
    maps = np.random.default_rng(0).dirichlet(np.full(17, 0.2), size=(12, 4, 17))
    flow = attention.rollout(maps, fusion=fusion, discard=discard)
    np.testing.assert_allclose(flow.sum(axis=1), 1, atol=1e-6)
    assert (flow >= 0).all()


def test_rollouts_that_can_be_told_by_hand():
    tokens, layers = 5, 3
    nobody = np.broadcast_to(np.eye(tokens), (layers, 2, tokens, tokens))
    np.testing.assert_allclose(attention.rollout(nobody), np.eye(tokens))
    everybody = np.full((layers, 2, tokens, tokens), 1 / tokens)
    kept = 0.5**layers  # of oneself, through the residuals alone
    np.testing.assert_allclose(attention.rollout(everybody), kept * np.eye(tokens) + (1 - kept) / tokens)


def test_a_rollout_multiplies_later_layers_from_the_left():
    first, second = (
        np.eye(3)[[1, 1, 1]],
        np.eye(3)[[2, 2, 2]],
    )  # all look at token 1, then all look at token 2
    flow = attention.rollout(np.stack([first[None], second[None]]))
    np.testing.assert_allclose(flow[0], [0.25, 0.5, 0.25])  # 2 had taken half of 1 before it was looked at


def test_discarding_keeps_what_is_looked_at_most():
    row = np.array([0.1, 0.2, 0.3, 0.4])
    maps = np.tile(row, (1, 1, 4, 1))
    flow = attention.rollout(maps, discard=0.5)
    np.testing.assert_allclose(flow[0], [0.5, 0, 0.5 * 3 / 7, 0.5 * 4 / 7])


def test_a_rollout_refuses_what_it_cannot_do():
    maps = np.ones((1, 1, 2, 2)) / 2
    with pytest.raises(UserError, match="no head fusion 'median'") as error:
        attention.rollout(maps, fusion="median")
    assert error.value.fix == "take mean, max or min."
    with pytest.raises(UserError, match=r"share of 1\.0"):
        attention.rollout(maps, discard=1.0)


# -- Grad-CAM and relevance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("kind", ALL)
def test_slopes_of_gradcam_agree_with_finite_differences(insides, photo, kind, layer):
    """The logit moves as the slopes say when the watched features are pushed."""
    inside = insides[kind]
    pixels = inside.pixels(photo)
    _, slopes = gradcam.features_and_slopes(inside, pixels, 1)[layer]
    push = torch.randn(slopes.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3e-3

    def logit(sign: float) -> float:
        def pushed(_module, _inputs, output):
            whole = output[0] if isinstance(output, tuple) else output
            moved = whole.clone()
            if moved.dim() == 4:
                moved[0] += sign * push.permute(2, 0, 1).float()
            else:
                moved[0, inside.prefix :] += sign * push.reshape(-1, push.shape[-1]).float()
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        hook = gradcam.watched_layers(inside)[layer].register_forward_hook(pushed)
        try:
            with torch.no_grad():
                return float(inside.logits(pixels)[0, 1])
        finally:
            hook.remove()

    assert (logit(1) - logit(-1)) / 2 == pytest.approx(float((slopes * push).sum()), rel=0.02, abs=2e-6)


@pytest.mark.parametrize("slopes", ["mean", "places"])
@pytest.mark.parametrize("kind", ALL)
def test_gradcam_is_its_formula_and_leaves_no_hook_behind(insides, photo, kind, slopes):
    inside = insides[kind]
    heat = gradcam.gradcam(inside, photo, "dog", slopes=slopes)
    layers = gradcam.features_and_slopes(inside, inside.pixels(photo), "dog")
    slow = np.zeros(heat.shape)
    for features, slope in layers if slopes == "places" else layers[-1:]:
        for at in np.ndindex(slow.shape):
            weights = slope.reshape(-1, slope.shape[-1]).mean(dim=0) if slopes == "mean" else slope[at]
            slow[at] += max(0.0, sum(float(w) * float(f) for w, f in zip(weights, features[at], strict=True)))
    np.testing.assert_allclose(heat, slow, atol=1e-9)
    assert (heat >= 0).all() and heat.max() > 0
    assert not any(layer._forward_hooks for layer in gradcam.watched_layers(inside) if kind == "vit")
    if slopes == ("mean" if kind in ("swin", "convnext") else "places"):
        assert np.array_equal(gradcam.gradcam(inside, photo, "dog"), heat)  # what "auto" takes


def test_behind_a_plain_mean_over_places_both_kinds_of_slopes_are_one(insides, photo):
    both = [gradcam.gradcam(insides["convnext"], photo, "cat", slopes=one) for one in ("mean", "places")]
    np.testing.assert_allclose(*both, atol=1e-12)


def test_gradcam_refuses_slopes_that_it_does_not_know(insides, photo):
    with pytest.raises(UserError, match="no 'max' slopes") as error:
        gradcam.gradcam(insides["vit"], photo, slopes="max")
    assert error.value.fix == "take auto, mean or places."


def test_gradcam_of_a_feature_map_keeps_its_rows_and_columns(insides):
    """A ConvNeXt sees a bright lower right corner there, not in a transposed or mirrored place."""
    inside = insides["convnext"]
    dark = np.zeros((32, 32, 3), np.uint8)
    lit = dark.copy()
    lit[24:, 16:24] = 255
    change = [
        gradcam.features_and_slopes(inside, inside.pixels(Image.fromarray(one)), 0)[0][0]
        for one in (dark, lit)
    ]
    moved = (change[1] - change[0]).abs().sum(dim=-1).numpy()
    row, column = np.unravel_index(moved.argmax(), moved.shape)
    assert row == moved.shape[0] - 1 and column == moved.shape[1] * 20 // 32


@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_relevance_is_never_negative_and_depends_on_the_class(insides, photo, kind):
    cat, dog = (attention.relevance_map(insides[kind], photo, one) for one in ("cat", "dog"))
    assert cat.shape == (4, 4) and (cat >= 0).all() and not np.allclose(cat, dog)


def test_classes_are_asked_for_by_name_or_number(insides):
    inside, logits = insides["vit"], torch.tensor([[0.0, 2.0, 1.0]])
    assert [inside.class_index(one, logits) for one in (None, "", "Dog", "2", 0)] == [1, 1, 1, 2, 0]
    with pytest.raises(UserError, match="does not know the class 'dgo'") as error:
        inside.class_index("dgo", logits)
    assert error.value.fix == "did you mean dog?"
    with pytest.raises(UserError, match="no class number 3") as error:
        inside.class_index(3, logits)
    assert error.value.fix == "take a number from 0 to 2."


# -- occlusion and faithfulness ----------------------------------------------------------------------------------------


def test_occlusion_agrees_with_hiding_one_cell_at_a_time(insides, photo):
    inside = insides["swin"]
    heat = occlusion.occlusion(inside, photo, "fish", cell_px=12)
    assert heat.shape == (3, 3)
    pixels = inside.pixels(photo)
    with torch.no_grad():
        hidden = pixels.clone()
        hidden[..., 12:24, 24:32] = pixels.mean(dim=(2, 3), keepdim=True)
        fall = inside.logits(pixels)[0, 2] - inside.logits(hidden)[0, 2]
    assert heat[1, 2] == pytest.approx(float(fall), abs=1e-5)
    with pytest.raises(UserError, match="cell of 64 pixels does not fit"):
        occlusion.occlusion(inside, photo, cell_px=64)


def test_curves_of_faithfulness_begin_and_end_where_they_must(insides, photo):
    inside = insides["vit"]
    found = occlusion.faithfulness(inside, photo, np.arange(16.0).reshape(4, 4), "cat", steps=8)
    assert len(found.deletion_curve) == len(found.insertion_curve) == 9
    assert found.deletion_curve[0] == pytest.approx(found.insertion_curve[-1], abs=1e-5)  # the whole picture
    assert found.deletion_curve[-1] == pytest.approx(
        found.insertion_curve[0], abs=1e-5
    )  # nothing but its mean
    assert found.deletion == pytest.approx(np.trapezoid(found.deletion_curve, dx=1 / 8))


def test_position_similarity_is_a_cosine(insides):
    alike = patches.position_similarity(insides["vit"])
    learnt = patches.position_embeddings(insides["vit"])
    assert alike.shape == (4, 4, 4, 4)
    one, other = learnt[1, 2], learnt[3, 0]
    assert alike[1, 2, 3, 0] == pytest.approx(
        one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-6
    )
    np.testing.assert_allclose(np.einsum("abab->ab", alike), 1)


def test_one_picture_is_taken_from_a_file_bytes_or_an_array_and_no_more_than_one(tmp_path):
    path = photos(tmp_path / "photos", 2)[0]
    expected = np.asarray(Image.open(path).convert("RGB"))
    for what in (path, str(path), path.read_bytes(), Image.open(path), expected):
        assert np.array_equal(np.asarray(as_picture(what)), expected)
    with pytest.raises(UserError, match="more than one picture") as error:
        as_picture(path.parent)
    assert error.value.fix == "name one picture to look at."


# -- the maps find it --------------------------------------------------------------------------------------------------


def test_maps_of_a_trained_model_lie_on_what_was_hidden_in_the_picture_and_those_of_a_random_one_do_not(
    tmp_path,
):
    """A model learns in seconds to name the colour of a small patch on gravel; its maps must point there."""
    trained, random = (Inside.of(open_model(folder)) for folder in _colour_models(tmp_path))
    generator = np.random.default_rng(99)
    tests = [_hidden_patch(generator) for _ in range(24)]
    named = [int(trained.logits(trained.pixels(image))[0].argmax()) == colour for image, colour, _ in tests]
    assert np.mean(named) > 0.9
    share = {}
    for name, inside in (("trained", trained), ("random", random)):
        for way in MAPS:
            on_it = [_share_on(_heat(way, inside, image, colour), place) for image, colour, place in tests]
            share[name, way] = float(np.mean(on_it))
    for way in MAPS:  # by chance: one patch of 16, 0.06; a random model is drawn to the odd patch out, too
        assert share["trained", way] > 0.4, share
        assert share["trained", way] > share["random", way] + 0.15, share
    image, colour, _ = tests[0]
    scores = occlusion.faithfulness(trained, image, gradcam.gradcam(trained, image, colour), colour)
    assert scores.better_than_random


def _heat(way: str, inside: Inside, image: Image.Image, colour: int) -> np.ndarray:
    if way == "rollout":
        return attention.rollout_map(inside, image)
    return np.clip(MAPS[way](inside, image, colour), 0, None)


MAPS = {
    "gradcam": gradcam.gradcam,
    "relevance": attention.relevance_map,
    "occlusion": occlusion.occlusion,
    "rollout": attention.rollout_map,
}


def _share_on(heat: np.ndarray, place: tuple[int, int]) -> float:
    return heat[place] / heat.sum() if heat.sum() > 0 else 0.0


def _hidden_patch(generator: np.random.Generator) -> tuple[Image.Image, int, tuple[int, int]]:
    """(32x32 of gravel with one patch of 8x8 tinted red, green or blue; which; where as (row, column) of 4x4)."""
    from skimage import data

    gravel = data.gravel()
    y, x = generator.integers(0, 480, 2)
    pixels = np.repeat(gravel[y : y + 32, x : x + 32, None], 3, axis=2) // 2
    colour, row, column = int(generator.integers(3)), int(generator.integers(4)), int(generator.integers(4))
    pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, colour] += 110
    return Image.fromarray(pixels), colour, (row, column)


def _colour_models(folder):
    """Folders of the trained model and of the same one before its training."""
    random = make_vit(folder / "random", classes=("red", "green", "blue"), seed=3)
    inside = Inside.of(open_model(random))
    generator = np.random.default_rng(1)
    shown = [_hidden_patch(generator) for _ in range(1500)]
    pixels = torch.cat([inside.pixels(image) for image, _, _ in shown])
    colours = torch.tensor([colour for _, colour, _ in shown])
    model = load_torch(inside.vit).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(250):
        batch = torch.randint(len(shown), (64,))
        loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels[batch]).logits, colours[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = make_vit(folder / "trained", classes=("red", "green", "blue"), seed=3)
    model.save_pretrained(trained)
    return trained, random
