"""A file of each kind of model, and a site on this machine that they are fetched from."""

from __future__ import annotations

from fastsd_lib.core.tensor_file import NewTensor, write_tensor_file
from fastsd_lib.formats.ckpt_writing import write_ckpt
from fastsd_lib.models import registry
from fastsd_lib.workflows import civitai
from fastsd_lib.workflows.model_downloads import STAGING, download
from fastsd_lib.workflows.model_sources import Hosts
from tests.bad_server import QUICK

EXTRAS = registry.EXTRAS_FOLDER
UNET = "model.diffusion_model.input_blocks"
CHECKPOINT = {
    f"{UNET}.0.0.weight": (8, 4, 3, 3), f"{UNET}.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3), "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 768),
}  # fmt: skip
VAE = {
    "encoder.conv_in.weight": (8, 3, 3, 3),
    "decoder.conv_in.weight": (8, 4, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
}
UPSCALER = {"conv_first.weight": (8, 3, 3, 3), "body.0.rdb1.conv1.weight": (8, 8, 3, 3)}


def tensors(shapes):
    made = []
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        made.append(NewTensor(name, "F16", shape, lambda size=size: [bytes(size)]))
    return made


def contents(folder):
    """A file of each kind, by the name that it is fetched under -> (its bytes, the folder it goes into)."""
    folder.mkdir()
    for name, shapes in (("dream", CHECKPOINT), ("sharp-vae", VAE)):
        write_tensor_file(folder / f"{name}.safetensors", tensors(shapes), {})
    write_ckpt(folder / "old.ckpt", tensors(CHECKPOINT))
    write_ckpt(folder / "4x.pth", tensors(UPSCALER))
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in EXTRAS.glob("*/*.safetensors"):
        made[path.name] = path.read_bytes()
    return made


def hosts(site):
    shop = site.url if hasattr(site, "shop") else civitai.ENDPOINT
    return Hosts(hub=site.url, civitai=shop, rules=QUICK)


def take(site, text, root, **more):
    return download(text, root, sites=hosts(site), **more)


def lying(root):
    """Every file below `root` that a user would see."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and STAGING not in path.parts
    )
