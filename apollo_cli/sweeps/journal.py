"""The results of a sweep's jobs, whichever processes ran them, and the signal that stops these."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from apollo_cli import files

_VARIABLE = "APOLLO_JOURNAL"  # the folder of the command's journal


@dataclass(frozen=True)
class JobResult:
    """A job that ended."""

    run_dir: str
    code: int  # exit code, as of a run on its own
    status: str  # completed, planned, interrupted, failed, or refused (the directory holds another run)
    reason: str = ""  # why the code is not 0, or why there is no loss
    words: Sequence[str] = ()  # the overrides in which it differs from the others


@dataclass(frozen=True)
class Journal:
    """A folder that lasts as long as the command, or for good where jobs are submitted.

    `sweep.json` has the other fields of this class, `ended/` a file for each job, `working/` one for each
    process that runs one, `numbers/` one for each that ran one, and `stop` exists once no further job may begin.
    """

    folder: Path
    owner: int  # number of the command's process; 0 where jobs are submitted and do not depend on it
    swept: Sequence[str]  # the keys that have several values
    gpus: Sequence[str]  # shared out among the processes

    @classmethod
    @contextmanager
    def kept(cls, swept: Sequence[str], gpus: Sequence[str] = (), place: Path | None = None) -> Iterator["Journal"]:
        """A new journal, which the processes started by this one find with `of_command`.

        `place` is the folder where jobs are submitted: other machines see it, and it stays.
        """
        with TemporaryDirectory(prefix="apollo-train-") if place is None else nullcontext(place) as folder:
            journal = cls(Path(folder).absolute(), 0 if place else os.getpid(), swept, gpus)
            for inner in ("numbers", "ended", "working"):
                (journal.folder / inner).mkdir(parents=True)
            values = {"owner": journal.owner, "swept": swept, "gpus": gpus}
            files.write_json(journal.folder / "sweep.json", values)
            os.environ[_VARIABLE] = str(journal.folder)
            try:
                yield journal
            finally:
                del os.environ[_VARIABLE]

    @classmethod
    def of_command(cls) -> "Journal":
        """The journal of the command that this process belongs to."""
        folder = Path(os.environ[_VARIABLE])
        return cls(folder, **json.loads((folder / "sweep.json").read_text(encoding="utf-8")))

    def add(self, ended: JobResult) -> None:
        """Records the end of a job, in a file of its own: other machines may write as well."""
        files.write_json(self.folder / "ended" / f"{uuid4().hex}.json", asdict(ended))

    def ended(self) -> list[JobResult]:
        """All jobs, in the order of their names, numbers in them taken as numbers."""
        jobs = [
            JobResult(**json.loads(path.read_text(encoding="utf-8"))) for path in self.folder.glob("ended/*.json")
        ]
        return sorted(jobs, key=lambda job: files.in_order(job.run_dir))

    @contextmanager
    def running(self) -> Iterator[bool]:
        """Lets `stop` find this process while entered; False where no job may begin any more."""
        sign = self.folder / "working" / str(os.getpid())
        sign.touch()  # before the check: a later `stop` finds it
        try:
            yield not (self.folder / "stop").exists()
        finally:
            sign.unlink(missing_ok=True)

    def stop(self, signum: int) -> None:
        """Lets no job begin, and forwards the signal to the processes that run one."""
        (self.folder / "stop").touch()
        for sign in (self.folder / "working").iterdir():
            with suppress(ProcessLookupError):
                os.kill(int(sign.name), signum)
