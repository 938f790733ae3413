"""Everything that the steps of one stage change: made for its first step, or brought back from a checkpoint."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastsd_lib.core.files import fingerprint
from fastsd_lib.formats.lora_file import lora_metadata
from fastsd_lib.formats.parts import Parts
from fastsd_lib.training import checkpoint as files
from fastsd_lib.training.checkpoint import Checkpoint, Snapshot
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.ema import Ema
from fastsd_lib.training.lora import Adapters
from fastsd_lib.training.stages import Stage


@dataclass
class StageState:
    """`step` counts from 0 within the stage; `whole` is False while a step is being applied."""

    stage: Stage
    trained: torch.nn.Module  # the part itself, or its adapters
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    step: int = 0
    loss_average: float | None = None
    whole: bool = True
    live: Snapshot | None = None  # the tensors that all this is made of

    @property
    def run_step(self) -> int:
        return self.stage.first_step + self.step

    def drawing(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the live modules hold the weights to draw with."""
        return self.ema.swapped_in() if self.ema is not None else contextlib.nullcontext()

    def apply_gradients(self, rate: float) -> None:
        """One optimizer step at this learning rate; gradients are those of the whole, unscaled by nobody yet."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.whole = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        self.whole = True

    def end(self) -> None:
        """The stage is over: the modules keep what is drawn with, and later stages build on that."""
        if self.ema is not None:
            self.ema.swap()
        self.trained.requires_grad_(False)


def make_state(stage: Stage, trained: torch.nn.Module, config: DreamBoothConfig, device: str) -> StageState:
    trained.requires_grad_(True)
    named = dict(trained.named_parameters())
    parameters = list(named.values())
    return StageState(
        stage,
        trained,
        parameters,
        torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=1e-2, fused=True),
        torch.amp.GradScaler(device, enabled=config.mixed_precision == "fp16" and device != "cpu"),
        Ema(named, config.ema_decay) if config.ema_decay else None,
    )


def restore_state(state: StageState, checkpoint: Checkpoint) -> None:
    """Bring `state`, just made, to where it stood when `checkpoint` was saved in the middle of its stage."""
    load_drawn(state.trained, state.stage.part, checkpoint)
    if state.ema is not None:
        state.ema.load(dict(state.trained.named_parameters()))
        state.trained.load_state_dict(files.load_tensors(checkpoint, files.LIVE_FILE))
    files.load_optimizer(checkpoint, state.optimizer)
    files.restore_random_state(checkpoint)
    scale = checkpoint.facts.get("scaler")
    if scale and state.scaler.is_enabled():
        state.scaler.load_state_dict(scale)
    state.loss_average = checkpoint.facts.get("loss_average")
    state.step = checkpoint.step - state.stage.first_step


def load_drawn(trained: torch.nn.Module, part: str, checkpoint: Checkpoint) -> None:
    """What an earlier stage ended with, or this one draws with."""
    if isinstance(trained, Adapters):
        trained.load(files.load_tensors(checkpoint, files.LORA_FILE))
    else:
        trained.load_state_dict(files.load_tensors(checkpoint, f"{part}.safetensors"))


def snapshot(
    state: StageState,
    parts: Parts,
    earlier: dict[str, torch.nn.Module],
    config: DreamBoothConfig,
    device: str,
) -> Snapshot:
    """Live tensors and facts of this step. `earlier`: what stages before this one trained, by part."""
    if state.live is None:
        state.live = _live(state, parts, earlier, config)
    return replace(
        state.live,
        step=state.run_step,
        texts={files.RANDOM_FILE: files.random_state()},
        facts=_facts(state, config, device),
    )


def _live(
    state: StageState, parts: Parts, earlier: dict[str, torch.nn.Module], config: DreamBoothConfig
) -> Snapshot:
    """The tensors of a stage. Steps change them in place, so they are looked for once: that takes milliseconds."""
    drawn = dict(state.trained.state_dict()) | (state.ema.tensors if state.ema else {})
    tensors: dict[str, files.Tensors] = {files.OPTIMIZER_FILE: files.optimizer_tensors(state.optimizer)}
    metadata, frozen = {}, frozenset()
    if isinstance(state.trained, Adapters):
        lora = state.trained.tensors(drawn)
        for adapters in earlier.values():
            lora |= adapters.tensors()
        tensors[files.LORA_FILE] = lora
        metadata = {files.LORA_FILE: _lora_header(parts, config)}
    else:
        tensors[f"{state.stage.part}.safetensors"] = drawn
        for part, module in earlier.items():
            tensors[f"{part}.safetensors"] = module.state_dict()
        frozen = frozenset(f"{part}.safetensors" for part in earlier)
    if state.ema is not None:
        tensors[files.LIVE_FILE] = state.trained.state_dict()
    return Snapshot(state.run_step, state.stage.name, tensors, {}, {}, frozen, metadata)


def _facts(state: StageState, config: DreamBoothConfig, device: str) -> dict[str, Any]:
    draws = state.step * config.gradient_accumulation
    return {
        "config": asdict(config),
        "config_hash": fingerprint(asdict(config)),
        # The data's order is a function of the seed: where it stands is told by the number of draws.
        "position": {"stage_step": state.step, "draws": draws, "instances": draws * config.batch_size},
        "loss_average": state.loss_average,
        "scaler": state.scaler.state_dict(),
        "circumstances": files.circumstances(device),
    }


def _lora_header(parts: Parts, config: DreamBoothConfig) -> dict[str, str]:
    return lora_metadata(
        title=config.instance_prompt,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        side_px=config.resolution_px,
        prediction_type=parts.scheduler_config.get("prediction_type", "epsilon"),
    )
