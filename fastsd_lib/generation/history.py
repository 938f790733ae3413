"""What was ordered and what became of it, in a file that survives a restart."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.history_requests import from_json, png_of, to_json
from fastsd_lib.generation.jobs import Job, Order

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")

TABLES = """
create table if not exists jobs (
    number integer primary key autoincrement, id text unique not null, owner text not null, kind text not null,
    state text not null, model text not null, vae text not null, at_once integer, prompt text not null,
    request text not null, infotexts text not null default '[]', seeds text not null default '[]',
    files text not null default '[]', error text not null default '', created_s real, started_s real,
    finished_s real
);
create table if not exists inputs (name text primary key, bytes integer not null, png blob not null);
create table if not exists inputs_of (
    job integer not null references jobs(number) on delete cascade, name text not null
);
create index if not exists inputs_by_job on inputs_of (job);
create index if not exists inputs_by_name on inputs_of (name);
"""
COLUMNS = (
    "id, owner, kind, state, model, vae, prompt, request, infotexts, seeds, files, error, created_s, started_s,"
    " finished_s"
)


class History:
    """Jobs with their requests, the newest first; safe to ask from any thread.

    States are those of jobs, and "lost": under way when the program ended without a word. A file that is damaged
    is moved aside, never deleted; the log says so.
    """

    def __init__(self, path: Path, most_jobs: int = 10_000, most_input_mib: int = 1024) -> None:
        """Beyond `most_jobs` the oldest are forgotten; beyond `most_input_mib` the pictures they were drawn over.

        UserError when the file cannot be made.
        """
        self.path, self.most_jobs, self._most_input_bytes = path, most_jobs, most_input_mib << 20
        self._lock = threading.Lock()
        with self._lock:
            try:
                self._base = self._open()
                with self._base:
                    self._base.execute("update jobs set state = 'lost' where state in ('waiting', 'drawing')")
            except sqlite3.DatabaseError as error:
                self._start_anew(error)

    # --- writing

    def record(self, job: Job) -> None:
        """Write how the job stands now; the first time with its request."""
        from fastsd_lib.generation.infotext import infotext

        texts = json.dumps([infotext(one.record) for one in job.pictures], ensure_ascii=False)
        seeds = json.dumps([one.seed for one in job.pictures])
        error = str(job.error) if job.error else ""

        def write(base: sqlite3.Connection) -> None:
            # The same id again is another job: it takes the place of the one that is over.
            base.execute("delete from jobs where id = ? and created_s <> ?", (job.id, job.created_s))
            if base.execute("select 1 from jobs where id = ?", (job.id,)).fetchone() is None:
                self._insert(base, job)
            base.execute(
                "update jobs set state = ?, infotexts = ?, seeds = ?, error = ?, started_s = ?, finished_s = ?"
                " where id = ?",
                (job.state, texts, seeds, error, job.started_s, job.finished_s, job.id),
            )
            self._forget_old(base)

        self._with_base(write)

    def _insert(self, base: sqlite3.Connection, job: Job) -> None:
        order, inputs = job.order, {}

        def keep(picture: Any) -> str:
            name, png = png_of(picture)
            inputs[name] = png
            return name

        request = json.dumps(to_json(order.request, keep), ensure_ascii=False)
        model, vae = job.model_key if job.model_key[0] else (order.model, order.vae)
        number = base.execute(
            "insert into jobs (id, owner, kind, state, model, vae, at_once, prompt, request, created_s)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.id, order.owner, order.kind, job.state, model, vae, order.at_once, order.request.prompt,
                request, job.created_s,
            ),
        ).lastrowid  # fmt: skip
        base.executemany(
            "insert or ignore into inputs values (?, ?, ?)",
            [(name, len(png), png) for name, png in inputs.items()],
        )
        base.executemany("insert into inputs_of values (?, ?)", [(number, name) for name in inputs])

    def _forget_old(self, base: sqlite3.Connection) -> None:
        too_many = base.execute("select count(*) from jobs").fetchone()[0] - self.most_jobs
        if too_many > 0:
            base.execute(
                "delete from jobs where number in (select number from jobs order by number limit ?)",
                (too_many,),
            )
            base.execute("delete from inputs where name not in (select name from inputs_of)")
        while (base.execute("select sum(bytes) from inputs").fetchone()[0] or 0) > self._most_input_bytes:
            base.execute("delete from inputs where rowid = (select min(rowid) from inputs)")

    def set_files(self, job_id: str, files: Sequence[Path | str]) -> None:
        """Where the pictures of a job were saved."""
        said = json.dumps([str(one) for one in files], ensure_ascii=False)
        self._with_base(lambda base: base.execute("update jobs set files = ? where id = ?", (said, job_id)))

    def delete(self, job_id: str) -> bool:
        """Forget one job; its files stay. False when there is none."""

        def write(base: sqlite3.Connection) -> bool:
            found = base.execute("delete from jobs where id = ?", (job_id,)).rowcount
            base.execute("delete from inputs where name not in (select name from inputs_of)")
            return bool(found)

        return self._with_base(write)

    # --- reading

    def search(
        self, text: str = "", owner: str | None = None, state: str = "", most: int = 50, skip: int = 0
    ) -> list[dict[str, Any]]:
        """The newest first; `text` is looked for in the prompt and in how the pictures were made."""
        where, values = _where(text, owner, state)
        rows = self._with_base(
            lambda base: base.execute(
                f"select {COLUMNS} from jobs{where} order by number desc limit ? offset ?",
                (*values, max(most, 0), max(skip, 0)),
            ).fetchall()
        )
        return [_entry(row) for row in rows]

    def count(self, text: str = "", owner: str | None = None, state: str = "") -> int:
        """How many `search` would find."""
        where, values = _where(text, owner, state)
        return self._with_base(
            lambda base: base.execute(f"select count(*) from jobs{where}", values).fetchone()[0]
        )

    def get(self, job_id: str) -> dict[str, Any] | None:
        row = self._with_base(
            lambda base: base.execute(f"select {COLUMNS} from jobs where id = ?", (job_id,)).fetchone()
        )
        return _entry(row) if row else None

    def request_of(self, job_id: str) -> Order:
        """The order, to be given again. UserError for an id that is not there, or whose pictures are not."""
        row = self._with_base(
            lambda base: base.execute(
                "select kind, owner, model, vae, at_once, request from jobs where id = ?", (job_id,)
            ).fetchone()
        )
        if row is None:
            raise UserError(f"No job {job_id!r} in the history.", fix="take the id of one that is listed.")
        request = from_json(json.loads(row["request"]), self._input)
        return Order(request, row["model"], row["vae"], row["owner"], row["at_once"], kind=row["kind"])

    def _input(self, name: str) -> Any:
        from PIL import Image

        row = self._with_base(
            lambda base: base.execute("select png from inputs where name = ?", (name,)).fetchone()
        )
        if row is None:
            raise UserError(
                "The picture that this job was drawn over is not kept any more.",
                fix="order it with a new one.",
            )
        picture = Image.open(io.BytesIO(row["png"]))
        picture.load()
        return picture

    def close(self) -> None:
        with self._lock:
            self._base.close()

    # --- the file

    def _with_base(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """One at a time, all or nothing. A damaged file is moved aside, and the work done on a new one."""
        with self._lock:
            try:
                with self._base:
                    return work(self._base)
            except sqlite3.OperationalError:  # a full disk, a lock: the file is well
                raise
            except sqlite3.DatabaseError as error:
                if "malformed" not in str(error) and "not a database" not in str(error):
                    raise
                self._base.close()
                self._start_anew(error)
                with self._base:
                    return work(self._base)

    def _open(self) -> sqlite3.Connection:
        base = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(self.path, check_same_thread=False, timeout=10)
            base.row_factory = sqlite3.Row
            base.execute("pragma journal_mode = wal")
            base.execute(
                "pragma synchronous = normal"
            )  # a power cut may cost the last moments, never the file
            base.execute("pragma foreign_keys = on")
            base.executescript(TABLES)
            if base.execute("pragma quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("database disk image is malformed")
            return base
        except (OSError, sqlite3.DatabaseError) as error:
            if base is not None:
                base.close()
            if isinstance(
                error, (OSError, sqlite3.OperationalError)
            ):  # no damage: no place, no right, locked
                raise UserError(
                    f"The history {self.path} cannot be opened: {error}.",
                    fix="choose a folder you may write to, which no other server uses.",
                ) from None
            raise

    def _start_anew(self, error: Exception) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        for ending in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
        LOG.warning(
            "The history %s is damaged (%s): moved to %s, a new one is begun", self.path, error, aside
        )
        self._base = self._open()


def _where(text: str, owner: str | None, state: str) -> tuple[str, tuple[Any, ...]]:
    parts, values = [], []
    if text:
        like = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        parts.append("(prompt like ? escape '\\' or infotexts like ? escape '\\' or id = ?)")
        values += [like, like, text]
    if owner is not None:
        parts.append("owner = ?")
        values.append(owner)
    if state:
        parts.append("state = ?")
        values.append(state)
    return (" where " + " and ".join(parts)) if parts else "", tuple(values)


def _entry(row: sqlite3.Row) -> dict[str, Any]:
    entry = dict(row)
    for name in ("request", "infotexts", "seeds", "files"):
        entry[name] = json.loads(entry[name])
    return entry
