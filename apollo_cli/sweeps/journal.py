"""What became of the cells of a sweep, whichever processes they ran in, and how these are asked to stop."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from apollo_cli.files import in_order
from apollo_cli.training.interrupt import StopRequest

_VARIABLE = "APOLLO_JOURNAL"  # the number of the command's process, and the folder


@dataclass(frozen=True)
class Ended:
    """A cell that ended.

    Attributes:
        run_dir: its directory.
        code: exit code, as of a run on its own.
        status: completed, planned, interrupted, failed, or refused: what is in the directory is another run.
        reason: the message of a code that is not 0.
        words: the overrides that tell it from the others.
    """

    run_dir: str
    code: int
    status: str
    reason: str = ""
    words: Sequence[str] = ()


class Journal:
    """A folder that lasts as long as the command.

    `swept.json` has the keys that are swept, `ended.jsonl` a line for each cell, `working/` a file for each process
    that runs one, and `stop` is there once no further cell may begin.
    """

    def __init__(self, folder: Path, owner: int) -> None:
        self.owner = owner
        self._swept = folder / "swept.json"
        self._lines, self._working, self._stop = folder / "ended.jsonl", folder / "working", folder / "stop"

    @classmethod
    @contextmanager
    def kept(cls, swept: Sequence[str]) -> Iterator["Journal"]:
        """A new one, which the processes that this one starts find with `of_command`."""
        with TemporaryDirectory(prefix="apollo-train-") as folder:
            journal = cls(Path(folder), os.getpid())
            journal._working.mkdir()
            journal._swept.write_text(json.dumps(swept), encoding="utf-8")
            os.environ[_VARIABLE] = f"{journal.owner} {folder}"
            try:
                yield journal
            finally:
                del os.environ[_VARIABLE]

    @classmethod
    def of_command(cls) -> "Journal":
        """The one of the command that this process belongs to."""
        owner, _, folder = os.environ[_VARIABLE].partition(" ")
        return cls(Path(folder), int(owner))

    @property
    def is_of_another_process(self) -> bool:
        """Whether cells run beside each other, of which this process has one."""
        return self.owner != os.getpid()

    def words_of(self, overrides: Sequence[str]) -> list[str]:
        """Those of a cell's overrides that tell it from the others."""
        swept = json.loads(self._swept.read_text(encoding="utf-8"))
        return [word for word in overrides if word.partition("=")[0].lstrip("+") in swept]

    def add(self, ended: Ended) -> None:
        """Notes the end of a cell; one write, so that lines of several processes do not mix."""
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(ended)) + "\n")

    def ended(self) -> list[Ended]:
        """All cells, in the order of their names, numbers in them taken as numbers."""
        if not self._lines.exists():
            return []
        cells = [Ended(**json.loads(line)) for line in self._lines.read_text(encoding="utf-8").splitlines()]
        return sorted(cells, key=lambda cell: in_order(cell.run_dir))

    @contextmanager
    def at_work(self) -> Iterator[bool]:
        """Lets `stop` find this process while entered; False where no cell may begin any more."""
        sign = self._working / str(os.getpid())
        sign.touch()  # before the look: a stop that comes later finds it
        try:
            yield not self._stop.exists()
        finally:
            sign.unlink(missing_ok=True)

    def stop(self, signum: int) -> None:
        """Lets no cell begin, and passes the signal on to the processes that run one."""
        self._stop.touch()
        for sign in self._working.iterdir():
            with suppress(ProcessLookupError):
                os.kill(int(sign.name), signum)


class Relay(StopRequest):
    """While entered, passes the first signal on to the cells and waits for them; the second one is for itself."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        super()._remember(signum, frame)
        self.journal.stop(signum)
