"""Ray on this machine, for real: the same vectors, the same parts, the same errors."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.embed import embed
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.ray_embed import SETTINGS, embed_with_ray

CONFIG = RunnerConfig(backend="torch", precision="fp32", threads=1, batch_size=4)


def test_two_actors_write_the_very_store_that_one_process_writes(tmp_path):
    os.environ.update(SETTINGS)
    ray = pytest.importorskip("ray")
    model = open_model(make_vit(tmp_path / "tiny"))
    folder = tmp_path / "photos"
    photos(folder, 18, sizes=((64, 48),))
    (folder / "broken.jpg").write_bytes(b"nothing")
    direct = embed(model, folder, Features(), CONFIG, tmp_path / "direct", part_rows=5)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:  # one cluster for all that is asked of it: starting costs seconds
        told: list[int] = []
        spread = embed_with_ray(
            model,
            folder,
            Features(),
            CONFIG,
            tmp_path / "ray",
            lambda event: told.append(event.done),
            part_rows=5,
            actors=2,
        )
        assert np.array_equal(spread.vectors, direct.vectors) and spread.all_rows == direct.all_rows
        assert spread.state == direct.state and told[-1] == 19
        assert ray.is_initialized()  # a cluster that was there before is left alone

        with pytest.raises(UserError, match="there is no layer 9"):
            embed_with_ray(model, folder, Features(layer=9), CONFIG, tmp_path / "other", actors=1)
    finally:
        ray.shutdown()


def test_wrong_wishes_are_refused_before_a_cluster_starts(tmp_path):
    model = open_model(make_vit(tmp_path / "tiny"))
    with pytest.raises(UserError, match="0 actors"):
        embed_with_ray(model, tmp_path, actors=0)
    with pytest.raises(UserError, match="int8"):
        embed_with_ray(model, tmp_path, dtype="int8")
