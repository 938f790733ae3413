"""The parts of a training: batches that are the same for any number of processes, rates by layer, losses, datasets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_vit import make_vit
from vit_runs import make_pictures

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import layers
from fastsd_lib.vit.folder_data import open_image_folder
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.train_data import Batches, ValidationSet
from fastsd_lib.vit.train_loss import Loss
from fastsd_lib.vit.training_sets import open_training_data
from fastsd_lib.vit.transform import Transform

# -- batches ----------------------------------------------------------------------------------------------------------


def _steps(config, labels, parts, processes, epoch=0):
    """Per step the draws of all parts and processes."""
    found = []
    for rank in range(processes):
        batches = Batches(labels, config, parts, processes, rank)
        batches.epoch = epoch
        mine = list(batches)
        assert len(mine) == len(batches) == batches.steps_per_epoch * parts
        found.append(mine)
    return [
        [found[rank][step * parts + part] for part in range(parts) for rank in range(processes)]
        for step in range(len(found[0]) // parts)
    ]


@pytest.mark.parametrize("parts, processes", [(1, 1), (3, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("pictures, batch", [(23, 5), (8, 8), (7, 3), (2, 5)])
def test_a_step_has_the_same_pictures_and_the_same_mean_however_it_is_shared(
    parts, processes, pictures, batch
):
    config = VitTrainConfig(batch_size=batch)
    labels = np.zeros(pictures, int)
    value = np.random.default_rng(0).normal(size=pictures)
    seen = []
    for shares, alone in zip(
        _steps(config, labels, parts, processes), _steps(config, labels, 1, 1), strict=True
    ):
        assert len({len(share) for share in shares}) == 1  # as many in each, or processes would wait for ever
        real = [draw.index for share in shares for draw in share if draw.weight]
        assert real == [draw.index for draw in alone[0]]
        mean = np.mean([np.mean([value[draw.index] * draw.weight for draw in share]) for share in shares])
        assert mean == pytest.approx(np.mean([value[index] for index in real]))
        seen += real
    assert sorted(seen) == list(range(pictures))


def test_each_epoch_has_an_order_of_its_own_that_only_the_seed_decides():
    labels = np.arange(40) % 2
    orders = [[d.index for b in _steps(VitTrainConfig(seed=seed), labels, 1, 1, epoch) for d in b[0]]
              for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]  # fmt: skip
    assert orders[0] == orders[1] != orders[2] and orders[0] != orders[3]


def test_the_sampler_brings_a_rare_class_as_often_as_the_others():
    labels = np.array([0] * 900 + [1] * 100)
    config = VitTrainConfig(balance="sampler", batch_size=100)
    drawn = [
        draw.index for epoch in range(5) for step in _steps(config, labels, 1, 1, epoch) for draw in step[0]
    ]
    assert 0.45 < labels[drawn].mean() < 0.55


def test_validation_pictures_are_the_pixels_of_the_transform_and_processes_share_them(tmp_path):
    make_pictures(tmp_path / "pictures")
    model = open_model(make_vit(tmp_path / "vit", image_px=24))
    transform = Transform.of(model)
    images = open_image_folder(tmp_path / "pictures", validation=0.5)
    held = ValidationSet(images.validation, transform.geometry, VitTrainConfig())
    found = torch.cat([pixels for pixels, _ in held.batches(3)])
    for pixels, (file, _) in zip(found, images.validation, strict=True):
        assert np.allclose(pixels.numpy(), transform.open_and_apply(file), atol=1e-6)
    shared = [labels for rank in range(2) for _, labels in held.batches(2, rank, 2)]
    assert sorted(torch.cat(shared).tolist()) == sorted(label for _, label in images.validation)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, blocks", [("vit", 2), ("deit", 2), ("dinov2", 2), ("swin", 2), ("convnext", 2)]
)
def test_depths_run_from_the_embeddings_through_every_block_to_the_head(kind, blocks, tmp_path):
    model = load_torch(open_model(make_vit(tmp_path / kind, kind=kind)))
    head = layers.head_modules(model)
    places, last = layers.depths(model, head)
    assert last == blocks + 2 and len(layers.block_names(model)) == blocks
    assert [name for name, depth in places.items() if depth == last] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert set(range(blocks + 1)) <= set(places.values())
    first = next(iter(places))
    assert "embeddings" in first and places[first] == 0
    in_order = [depth for name, depth in places.items() if "classifier" not in name]
    assert in_order == sorted(in_order)


def test_rates_fall_from_the_head_down_and_biases_and_norms_do_not_decay(tmp_path):
    model = load_torch(open_model(make_vit(tmp_path / "vit")))
    config = VitTrainConfig(learning_rate=1.0, layer_decay=0.5, head_factor=10, weight_decay=0.1)
    groups = layers.parameter_groups(model, layers.head_modules(model), config)
    rates = {id(one): (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    of = {name: rates[id(one)] for name, one in model.named_parameters()}
    assert len(of) == len(rates)
    assert of["classifier.weight"] == (10.0, 0.1) and of["classifier.bias"] == (10.0, 0.0)
    by_place = {  # depth 4 is the head, 3 the last norm, 2 and 1 the blocks, 0 the embeddings
        "vit.layernorm.weight": (0.5, 0.0),
        "vit.embeddings.cls_token": (0.0625, 0.0),
        "vit.embeddings.patch_embeddings.projection.weight": (0.0625, 0.1),
    }
    assert {name: of[name] for name in by_place} == by_place
    inner = {
        rate
        for name, rate in of.items()
        if "intermediate.dense.weight" in name or "fc1.weight" in name or "mlp" in name
    }
    assert {(0.125, 0.1), (0.25, 0.1)} <= inner | {
        rate for name, rate in of.items() if name.endswith("dense.weight")
    }


@pytest.mark.parametrize("freeze", ["last_3", "0-2", "embeddings,7"])
def test_blocks_that_are_not_there_cannot_be_frozen(freeze, tmp_path):
    model = load_torch(open_model(make_vit(tmp_path / "vit")))
    with pytest.raises(UserError, match="block") as caught:
        layers.freeze(model, ("classifier",), freeze)
    assert caught.value.fix


# -- losses -----------------------------------------------------------------------------------------------------------


def test_losses_are_what_torch_or_the_paper_says():
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 3), torch.arange(20) % 3
    targets = torch.eye(3)[labels]
    plain = Loss(VitTrainConfig(), labels.numpy(), 3)(logits, targets)
    assert torch.allclose(plain, F.cross_entropy(logits, labels, reduction="none"), atol=1e-6)
    smooth = Loss(VitTrainConfig(label_smoothing=0.2), labels.numpy(), 3)(logits, targets)
    assert torch.allclose(
        smooth, F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2), atol=1e-6
    )
    assert torch.allclose(
        Loss(VitTrainConfig(loss="focal", focal_gamma=0), labels.numpy(), 3)(logits, targets), plain
    )
    chance = logits.softmax(1)[torch.arange(20), labels]
    focal = Loss(VitTrainConfig(loss="focal", focal_gamma=2), labels.numpy(), 3)(logits, targets)
    assert torch.allclose(focal, -((1 - chance) ** 2) * chance.log(), atol=1e-6)


def test_class_weights_make_every_class_count_the_same_and_keep_the_mean():
    labels = np.array([0] * 90 + [1] * 10)
    loss = Loss(VitTrainConfig(balance="weights"), labels, 2)
    per = loss(torch.zeros(100, 2), torch.eye(2)[labels])
    assert float(per[labels == 0].sum()) == pytest.approx(float(per[labels == 1].sum()), rel=1e-5)
    assert float(per.mean()) == pytest.approx(np.log(2), rel=1e-5)


# -- datasets ---------------------------------------------------------------------------------------------------------


def test_a_saved_dataset_and_parquet_files_are_the_same_pictures(tmp_path):
    import datasets

    folder = make_pictures(tmp_path / "pictures", count=4)
    rows = {"image": [], "label": []}
    for label, name in enumerate(("dark", "light")):
        for file in sorted((folder / name).iterdir()):
            rows["image"].append({"bytes": file.read_bytes(), "path": None})
            rows["label"].append(label)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    made.to_parquet(str(tmp_path / "files" / "train-00000.parquet"))
    made.select([0, 5]).to_parquet(str(tmp_path / "files" / "test-00000.parquet"))
    expected = {file.read_bytes() for file in folder.rglob("*.png")}
    for source in ("saved", "files"):
        config = VitTrainConfig(data=str(tmp_path / source), validation=0.25)
        found = open_training_data(config, tmp_path / f"out {source}")
        assert found.classes == ("dark", "light") and len(found.train) + len(found.validation) == 8
        assert {path.read_bytes() for path, _ in found.train + found.validation} == expected
        assert len(found.test) == (2 if source == "files" else 0)
        again = open_training_data(config, tmp_path / f"out {source}")
        assert again.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: path.write_bytes(b"PAR1 no"), "cannot be read as a dataset"),
        (lambda path: path.with_suffix(".d").mkdir(), "There is no"),
    ],
)
def test_what_is_no_dataset_is_said(tmp_path, make, said):
    path = tmp_path / "rows.parquet"
    make(path)
    with pytest.raises(UserError, match=said) as caught:
        open_training_data(VitTrainConfig(data=str(path)), tmp_path / "out")
    assert "class folders" in caught.value.fix
