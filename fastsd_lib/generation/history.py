"""What was ordered and what became of it, in a file that survives a restart."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from fastsd_lib.generation.jobs import Job

TABLE = """
create table if not exists jobs (
    id text primary key, owner text, kind text, state text, model text, prompt text, request text, infotexts text,
    seeds text, files text, error text, created_s real, started_s real, finished_s real
)
"""


class History:
    """Jobs, the newest first."""

    def __init__(self, path: Path, most_jobs: int = 10_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.most_jobs = path, most_jobs
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, check_same_thread=False)
        self._base.row_factory = sqlite3.Row
        with self._lock, self._base:
            self._base.execute("pragma journal_mode=wal")
            self._base.execute(TABLE)
            self._base.execute("update jobs set state = 'lost' where state in ('waiting', 'drawing')")

    def record(self, job: Job, request: dict[str, Any] | None = None) -> None:
        """Write how the job stands now. `request`: what was asked, as JSON."""
        texts, seeds = _told(job)
        with self._lock, self._base:
            self._base.execute(
                "insert into jobs (id, owner, kind, state, model, prompt, request, infotexts, seeds, files, error,"
                " created_s, started_s, finished_s) values (?,?,?,?,?,?,?,?,?,'[]',?,?,?,?)"
                " on conflict(id) do update set state=excluded.state, infotexts=excluded.infotexts,"
                " seeds=excluded.seeds, error=excluded.error, started_s=excluded.started_s,"
                " finished_s=excluded.finished_s",
                (
                    job.id, job.order.owner, job.order.kind, job.state, job.order.model,
                    job.order.request.prompt, json.dumps(request or {}), json.dumps(texts), json.dumps(seeds),
                    str(job.error) if job.error else "", job.created_s, job.started_s, job.finished_s,
                ),
            )  # fmt: skip

    def set_files(self, job_id: str, files: list[Path]) -> None:
        """Where the pictures of a job were saved."""
        with self._lock, self._base:
            self._base.execute(
                "update jobs set files = ? where id = ?", (json.dumps([str(one) for one in files]), job_id)
            )

    def search(
        self, text: str = "", owner: str | None = None, state: str = "", most: int = 50, skip: int = 0
    ) -> list[dict[str, Any]]:
        """The newest first; `text` is looked for in the prompt and in how the pictures were made."""
        like = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with self._lock:
            rows = self._base.execute(
                "select * from jobs where (prompt like ? escape '\\' or infotexts like ? escape '\\' or id = ?)"
                " and (? is null or owner = ?) and (? = '' or state = ?)"
                " order by created_s desc, rowid desc limit ? offset ?",
                (like, like, text, owner, owner, state, state, most, skip),
            ).fetchall()
        return [_entry(row) for row in rows]

    def get(self, job_id: str) -> dict[str, Any] | None:
        with self._lock:
            row = self._base.execute("select * from jobs where id = ?", (job_id,)).fetchone()
        return _entry(row) if row else None

    def request_of(self, job_id: str) -> dict[str, Any] | None:
        """What was asked, as JSON, to be ordered again."""
        entry = self.get(job_id)
        return entry["request"] if entry else None

    def delete(self, job_id: str) -> bool:
        """Forget one job; its files stay."""
        with self._lock, self._base:
            return bool(self._base.execute("delete from jobs where id = ?", (job_id,)).rowcount)

    def close(self) -> None:
        with self._lock:
            self._base.close()


def _told(job: Job) -> tuple[list[str], list[int]]:
    from fastsd_lib.generation.infotext import infotext

    return [infotext(one.record) for one in job.pictures], [one.seed for one in job.pictures]


def _entry(row: sqlite3.Row) -> dict[str, Any]:
    entry = dict(row)
    for name in ("request", "infotexts", "seeds", "files"):
        entry[name] = json.loads(entry[name])
    return entry
