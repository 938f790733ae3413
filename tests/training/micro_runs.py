"""Real training runs in processes of their own, of a model so small that hundreds fit into a minute.

Run as a script it is a fork server: torch is imported once, in one thread, and every run is a fork of it that has
seen no other run. It takes one job per line of JSON on stdin and answers each with one line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsd_lib.sessions.checkpoints import list_checkpoints, newest_intact
from fastsd_lib.training.config import DreamBoothConfig

CONFIG = DreamBoothConfig(
    "photo of sks cat",
    "photo of a cat",
    class_images=3,
    resolution_px=64,
    text_encoder_steps=6,
    unet_steps=8,
    batch_size=2,
    unet_learning_rate=1e-2,
    text_encoder_learning_rate=1e-2,
    lora_rank=2,
    lora_alpha=1.0,
    warmup_steps=2,
    save_every_steps=2,
    sample_every_steps=0,
    flip=True,
)


@dataclass(frozen=True)
class End:
    """Of one process: `code` as of subprocess; `error` its traceback."""

    code: int
    error: str = ""


class Runs:
    """The fork server as its user sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def run(self, name: str, changes: dict[str, Any] | None = None, **how: Any) -> End:
        """Train in a new process until it ends; `how`: stop_after (steps), signal_at (step), kill_after_s."""
        return End(**self._ask({"name": name, "changes": changes or {}, **how}))

    def killed_at_random(self, name: str, times: int, seed: int) -> dict[str, Any]:
        return self._ask({"name": name, "kills": times, "seed": seed, "changes": {}})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)

    def losses(self, name: str) -> list[tuple[int, float, float]]:
        return losses(self._folder / name)

    def weights(self, name: str, changes: dict[str, Any] | None = None) -> dict[str, str]:
        """File name -> SHA-256 of all that a finished run's last checkpoint holds but its random state."""
        config = replace(CONFIG, **(changes or {}))
        last = list_checkpoints(self._folder / name / "checkpoints")[-1]
        assert last.step == config.text_encoder_steps + config.unet_steps
        return hashes(last)

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the fork server died"
        return json.loads(line)


def losses(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["loss_average"]) for line in lines]


def hashes(checkpoint: Any) -> dict[str, str]:
    manifest = json.loads((checkpoint.path / "manifest.json").read_bytes())
    return {name: facts[1] for name, facts in manifest["files"].items() if name.endswith(".safetensors")}


# ------------------------------------------------------------------------------------------- in the server


def micro_parts(folder: Path) -> Any:
    """Stable Diffusion's modules with two narrow levels, 8x8 latents and a text encoder of one layer."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import save_tokenizer

    from fastsd_lib.formats.parts import Parts

    torch.manual_seed(7)
    vocabulary = save_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
        )
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4)
    modules = (one.eval().requires_grad_(False) for one in (unet, vae, text_encoder))
    return Parts(*modules, CLIPTokenizer.from_pretrained(folder / "tokenizer"))


def micro_set(folder: Path) -> tuple[Any, Any]:
    """A training set of real files, and latents as a VAE could have made them."""
    import torch
    from PIL import Image

    from fastsd_lib.images.crop import find_crop
    from fastsd_lib.images.instance import InstanceImage
    from fastsd_lib.images.load import open_photo
    from fastsd_lib.training.latents import LatentCache
    from fastsd_lib.training.training_set import TrainingSet

    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 64), (40 * number, 90, 200 - 30 * number)).save(path)
    instances = tuple(
        InstanceImage(path, f"photo of sks cat, {path.stem}", find_crop(open_photo(path)))
        for path in paths[:3]
    )
    torch.manual_seed(8)
    cache = LatentCache(torch.randn(6, 2, 4, 8, 8), 0.1 * torch.rand(6, 2, 4, 8, 8))
    return TrainingSet(instances, tuple(paths[3:]), "photo of a cat"), cache


def serve(folder: Path) -> None:
    import torch

    import fastsd_lib.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    (folder / "base").mkdir(parents=True)
    parts, (training_set, cache) = micro_parts(folder / "base"), micro_set(folder / "base")

    def begin(job: dict[str, Any]) -> int:
        process = os.fork()
        if not process:
            code = 1
            try:
                _train(parts, training_set, cache, folder / job["name"], job)
                code = 0
            except SystemExit as asked:
                code = asked.code
            except BaseException:
                (folder / "error.txt").write_text(traceback.format_exc())
            os._exit(code)  # nothing of the server's own is cleaned up twice
        return process

    answer = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        job = json.loads(line)
        result = _kill_often(begin, folder, job) if "kills" in job else _run_once(begin, folder, job)
        answer.write(json.dumps(result) + "\n")
        answer.flush()


def _run_once(begin: Any, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    error = folder / "error.txt"
    error.unlink(missing_ok=True)
    process = begin(job)
    if "kill_after_s" in job:
        time.sleep(job["kill_after_s"])
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"code": code, "error": error.read_text() if error.is_file() else ""}


def _train(parts: Any, training_set: Any, cache: Any, run: Path, job: dict[str, Any]) -> None:
    from fastsd_lib.training import trainer

    config = replace(CONFIG, **job["changes"])
    run.mkdir(exist_ok=True)
    announced = os.open(run / "announced", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    taken = iter(range(1, 10_000))

    def should_stop() -> bool:
        done = next(taken)
        if done == job.get("signal_at"):
            for _ in range(job.get("signals", 1)):
                os.kill(os.getpid(), getattr(signal, job["signal"]))
        return done >= job.get("stop_after", 10_000)

    def report(event: Any) -> None:
        if event.done == job.get("raise_at") and event.task == "U-Net":
            raise RuntimeError("the panel broke")

    trainer.train(
        parts,
        cache,
        training_set,
        config,
        run=trainer.run_fingerprint("micro", training_set, config),
        checkpoints=run / "checkpoints",
        logs=run / "logs",
        should_stop=should_stop,
        report=report,
        on_saved=lambda saved: os.write(announced, f"{saved.step}\n".encode()),
    )


def _kill_often(begin: Any, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """SIGKILL at random times of a run; go on, kill again; from the start again whenever it got to its end."""
    luck, result = random.Random(job["seed"]), {"kills": 0, "finished": 0, "lost": 0, "where": {}}
    whole = _timed(begin, {**job, "name": f"{job['name']}-whole"})
    wanted = folder / f"{job['name']}-whole"
    number = 0
    while result["kills"] < job["kills"]:
        run = folder / f"{job['name']}-{number}"
        fresh, delay_s = not run.exists(), luck.uniform(0, 0.9 * whole)
        process = begin({**job, "name": run.name})
        time.sleep(delay_s)
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == -signal.SIGKILL:
            result["kills"] += 1
            result["lost"] += _lost(run)
            where = _where(run)
            result["where"][where] = result["where"].get(where, 0) + 1
            if result["kills"] < job["kills"]:
                continue
        elif code != 0:
            return {**result, "error": (folder / "error.txt").read_text()}
        elif fresh:
            whole = min(whole, delay_s)  # the machine was busier when it was timed: kills came after the end
        while code != 0:  # the last one is left in peace
            code = os.waitstatus_to_exitcode(os.waitpid(begin({**job, "name": run.name}), 0)[1])
        last, first = list_checkpoints(run / "checkpoints")[-1], list_checkpoints(wanted / "checkpoints")[-1]
        same = hashes(last) == hashes(first) and losses(run) == losses(wanted)
        result["finished"] += same
        if not same:
            return {**result, "error": f"{run} ended otherwise"}
        number += 1
    return {**result, "runs": number}


def _timed(begin: Any, job: dict[str, Any]) -> float:
    start = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(begin(job), 0)[1]) == 0
    return time.monotonic() - start


def _lost(run: Path) -> int:
    """Steps lost that had been announced as safe."""
    held = list_checkpoints(run / "checkpoints")
    found = newest_intact(run / "checkpoints", held[-1].run)[0] if held else None
    announced = (run / "announced").read_text().split() if (run / "announced").is_file() else []
    return max(0, int(announced[-1]) - (found.step if found else 0)) if announced else 0


def _where(run: Path) -> str:
    """What the kill left behind: half a save, or none."""
    folder = run / "checkpoints"
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return "in a save" if any(not (path / "manifest.json").is_file() for path in paths) else "between saves"


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
