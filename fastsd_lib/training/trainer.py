"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) in two stages: the text encoder first, then the U-Net.

Every random choice of a step is a function of the seed and the step's number (OneTrainer's idea), so that a
checkpoint needs weights, optimizer and one integer, and a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.formats.parts import Parts, encode_prompts
from fastsd_lib.training import checkpoint as store
from fastsd_lib.training.checkpoint import Checkpoint
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.latents import LatentCache
from fastsd_lib.training.loss import NoiseScheduler, draw_noise, dreambooth_loss, learning_rate_factor
from fastsd_lib.training.run_log import RunLog
from fastsd_lib.training.training_set import TrainingSet, generator, rows_of_step

TEXT_ENCODER, UNET = "text encoder", "U-Net"
# What may change between a run and its continuation: none of it touches a weight.
FREE_FIELDS = ("save_every_steps", "keep_checkpoints", "sample_prompt", "sample_every_steps", "sample_count")

DrawSamples = Callable[[Parts, int], tuple[Path, ...]]  # (live parts, step) -> pictures written


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    learning_rate: float
    first_step: int  # how many steps earlier stages took


def stages_of(config: DreamBoothConfig) -> list[Stage]:
    return [
        Stage(TEXT_ENCODER, config.text_encoder_steps, config.text_encoder_learning_rate, 0),
        Stage(UNET, config.unet_steps, config.unet_learning_rate, config.text_encoder_steps),
    ]


def run_fingerprint(base_fingerprint: str, training_set: TrainingSet, config: DreamBoothConfig) -> str:
    """Equal for two runs that would end with the same weights."""
    choices = {name: value for name, value in asdict(config).items() if name not in FREE_FIELDS}
    return fingerprint([base_fingerprint, training_set.fingerprint, choices])


def train(
    parts: Parts,
    cache: LatentCache,
    training_set: TrainingSet,
    config: DreamBoothConfig,
    *,
    run: str,
    checkpoints: Path,
    logs: Path,
    device: str = "cpu",
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
    draw_samples: DrawSamples | None = None,
) -> Checkpoint:
    """Train to the end, or from the newest intact checkpoint of this run to the end.

    Returns the last checkpoint; `finished` is False when `should_stop`, Ctrl-C or SIGTERM ended it early,
    and calling again continues from there. Raises UserError when the loss is not finite or a disk is full.
    """
    total = config.text_encoder_steps + config.unet_steps
    resumed, rejected = store.newest_intact(checkpoints, run)
    for line in rejected:
        report(ProgressEvent("checkpoint passed over", 1, 1, {"": line}))
    if resumed and resumed.finished:
        return resumed
    done = resumed.step if resumed else 0
    with RunLog(logs, first_step=done) as log, _polite_stop(should_stop) as stopping:
        trainer = _Trainer(
            parts,
            cache,
            training_set,
            config,
            run,
            checkpoints,
            total,
            device,
            report,
            draw_samples,
            log,
            stopping,
        )
        latest = resumed
        for stage in stages_of(config):
            if done < stage.first_step + stage.steps:
                latest, stopped = trainer.run_stage(stage, done, latest)
                done = latest.step
                if stopped:
                    return latest
            elif resumed and stage.name == TEXT_ENCODER and stage.steps:
                store.load_weights(resumed, "text_encoder", parts.text_encoder)
    assert latest is not None  # conflicts() refuses a run of 0 steps
    return latest


class _Trainer:
    def __init__(
        self,
        parts: Parts,
        cache: LatentCache,
        training_set: TrainingSet,
        config: DreamBoothConfig,
        run: str,
        checkpoints: Path,
        total: int,
        device: str,
        report: Report,
        draw_samples: DrawSamples | None,
        log: RunLog,
        stopping: Callable[[], bool],
    ) -> None:
        self.parts, self.cache, self.set, self.config = parts, cache, training_set, config
        self.run, self.checkpoints, self.total, self.device = run, checkpoints, total, device
        self.report, self.draw_samples, self.log, self.stopping = report, draw_samples, log, stopping
        self.noise_scheduler = NoiseScheduler(parts.scheduler_config)

    def run_stage(self, stage: Stage, done: int, resumed: Checkpoint | None) -> tuple[Checkpoint, bool]:
        """From step `done` of the run to the stage's end; True if it was asked to stop on the way."""
        config, parts = self.config, self.parts
        name = "text_encoder" if stage.name == TEXT_ENCODER else "unet"
        module = parts.text_encoder if stage.name == TEXT_ENCODER else parts.unet
        continues = resumed is not None and done > stage.first_step
        if continues:
            store.load_weights(resumed, name, module)
        for other in (parts.unet, parts.text_encoder):
            other.requires_grad_(other is module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=1e-2, fused=True)
        if continues:
            store.load_optimizer(resumed, optimizer)
        scaler = torch.amp.GradScaler(
            self.device, enabled=config.mixed_precision == "fp16" and self.device != "cpu"
        )
        states = None if stage.name == TEXT_ENCODER else self._cached_states()

        step, end, average, clock = done - stage.first_step, stage.steps, None, _Clock()
        self.report(ProgressEvent(stage.name, step, end))
        latest, stop = resumed, False
        while step < end and not stop:
            rate = stage.learning_rate * learning_rate_factor(config.schedule, step, end, config.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self._accumulate(stage, step, states, scaler)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            here = stage.first_step + step
            average = loss if average is None else 0.98 * average + 0.02 * loss
            facts = {
                "loss": loss,
                "loss_average": average,
                "learning_rate": rate,
                **clock.facts(step - (done - stage.first_step), end - step, self._pictures_per_step),
            }
            self.log.write(here, stage.name, step, end, facts)
            stop = self.stopping()
            if stop or step == end or (config.save_every_steps and here % config.save_every_steps == 0):
                latest = self._save(stage, here, name, module, optimizer)
            pictures = self._samples(here, step == end, stage)
            self.report(ProgressEvent(stage.name, step, end, facts, pictures))
        module.requires_grad_(False)
        return latest, stop

    @property
    def _pictures_per_step(self) -> int:
        return (
            self.config.batch_size
            * self.config.gradient_accumulation
            * (2 if self.config.prior_preservation else 1)
        )

    def _accumulate(
        self, stage: Stage, step: int, states: torch.Tensor | None, scaler: torch.amp.GradScaler
    ) -> float:
        """Forward and backward of one step's micro-batches; returns their mean loss."""
        total = 0.0
        for part in range(self.config.gradient_accumulation):
            with self._autocast():
                loss = self._loss(stage, step * self.config.gradient_accumulation + part, states)
            value = loss.item()
            if value != value or value == float("inf"):
                raise UserError(
                    f"The loss became {value} at step {stage.first_step + step + 1} ({stage.name}).",
                    fix="lower the learning rate or set mixed_precision=no; earlier checkpoints are untouched.",
                )
            scaler.scale(loss / self.config.gradient_accumulation).backward()
            total += value / self.config.gradient_accumulation
        return total

    def _loss(self, stage: Stage, draw: int, states: torch.Tensor | None) -> torch.Tensor:
        config = self.config
        source = generator(config.seed, stage.name, draw)
        rows = rows_of_step(stage.name, draw, config, len(self.set.instances), len(self.set.class_images))
        latents = self.cache.sample(rows, self.parts.vae.config.scaling_factor, source)
        noise, timesteps = draw_noise(
            latents.shape, self.noise_scheduler.timesteps, config.offset_noise, source
        )
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        target = self.noise_scheduler.target(latents, noise, timesteps)
        weights = self.noise_scheduler.snr_weights(timesteps, config.min_snr_gamma)
        if states is None:
            prompts = self.set.prompts
            context = encode_prompts(self.parts, [prompts[row] for row in rows])
        else:
            context = states[rows]
        dtype = self.parts.unet.dtype
        answer = self.parts.unet(
            noisy.to(self.device, dtype), timesteps.to(self.device), context.to(dtype), return_dict=False
        )[0]
        return dreambooth_loss(answer, target.to(self.device), weights, config)

    @torch.no_grad()
    def _cached_states(self) -> torch.Tensor:
        """(rows, tokens, width): the text encoder is frozen in this stage, so every prompt is encoded once."""
        prompts = self.set.prompts
        distinct = sorted(set(prompts))
        encoded = torch.cat(
            [encode_prompts(self.parts, distinct[i : i + 32]) for i in range(0, len(distinct), 32)]
        )
        return encoded[[distinct.index(prompt) for prompt in prompts]]

    def _save(
        self, stage: Stage, step: int, name: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> Checkpoint:
        modules = {name: module}
        if stage.name == UNET and self.config.text_encoder_steps:
            modules["text_encoder"] = self.parts.text_encoder
        saved = store.save_checkpoint(
            self.checkpoints,
            step=step,
            total_steps=self.total,
            stage=stage.name,
            run=self.run,
            modules=modules,
            optimizer=optimizer,
            extra={"config": asdict(self.config), "torch": torch.__version__},
        )
        store.prune(self.checkpoints, self.run, self.config.keep_checkpoints)
        return saved

    def _samples(self, step: int, stage_ends: bool, stage: Stage) -> tuple[Path, ...]:
        every = self.config.sample_every_steps
        if (
            self.draw_samples is None
            or not every
            or not (step % every == 0 or (stage_ends and stage.name == UNET))
        ):
            return ()
        return self.draw_samples(self.parts, step)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.config.mixed_precision == "no":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.config.mixed_precision == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype)


class _Clock:
    """Pace and memory of the running stage."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def facts(self, done: int, left: int, pictures_per_step: int) -> dict[str, float]:
        spent = max(time.monotonic() - self._start, 1e-9)
        return {
            "images_per_s": done * pictures_per_step / spent,
            "eta_s": left * spent / max(done, 1),
            "memory_mib": _memory_mib(),
        }


def _memory_mib() -> float:
    """What the run holds now: GPU memory where it trains on one, else this process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated() / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**20


@contextlib.contextmanager
def _polite_stop(should_stop: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the running step, save, and stop; a second one ends at once."""
    asked = threading.Event()
    previous = {}

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    try:
        yield lambda: asked.is_set() or bool(should_stop and should_stop())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
