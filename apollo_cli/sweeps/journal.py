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

_VARIABLE = "APOLLO_JOURNAL"  # the number of the command's process, and the folder


@dataclass(frozen=True)
class JobResult:
    """A job that ended."""

    run_dir: str
    code: int  # exit code, as of a run on its own
    status: str  # completed, planned, interrupted, failed, or refused (the directory holds another run)
    reason: str = ""  # why the code is not 0, or why there is no loss
    words: Sequence[str] = ()  # the overrides in which it differs from the others


class Journal:
    """A folder that lasts as long as the command, or for good where jobs are submitted.

    `sweep.json` has the keys that are swept and the GPUs, `ended/` a file for each job, `working/` one for each
    process that runs one, `numbers/` one for each that ran one, and `stop` exists once no further job may begin.
    """

    def __init__(self, folder: Path, owner: int) -> None:
        self.owner = owner  # number of the command's process; 0 where jobs are submitted and do not depend on it
        self.numbers = folder / "numbers"
        self._sweep, self._stop = folder / "sweep.json", folder / "stop"
        self._ended, self._working = folder / "ended", folder / "working"

    @classmethod
    @contextmanager
    def kept(cls, swept: Sequence[str], gpus: Sequence[str] = (), place: Path | None = None) -> Iterator["Journal"]:
        """A new journal, which the processes started by this one find with `of_command`.

        `swept` are the keys that have several values, `gpus` are shared out among the processes, and `place` is the
        folder where jobs are submitted: other machines see it, and it stays.
        """
        with TemporaryDirectory(prefix="apollo-train-") if place is None else nullcontext(place) as folder:
            journal = cls(Path(folder).absolute(), 0 if place else os.getpid())
            for inner in (journal.numbers, journal._ended, journal._working):
                inner.mkdir(parents=True)
            files.write_json(journal._sweep, {"swept": swept, "gpus": gpus})
            os.environ[_VARIABLE] = f"{journal.owner} {journal._sweep.parent}"
            try:
                yield journal
            finally:
                del os.environ[_VARIABLE]

    @classmethod
    def of_command(cls) -> "Journal":
        """The journal of the command that this process belongs to."""
        owner, _, folder = os.environ[_VARIABLE].partition(" ")
        return cls(Path(folder), int(owner))

    @property
    def is_of_submitted(self) -> bool:
        """Whether jobs are submitted and do not depend on the command."""
        return not self.owner

    @property
    def is_of_another_process(self) -> bool:
        """Whether this process is not the command's own."""
        return self.owner != os.getpid()

    @property
    def gpus(self) -> list[str]:
        return self._read()["gpus"]

    def _read(self) -> dict[str, list[str]]:
        return json.loads(self._sweep.read_text(encoding="utf-8"))

    def words_of(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a job whose keys are swept."""
        swept = self._read()["swept"]
        return [word for word in overrides if word.partition("=")[0].lstrip("+") in swept]

    def add(self, ended: JobResult) -> None:
        """Records the end of a job, in a file of its own: other machines may write as well."""
        files.write_json(self._ended / f"{uuid4().hex}.json", asdict(ended))

    def ended(self) -> list[JobResult]:
        """All jobs, in the order of their names, numbers in them taken as numbers."""
        jobs = [JobResult(**json.loads(path.read_text(encoding="utf-8"))) for path in self._ended.glob("*.json")]
        return sorted(jobs, key=lambda job: files.in_order(job.run_dir))

    @contextmanager
    def running(self) -> Iterator[bool]:
        """Lets `stop` find this process while entered; False where no job may begin any more."""
        sign = self._working / str(os.getpid())
        sign.touch()  # before the check: a later `stop` finds it
        try:
            yield not self._stop.exists()
        finally:
            sign.unlink(missing_ok=True)

    def stop(self, signum: int) -> None:
        """Lets no job begin, and forwards the signal to the processes that run one."""
        self._stop.touch()
        for sign in self._working.iterdir():
            with suppress(ProcessLookupError):
                os.kill(int(sign.name), signum)
