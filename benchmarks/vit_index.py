"""Recall, latency, build time and memory of each kind of index, beside comparing with every vector.

    python3 -m fastsd_lib benchmark vit_index [--count 1000000] [--kinds exact,signs,ivf,hnsw] [--data easy,hard]

The vectors are made, streaming to the disk: "easy" = 1,000 tight clusters, "hard" = a 64-dimensional sheet without
clusters; vectors of real pictures lie between. Queries are further draws of the same kind, none of them is in the index.
Each kind runs in a process of its own on `--threads` cores. Memory is what the process itself holds at most (RssAnon of
Linux, before it begins taken off); the vectors are mapped from the disk and count for no one. HNSW takes minutes to build:
it sees `--hnsw-count` vectors only. CPU ms: the mean of processor
time for one query, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = ("exact", "signs", "ivf", "hnsw")
DATA = ("easy", "hard")
K = 10
_BLOCK = 16384


def made(data: str, count: int, dimension: int, seed: int) -> Iterator[np.ndarray]:
    """(n, dimension) float32 blocks, `count` rows in all."""
    fixed, random = np.random.default_rng(7), np.random.default_rng([seed, DATA.index(data)])
    sheet = fixed.standard_normal((64, dimension), np.float32)
    centres = fixed.standard_normal((1000, dimension), np.float32)
    for begin in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - begin)
        block = random.standard_normal((rows, dimension), np.float32) * np.float32(0.05)
        latent = random.standard_normal((rows, 64), np.float32)
        if data == "easy":
            block += centres[random.integers(0, len(centres), rows)]
            latent *= np.float32(0.04)
        yield block + latent @ sheet


def make_store(folder: Path, data: str, count: int, dimension: int) -> None:
    from fastsd_lib.vit.vector_store import Maker, Row, write_store

    rows = [Row(f"{data}/{number:07d}") for number in range(count)]
    write_store(folder, Maker(f"made, {data}", data), rows, made(data, count, dimension, seed=1), dimension)


def measure(options: argparse.Namespace) -> dict:
    """In a process of its own."""
    import fastsd_lib.vit.index as index_module
    from fastsd_lib.vit.vector_store import VectorStore

    if importable("faiss"):
        import faiss

        faiss.omp_set_num_threads(options.threads)
    store = VectorStore.open(options.store, verify=False)
    queries = np.concatenate(list(made(options.data, options.queries, store.dimension, seed=2)))
    with Peak() as peak:
        began, processor = time.perf_counter(), time.process_time()
        index = index_module.build_index(store, options.kind, recall=options.recall)
        built_s, built_cpu_s = time.perf_counter() - began, time.process_time() - processor
        _, rows = index.search(queries, K)
        singles = min(options.singles, 100) if options.kind == "exact" else options.singles
        processor_s = time.process_time()
        one = timed(lambda number: index.search(queries[number % len(queries)], K), singles)
        processor_s = time.process_time() - processor_s
        batch = timed(lambda number: index.search(queries[:200], K), options.batches)
    truth_file = options.store / "truth.npy"
    if options.kind == "exact":
        np.save(truth_file, rows)
    truth = np.load(truth_file)
    with tempfile.TemporaryDirectory(dir=options.store) as folder:
        index.save(folder)
        own = sum(
            path.stat().st_size for path in Path(folder).iterdir() if not path.name.startswith("vectors-")
        )
    return {
        "data": options.data, "kind": options.kind, "count": len(store), "build_s": round(built_s, 1),
        "build_cpu_s": round(built_cpu_s, 1), "peak_mib": round(peak.mib), "files_mib": round(own / 2**20),
        "recall": found_share(rows, truth),
        "cpu_ms": round(1000 * processor_s / (singles + 1), 2),
        "p50_ms": round(float(np.percentile(one, 50)), 2), "p99_ms": round(float(np.percentile(one, 99)), 2),
        "batch200_ms": round(float(np.median(batch)) / min(200, len(queries)), 2), "facts": index.facts,
    }  # fmt: skip


def found_share(rows: np.ndarray, truth: np.ndarray) -> float:
    shares = [len(set(found) & set(wanted)) / K for found, wanted in zip(rows, truth, strict=True)]
    return round(float(np.mean(shares)), 4)


def timed(call, count: int) -> list[float]:
    """Milliseconds of each call, after one that warms up."""
    call(0)
    spent = []
    for number in range(count):
        began = time.perf_counter()
        call(number)
        spent.append(1000 * (time.perf_counter() - began))
    return spent


class Peak:
    """The most memory of its own that this process holds while the block runs, less what it held before, in MiB."""

    def __enter__(self) -> Peak:
        self._most = self._before = _anonymous_kib()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)
        self._watch.start()
        return self

    def _run(self) -> None:
        while not self._over.wait(0.01):
            self._most = max(self._most, _anonymous_kib())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    @property
    def mib(self) -> float:
        return (self._most - self._before) / 1024


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def run_child(store: Path, data: str, kind: str, options: argparse.Namespace) -> dict:
    arguments = [
        sys.executable,
        "-m",
        "benchmarks.vit_index",
        "--child",
        kind,
        "--data",
        data,
        "--store",
        str(store),
    ]
    for name in ("queries", "singles", "batches", "recall", "threads"):
        arguments += [f"--{name}", str(getattr(options, name))]
    threads = {
        name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    repository = Path(__file__).resolve().parents[1]
    ran = subprocess.run(
        arguments,
        cwd=repository,
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def table(results: list[dict]) -> str:
    lines = [
        f"{'data':5} {'kind':6} {'vectors':>9} {'recall@10':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>7} {'of 200 ms':>9} "
        f"{'build s':>8} {'peak MiB':>9} {'files MiB':>9}  settings"
    ]
    for one in results:
        settings = ", ".join(
            f"{name} {one['facts'][name]}" for name in ("width", "probes", "effort") if name in one["facts"]
        )
        lines.append(
            f"{one['data']:5} {one['kind']:6} {one['count']:>9,} {one['recall']:>9.4f} {one['p50_ms']:>8.2f} "
            f"{one['p99_ms']:>8.2f} {one['cpu_ms']:>7.2f} {one['batch200_ms']:>9.2f} {one['build_s']:>8.1f} "
            f"{one['peak_mib']:>9,} {one['files_mib']:>9,}  {settings}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--hnsw-count", type=int, default=50_000)
    parser.add_argument("--recall", type=float, default=0.99, help="at 10, what the kinds are tuned to")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--singles", type=int, default=200, help="searches of one query each, for p50 and p99"
    )
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the vectors go for a while (3 GB for a million)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        options.kind = options.child
        print(json.dumps(measure(options)))
        return 0
    kinds = [kind for kind in KINDS if kind in options.kinds.split(",")]
    results = []
    for data in options.data.split(","):
        for count, some in _by_count(kinds, options):
            with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-", dir=options.folder) as folder:
                began = time.perf_counter()
                make_store(Path(folder) / "store", data, count, options.dimension)
                print(
                    f"{count:,} {data} vectors made in {time.perf_counter() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                for kind in some:
                    result = run_child(Path(folder) / "store", data, kind, options)
                    if kind in kinds and (kind != "exact" or count == options.count):
                        results.append(result)
                        print(json.dumps(result), file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2) if options.json else table(results))
    return 0


def _by_count(kinds: list[str], options: argparse.Namespace) -> list[tuple[int, list[str]]]:
    """(number of vectors, kinds that see so many); exact search first, it is the truth of the others."""
    large = [kind for kind in kinds if kind != "hnsw"]
    small = min(options.hnsw_count, options.count)
    if "hnsw" not in kinds:
        return [(options.count, ["exact", *[kind for kind in large if kind != "exact"]])]
    if small == options.count:
        return [(small, ["exact", *[kind for kind in kinds if kind != "exact"]])]
    runs = [(options.count, ["exact", *[kind for kind in large if kind != "exact"]])] if large else []
    return [*runs, (small, ["exact", "hnsw"])]


if __name__ == "__main__":
    raise SystemExit(main())
