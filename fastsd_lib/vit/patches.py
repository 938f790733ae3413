"""How a ViT takes a picture apart, and what it has learnt of where the parts lie."""

from __future__ import annotations

import numpy as np
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.inside import Inside
from fastsd_lib.vit.model import VitModel


def position_embeddings(model: VitModel | Inside) -> np.ndarray:
    """(h, w, D) of the patches, as learnt. UserError for models that know places relatively or not at all."""
    inside = Inside.of(model)
    embeddings = getattr(inside.base, "embeddings", None)
    learnt = getattr(embeddings, "position_embeddings", None)
    if inside.hierarchical or not isinstance(learnt, torch.Tensor):
        kind = inside.torch_model.config.model_type
        raise UserError(
            f"{inside.vit.name} has no position embeddings: a {kind} knows where patches lie in another way.",
            fix="ask for gradcam or occlusion, which work with every model.",
        )
    patches = learnt[0, inside.prefix :].detach().float()
    side = round(len(patches) ** 0.5)
    height, width = inside.grid if len(patches) == np.prod(inside.grid) else (side, side)
    return patches.reshape(height, width, -1).numpy()


def position_similarity(model: VitModel | Inside) -> np.ndarray:
    """(h, w, h, w): cosine of each patch's position embedding with each other's (Dosovitskiy et al. 2021, figure 7)."""
    learnt = position_embeddings(model).astype(np.float64)
    height, width = learnt.shape[:2]
    flat = learnt.reshape(height * width, -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return (flat @ flat.T).reshape(height, width, height, width)
