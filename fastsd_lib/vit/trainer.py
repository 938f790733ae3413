"""Fine-tune a ViT, or train a new one, on a folder of pictures; a run that was stopped goes on to the very same weights."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsd_lib.core.config import check_config, save_config
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, plain_disk_errors, read_json, sha256_file, write_json
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.stopping import TrainingStopped, polite_stop
from fastsd_lib.sessions.checkpoints import Checkpoint, clear_unfinished, newest_intact
from fastsd_lib.vit import calibration_file, layers, train_machine
from fastsd_lib.vit import train_checkpoint as files
from fastsd_lib.vit.config import PROCESSOR
from fastsd_lib.vit.distil import Teacher
from fastsd_lib.vit.folder_data import ImageFolder
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.lora_head import add_lora, merged, save_adapter
from fastsd_lib.vit.model import VitModel, load_torch, open_model
from fastsd_lib.vit.model_config import read_raw
from fastsd_lib.vit.new_model import make_new, save_quietly
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.train_data import TrainingSet, ValidationSet
from fastsd_lib.vit.train_log import reason, trim_metrics
from fastsd_lib.vit.train_loop import Loop, checkpoint_of
from fastsd_lib.vit.train_report import REPORT, write_about
from fastsd_lib.vit.train_run import Run
from fastsd_lib.vit.training_sets import open_training_data
from fastsd_lib.vit.whole_folder import whole_folder

MODEL, ADAPTER, RECIPE, RESULT = "model", "adapter", "recipe.yaml", "result.json"
#: What changes how a run is carried out, and not what comes out of it.
_INDIFFERENT = (
    "device",
    "threads",
    "cache_mib",
    "keep_checkpoints",
    "save_every_steps",
    "gradient_checkpointing",
)


@dataclass(frozen=True)
class TrainedVit:
    """What a run made: `out`/model (transformers' layout), `out`/checkpoints, `out`/metrics.jsonl."""

    model: VitModel
    out: Path
    images: ImageFolder = field(repr=False)  # every path of it
    metrics: dict[str, float]  # accuracy, top5 (0 to 1) and loss on the validation pictures; {} without any
    steps: int
    seconds: float  # of this call; 0 when everything was there already
    resumed_from: int = 0  # the step that this call went on from
    notes: tuple[str, ...] = ()
    adapter: Path | None = None  # the LoRA alone, as peft reads it
    report: Path | None = None  # report.html with confusion matrix, calibration and worst mistakes


def train(
    config: VitTrainConfig,
    out: Path,
    on_progress: Report = silent,
    *,
    images: ImageFolder | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainedVit:
    """Train as `config` says, or resume what `out` holds of the very same run.

    `images` stands in for `config.data` when the caller has opened it. Under torchrun or accelerate each process calls
    this; the first one writes. Ctrl-C or `should_stop` finish the running step, save, and raise TrainingStopped (not where
    several processes share the run). UserError for whatever the user can mend, a full disk and an impossible batch among it.
    """
    check_config(config)
    out = Path(out)
    began = time.monotonic()
    first = int(os.environ.get("RANK", "0")) == 0
    with plain_disk_errors(f"train into {out}"):
        out.mkdir(parents=True, exist_ok=True)
        images = images or open_training_data(config, out)
        if not images.validation and config.validation and config.early_stopping:
            raise UserError("There are no validation pictures to stop by.", fix="set early_stopping to 0.")
        for note in images.notes:
            on_progress(ProgressEvent("data", 1, 1, {"": note}))
        if config.probe_epochs:
            head_only = replace(
                config, freeze="head", method="full", epochs=config.probe_epochs, probe_epochs=0
            )
            before = train(head_only, out / "probe", on_progress, images=images, should_stop=should_stop)
            config = replace(config, model=str(before.model.path), probe_epochs=0)
        start = starting_model(config, images.classes, out)
        return Training(config, out, on_progress, images, start, began, first, should_stop).result()


class Training:
    """One run from its first step to its model folder."""

    def __init__(
        self,
        config: VitTrainConfig,
        out: Path,
        report: Report,
        images: ImageFolder,
        start: VitModel,
        began: float,
        first: bool,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.config, self.out, self.report, self.images = config, out, report, images
        self.start, self.began, self.first = start, began, first
        self.should_stop = should_stop
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.use_cpu = train_machine.use_cpu(config)
        self.geometry = Geometry.read(start.path, read_raw(start.path)["model_type"]).fitted(config.fit)
        self.name = run_name(config, images, start)
        self.notes: list[str] = []
        if config.threads:
            torch.set_num_threads(config.threads)

    def result(self) -> TrainedVit:
        checkpoints = self.out / "checkpoints"
        done = _finished(self.out, self.name)
        if done is not None:
            return TrainedVit(open_model(self.out / MODEL), self.out, self.images, **done, seconds=0.0)
        if self.first:
            clear_unfinished(checkpoints)
            save_config(self.config, self.out / RECIPE)
        parts = self.config.gradient_accumulation
        while True:
            try:
                return self._once(parts)
            except (RuntimeError, MemoryError) as error:
                if not train_machine.is_out_of_memory(error):
                    raise
                parts = self._smaller(parts)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _smaller(self, parts: int) -> int:
        """The same step in smaller pieces; what was saved is resumed."""
        if (
            self.processes > 1
        ):  # the others wait for this one's gradients: all would have to begin again together
            raise UserError(
                "A step does not fit into the memory of one of the processes.",
                fix="lower batch_size and raise gradient_accumulation by the same factor: the result stays the same.",
            ) from None
        at_once = self.config.batch_size * self.config.gradient_accumulation // (parts * self.processes)
        if at_once <= 1:
            raise UserError(
                "Not even one picture at a time fits into memory.",
                fix="set gradient_checkpointing on, method lora or freeze head, or take a smaller model.",
            ) from None
        self._say(f"memory is short: each step is cut into {2 * parts} parts; the result stays the same")
        return 2 * parts

    def _once(self, parts: int) -> TrainedVit:
        checkpoint, passed_over = newest_intact(self.out / "checkpoints", self.name)
        for line in passed_over:
            self._say(f"passed over: {line}")
        if checkpoint is not None:
            self._say(f"goes on from step {checkpoint.step} of {checkpoint.total_steps}")
        model, head = self.make_model()
        run = self.make_run(parts, head, model)
        loop = Loop(model, run)
        if self.first:
            trim_metrics(self.out, checkpoint.step if checkpoint else 0)
        over = checkpoint is not None and (checkpoint.finished or checkpoint.facts.get("stopped"))
        if over:
            loop._load_from_checkpoint(str(checkpoint.path))
            run.metrics = dict(checkpoint.facts.get("metrics", {}))
        else:
            self._learn(loop, run, checkpoint)
        if loop.unsaved is not None:
            raise UserError(
                f"The last checkpoint could not be written to {run.checkpoints}: {reason(loop.unsaved)}.",
                fix="free some space there and run this again: it continues from the one before.",
            )
        best = checkpoint.facts.get("best_step") if over else loop.state.best_global_step
        step = checkpoint.step if over else loop.state.global_step
        kept = step if not (self.config.keep_best and best) else best
        if self.first:
            metrics = run.metrics if kept == step else _metrics_at(run, kept)
            self._write_model(loop, run, kept if kept != step else None)
            if self.config.report:
                spent = time.monotonic() - self.began
                write_about(
                    self.config, self.images, self.start.name, self.out / MODEL, self.out, spent, self.report
                )
            write_json(
                self.out / RESULT,
                {"run": self.name, "metrics": metrics, "steps": step, "resumed_from": checkpoint.step if checkpoint else 0,
                 "notes": self.notes, "kept_step": kept},
            )  # fmt: skip
        loop.accelerator.wait_for_everyone()
        done = _finished(self.out, self.name)
        assert done is not None
        return TrainedVit(
            open_model(self.out / MODEL), self.out, self.images, **done, seconds=time.monotonic() - self.began
        )

    def _learn(self, loop: Loop, run: Run, checkpoint: Checkpoint | None) -> None:
        start = str(checkpoint.path) if checkpoint else None
        if self.processes > 1:  # they would not stop at the same step, and wait for each other for ever
            loop.train(resume_from_checkpoint=start)
            return
        with polite_stop(self.should_stop) as run.should_stop:
            loop.train(resume_from_checkpoint=start)
        if run.interrupted and loop.unsaved is None:
            raise TrainingStopped(
                f"Stopped, saved at step {loop.state.global_step} of {loop.state.max_steps}.",
                fix="run the same again: it goes on from there.",
            )

    def make_model(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The model that learns, and the names of its head's modules."""
        config, classes = self.config, self.images.classes
        torch.manual_seed(config.seed)  # a new head begins the same in every process
        model = load_torch(self.start, labels=classes)
        head = layers.head_modules(model)
        if self.start.labels != classes:
            _begin_anew(model, head)
        model.config.problem_type = "single_label_classification"
        if config.method == "lora":
            model = add_lora(model, config)
            said = f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} weights learn (LoRA)"
        else:
            said = layers.freeze(model, head, config.freeze)
        self._say(said)
        return model, head

    def make_run(self, parts: int, head: tuple[str, ...], model: nn.Module) -> Run:
        config = self.config
        classes = len(self.images.classes)
        report = self.report if self.first else silent
        validation = None
        if self.images.validation:
            validation = ValidationSet(self.images.validation, self.geometry, config)
        teacher = None
        if config.teacher:
            device = "cpu" if self.use_cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            teacher = Teacher(open_model(config.teacher), self.images.classes, self.geometry, config, device)
        if config.fit != "model":
            self._say(f"pictures are fitted in by {config.fit}: classify with the same fit")
        doubles = train_machine.gradient_checkpointing(config, model, self.use_cpu)
        if doubles:
            self._say("gradient checkpointing is on: less memory, somewhat slower")
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        return Run(
            config=config,
            out=self.out,
            name=self.name,
            training=TrainingSet(self.images.train, classes, self.geometry, config, report),
            validation=validation,
            head=head,
            teacher=teacher,
            report=report,
            parts=parts,
            mixed_precision=train_machine.mixed_precision(config, self.use_cpu),
            gradient_checkpointing=doubles,
            use_cpu=self.use_cpu,
            processes=self.processes,
        )

    def _write_model(self, loop: Loop, run: Run, step: int | None) -> None:
        """out/model, and out/adapter for LoRA: of the weights at `step`, or those that the loop holds."""
        model = loop.accelerator.unwrap_model(loop.model)
        with loop.judged_weights():
            if step is not None:
                checkpoint = checkpoint_of(run, step)
                if checkpoint is None:
                    self._say(f"the best model (step {step}) is not there any more: the last one is kept")
                else:
                    held = files.EMA if loop.ema is not None else files.WEIGHTS
                    files.load_learned(model, checkpoint.path / held)
            model = model.to("cpu")
            if self.config.method == "lora":
                with whole_folder(self.out / ADAPTER, ours=_is_adapter) as scratch:
                    save_adapter(model, scratch)
                model = merged(model)
            with whole_folder(self.out / MODEL, ours=_is_model) as scratch:
                save_quietly(model, scratch)
                shutil.copyfile(self.start.path / PROCESSOR, scratch / PROCESSOR)
                calibration_file.write_facts(
                    scratch,
                    recipe={**asdict(self.config), "data": Path(self.config.data).name},
                    trained_on={
                        "data": self.images.path.name,
                        "pictures": len(self.images.train),
                        "classes": self.images.counts(),
                        "began_with": "random weights" if self.config.from_scratch else self.start.name,
                    },
                )

    def _say(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
        if self.first:
            self.report(ProgressEvent("training", 1, 1, {"": text}))


def run_name(config: VitTrainConfig, images: ImageFolder, start: VitModel) -> str:
    """Changes with whatever decides the result: settings, pictures, split, the weights to begin with."""
    settings = {
        key: value for key, value in asdict(config).items() if key not in (*_INDIFFERENT, "data", "model")
    }
    weights = sorted(sha256_file(file) for file in start.path.glob("*.safetensors"))
    return fingerprint({"settings": settings, "pictures": images.fingerprint, "weights": weights})


def starting_model(config: VitTrainConfig, classes: Sequence[str], out: Path) -> VitModel:
    """The model to begin with; a new one is made once, by the first process."""
    if not config.from_scratch:
        return open_model(config.model, classifier=False)
    return open_model(make_new(config, classes, out / "start"))


def _begin_anew(model: nn.Module, head: Sequence[str]) -> None:
    """A head for other classes: what the old one knew would be taken for knowledge of the new ones."""
    for name in head:
        for part in model.get_submodule(name).modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


def _finished(out: Path, name: str) -> dict[str, Any] | None:
    """What a run that came to its end wrote; None where it has not, or where its model is gone."""
    path = out / RESULT
    if not path.is_file() or not (out / MODEL / "config.json").is_file():
        return None
    held = read_json(path)
    if not isinstance(held, dict) or held.get("run") != name:
        return None
    adapter = out / ADAPTER if (out / ADAPTER).is_dir() else None
    page = out / REPORT / "report.html"
    return {
        "metrics": held["metrics"],
        "steps": held["steps"],
        "resumed_from": held["resumed_from"],
        "notes": tuple(held["notes"]),
        "adapter": adapter,
        "report": page if page.is_file() else None,
    }


def _metrics_at(run: Run, step: int) -> dict[str, float]:
    checkpoint: Checkpoint | None = checkpoint_of(run, step)
    return dict(checkpoint.facts.get("metrics", {})) if checkpoint else run.metrics


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / calibration_file.NAME).is_file()


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
