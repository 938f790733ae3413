"""Layers of a U-Net on the CPU with weights in oneDNN's own order: less copying, fewer passes over memory.

A twin shares its parameters with the module that it was made of; only what is packed is a copy, and `refresh` renews that.
The same arithmetic in float32, rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

mkldnn = torch.ops.mkldnn
KEPT = "kept_by_layers"  # attribute of a text's tensor: keys and values by layer, the same at every step


class Packed:
    """A layer whose weights are made of those of `sources`, modules that may be trained or patched meanwhile."""

    def __init__(self, *sources: nn.Module) -> None:
        self.sources = sources
        self._made_of: list[tuple[int, int]] = []

    def stamps(self) -> list[tuple[int, int]]:
        return [
            stamp(weight)
            for source in self.sources
            for weight in source._parameters.values()
            if weight is not None
        ]

    def refresh(self, again: bool) -> bool:
        """Pack when the weights are others than before, or `again`; whether it did."""
        now = self.stamps()
        if now == self._made_of and not again:
            return False
        self.pack()
        self._made_of = now
        return True


def stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Changes with every change that torch can see."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class PackedLinear(Packed):
    """Some linear layers on the same input, as one; `act` ("none", "gelu") is part of the product's last pass.

    `part` takes rows of the weight.
    """

    def __init__(self, *sources: nn.Linear, act: str = "none", part: slice = slice(None)) -> None:
        self.act, self.part = act, part
        self.algorithm = "none" if act == "gelu" else ""  # the exact gelu
        super().__init__(*sources)

    def pack(self) -> None:
        weights = [source.weight.detach()[self.part] for source in self.sources]
        biases = [source.bias.detach()[self.part] for source in self.sources if source.bias is not None]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.bias = torch.cat(biases) if biases else None
        self.weight = mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return mkldnn._linear_pointwise(x, self.weight, self.bias, self.act, [], self.algorithm)

    def onto(self, x: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        """The product "add" or "mul" `other`, in one pass."""
        return mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, how)


class PackedConv(Packed):
    """A convolution without groups, on channels-last pictures."""

    sizes_kept = 1  # of pictures, that it stays packed for

    def __init__(self, source: nn.Conv2d) -> None:
        self.geometry = list(source.padding), list(source.stride), list(source.dilation), source.groups
        super().__init__(source)

    @property
    def plain(self) -> bool:
        return self.sources[0].padding_mode == "zeros"  # `seamless` changes it for a while

    def pack(self) -> None:
        bias = self.sources[0].bias
        self.bias = None if bias is None else bias.detach()
        self._by_size: dict[tuple[int, ...], torch.Tensor] = {}

    def _weight(self, size: tuple[int, ...]) -> torch.Tensor:
        """In the order that is best for pictures of `size` (h, w); on a wrong one a call takes many times as long."""
        weight = self._by_size.get(size)
        if weight is None:
            if len(self._by_size) >= self.sizes_kept:
                self._by_size = {}
            source = self.sources[0]
            shape = [1, source.in_channels, *size]
            weight = mkldnn._reorder_convolution_weight(source.weight.detach(), *self.geometry, shape)
            self._by_size[size] = weight
        return weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self.plain:
            return self.sources[0](x)
        weight = self._weight(x.shape[2:])
        return mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, "none", [], "")

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The convolution of `x`, and `other` added in the same pass."""
        if not self.plain:
            return self.sources[0](x).add_(other)
        weight = self._weight(x.shape[2:])
        return mkldnn._convolution_pointwise.binary(
            x, other, weight, self.bias, *self.geometry, "add", 1.0, None, [], None
        )


class LeanResnet:
    def __init__(self, block: ResnetBlock2D) -> None:
        self.norm1, self.norm2, self.time = block.norm1, block.norm2, block.time_emb_proj
        self.conv1, self.conv2 = PackedConv(block.conv1), PackedConv(block.conv2)
        self.shortcut = None if block.conv_shortcut is None else PackedConv(block.conv_shortcut)

    def __call__(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h += self.time(F.silu(temb))[:, :, None, None]
        h = F.silu(self.norm2(h), inplace=True)
        return self.conv2.plus(h, x if self.shortcut is None else self.shortcut(x))


class LeanTransformer:
    """Tokens are the pixels of a channels-last picture: between both no copy is made."""

    def __init__(self, block: Transformer2DModel) -> None:
        self.norm = block.norm
        make = PackedLinear if block.use_linear_projection else PackedConv
        self.into, self.out = make(block.proj_in), make(block.proj_out)
        self.blocks = [LeanBlock(one) for one in block.transformer_blocks]

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor]:
        x = hidden_states.contiguous(memory_format=torch.channels_last)
        rows, _, height, width = x.shape
        mask = encoder_attention_mask
        mask = None if mask is None else mask[:, None]  # (B, 1, 1, tokens)
        h = self.norm(x)
        if isinstance(self.into, PackedConv):
            h = self.into(h)
        h = h.permute(0, 2, 3, 1).reshape(rows, height * width, -1)
        if isinstance(self.into, PackedLinear):
            h = self.into(h)
        for block in self.blocks:
            h = block(h, encoder_hidden_states, mask)
        if isinstance(self.out, PackedLinear):
            known = x.permute(0, 2, 3, 1).reshape(rows, height * width, -1)
            h = self.out.onto(h, known, "add")
            return (h.reshape(rows, height, width, -1).permute(0, 3, 1, 2),)
        return (self.out.plus(h.reshape(rows, height, width, -1).permute(0, 3, 1, 2), x),)


class LeanBlock:
    def __init__(self, block: BasicTransformerBlock) -> None:
        self.norms = block.norm1, block.norm2, block.norm3
        own, cross = block.attn1, block.attn2
        self.heads = own.heads, cross.heads
        self.qkv = PackedLinear(own.to_q, own.to_k, own.to_v)
        self.own_out = PackedLinear(own.to_out[0])
        self.q, self.kv = PackedLinear(cross.to_q), PackedLinear(cross.to_k, cross.to_v)
        self.cross_out = PackedLinear(cross.to_out[0])
        geglu = block.ff.net[0].proj
        half = geglu.out_features // 2
        self.value = PackedLinear(geglu, part=slice(0, half))
        self.gate = PackedLinear(geglu, act="gelu", part=slice(half, None))
        self.down = PackedLinear(block.ff.net[2])

    def __call__(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (_by_head(one, self.heads[0]) for one in self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        x = self.own_out.onto(_attend(q, k, v, None), x, "add")
        k, v = self._keys_values(text)
        q = _by_head(self.q(self.norms[1](x)), self.heads[1])
        x = self.cross_out.onto(_attend(q, k, v, mask), x, "add")
        h = self.norms[2](x)
        return self.down.onto(self.value.onto(h, self.gate(h), "mul"), x, "add")

    def _keys_values(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = getattr(text, KEPT, None)
        if kept is not None and self in kept:
            return kept[self]
        k, v = (_by_head(one, self.heads[1]).contiguous() for one in self.kv(text).chunk(2, dim=-1))
        if kept is not None:
            kept[self] = k, v
        return k, v


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _usual_resnet(block: ResnetBlock2D) -> bool:
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and not block.up
        and not block.down
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _usual_transformer(block: Transformer2DModel) -> bool:
    return block.is_input_continuous and all(_usual_block(one) for one in block.transformer_blocks)


def _usual_block(block: BasicTransformerBlock) -> bool:
    return (
        type(block) is BasicTransformerBlock
        and block.norm_type == "layer_norm"
        and not block.only_cross_attention
        and block.pos_embed is None
        and block.attn2 is not None
        and block.attn2.to_k.in_features != 0
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and all(_usual_attention(one) for one in (block.attn1, block.attn2))
    )


def _usual_attention(one: Attention) -> bool:
    return (
        type(one.processor) is AttnProcessor2_0
        and one.group_norm is None
        and one.spatial_norm is None
        and one.norm_cross is None
        and one.norm_q is None
        and one.norm_k is None
        and not one.residual_connection
        and one.rescale_output_factor == 1
    )


def _usual_conv(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and not isinstance(layer.padding, str)


#: Exact class -> (whether it is of the usual kind, what stands in its place).
STAND_INS: dict[type, tuple[Callable[[Any], bool], Callable[[Any], Any]]] = {
    ResnetBlock2D: (_usual_resnet, LeanResnet),
    Transformer2DModel: (_usual_transformer, LeanTransformer),
    nn.Conv2d: (_usual_conv, PackedConv),
}


class StandIn(nn.Module):
    """A place in a tree of modules; what stands there is no module, for that costs time at each call."""

    def __init__(self, made: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = made


def make_twin(module: nn.Module, sizes_kept: int = 1) -> tuple[nn.Module, list[Packed]]:
    """The same module with stand-ins wherever there is one, and what is packed in them, to be refreshed before use.

    What is of an unusual kind stays as it is. `sizes_kept`: sizes of pictures that convolutions stay packed for, each
    as large as the weights; others in turn are packed again and again.
    """
    packed: list[Packed] = []
    twin = _twin(module, packed)
    for layer in packed:
        if isinstance(layer, PackedConv):
            layer.sizes_kept = sizes_kept
    return twin, packed


def _twin(module: nn.Module, packed: list[Packed]) -> nn.Module:
    usual, make = STAND_INS.get(type(module), (None, None))
    if usual is not None and usual(module):
        made = make(module)
        packed += _packed_in(made)
        return StandIn(made)
    twin = object.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    twin._modules = {name: child and _twin(child, packed) for name, child in module._modules.items()}
    twin.training = False
    return twin


def _packed_in(made: Any) -> Iterator[Packed]:
    if isinstance(made, Packed):
        yield made
    elif isinstance(made, list):
        for one in made:
            yield from _packed_in(one)
    elif isinstance(made, (LeanResnet, LeanTransformer, LeanBlock)):
        for one in vars(made).values():
            yield from _packed_in(one)
