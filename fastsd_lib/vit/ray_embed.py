"""The same embedding on several machines: Ray Data hands the parts to actors that each hold the model.

The pictures and the store lie on a disk that all machines see. An actor writes each part as `embed` would, so Ray may
lose machines and repeat work: a part that is there is the same part. Starting costs some ten seconds; below about 100,000
pictures one machine alone is done sooner. https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map.html
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import Features, Fit, RunnerConfig
from fastsd_lib.vit.embed import Embedder
from fastsd_lib.vit.embed_plan import PART_ROWS, Plan
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.vector_store import Maker, VectorStore, check_dtype

#: For Ray's own processes: no reports about its use, patience with a busy machine, no lines about what it does inside.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def embed_with_ray(
    model: VitModel,
    what: Any,
    features: Features | None = None,
    runner_config: RunnerConfig | None = None,
    out: str | Path = "vectors",
    on_progress: Report = silent,
    *,
    dtype: str = "float32",
    fit: Fit = "model",
    readers: int = 0,
    part_rows: int = PART_ROWS,
    actors: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> VectorStore:
    """What `embed` does, by `actors` actors with `cpus` processors and `gpus` GPUs each.

    `address` is a cluster's ("auto", "ray://host:10001"); None uses the one this program is connected to, else starts one
    on this machine and ends it. The vectors are those of `embed` with the same backend, precision and threads. UserError
    as from `embed`, and where a machine would compute with another backend than the others.
    """
    _need_ray()
    check_dtype(dtype)
    if actors < 1:
        raise UserError(f"{actors} actors cannot embed anything.", fix="give 1 or more.")
    settings = (model, features or Features(), runner_config or RunnerConfig(), fit, readers)
    out = Path(out).absolute()
    with _cluster(address, max(1, round(actors * cpus))) as ray, _plain_errors(ray):
        maker = ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(_maker).remote(settings))
        plan = Plan(out, maker, dtype, what, part_rows, on_progress)
        parts = list(plan.missing())
        if parts:
            numbers = [{"part": number} for number in range(len(parts))]
            data = ray.data.from_items(numbers, override_num_blocks=len(parts)).map(
                PartMaker,
                fn_constructor_args=(settings, maker, str(out), dtype, [ray.put(parts)]),
                compute=ray.data.ActorPoolStrategy(size=min(actors, len(parts))),
                num_cpus=cpus,
                num_gpus=gpus,
            )
            for done in data.iter_rows():
                plan.tell(int(done["count"]))
    return plan.finish()


class PartMaker:
    """The actor: opens the model once, then makes a part for each row."""

    def __init__(self, settings: tuple, maker: Maker, out: str, dtype: str, parts: list[Any]) -> None:
        import ray

        self._embedder = _embedder(settings)
        (self._parts,) = ray.get(parts)
        self._out, self._dtype = Path(out), dtype
        if self._embedder.maker != maker:
            raise UserError(
                f"One machine computes with {maker.runner}, another with {self._embedder.maker.runner}.",
                fix="name a backend and a precision that all of them have.",
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = self._parts[row["part"]]
        self._embedder.make(part, self._out, self._dtype)
        return {"name": part.name, "count": len(part.rows)}


def _embedder(settings: tuple) -> Embedder:
    model, features, config, fit, readers = settings
    return Embedder(model, features, config, fit=fit, readers=readers)


def _maker(settings: tuple) -> Maker:
    embedder = _embedder(settings)
    embedder.close()
    return embedder.maker


def _need_ray() -> None:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "ray is not installed here.", fix='pip install "ray[data]", on all machines of the cluster.'
        )


@contextmanager
def _cluster(address: str | None, cpus: int) -> Iterator[Any]:
    """ray, connected; a cluster that was started here ends here. Nothing is reported to anyone about its use."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that the bars are off, as we want them
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield ray
        return
    started = address is None and "RAY_ADDRESS" not in os.environ
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place, and leaves it there
    try:
        if started:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (
        Exception
    ) as error:  # Ray raises nearly anything here, a bare Exception where a machine is too busy
        raise UserError(
            f"No Ray cluster answers: {error}.", fix="check the address, or start one: ray start --head."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def _plain_errors(ray: Any) -> Iterator[None]:
    """A UserError that was raised on another machine is raised here as it is."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise UserError(cause.message, cause.fix) from None
