"""Kept results: one archive for each corpus and kind of model, benchmarks/results/CORPUS_KIND.tar.bz2.

`python -m benchmarks.archives unpack DIR` writes each cell as a run directory, DIR/CORPUS/CELL, which
`apollo-compare` reads; `python -m benchmarks.archives pack DIR` makes the archives from such folders. The same
files give the same bytes: members are sorted and have neither time nor owner, and bzip2 has one encoder.
"""

import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from apollo_cli import files
from apollo_cli.report.comparison import Comparison, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import read_runs
from apollo_cli.run_directory import RunDirectory
from benchmarks.cells import ReproductionCell

RESULTS = Path(__file__).with_name("results")
UNPACKED = Path(__file__).parents[1] / "outputs" / "benchmarks"
_SUFFIX = ".tar.bz2"
_KINDS = ("gpt", "bert", "llama")

Cell = TypeVar("Cell", bound=ReproductionCell)


@dataclass(frozen=True)
class BenchmarkCorpus:
    """The complete cells of a corpus, of one kind of model or of all.

    A campaign of one kind has a folder and an archive of its own, so that another may run beside it.
    """

    name: str
    kind: str | None = field(default=None, kw_only=True)

    @cached_property
    def folder(self) -> Path:
        """Complete cells as folders: those of the archives, and those that a campaign has added to them.

        The archives are unpacked here once; its name has their fingerprint, so that newer ones get another folder.
        """
        content = b"".join(path.read_bytes() for path in self._archives if path.exists())
        own = self.name if self.kind is None else f"{self.name}_{self.kind}"
        folder = UNPACKED / f"{own}-{sha256(content).hexdigest()[:12]}"
        if not folder.exists():
            UNPACKED.mkdir(parents=True, exist_ok=True)
            unfinished = Path(mkdtemp(dir=UNPACKED, prefix="."))
            self.unpack(unfinished)
            try:
                unfinished.rename(folder)
            except OSError:  # another process was faster
                files.remove(unfinished)
        return folder

    def kept(self, cell: ReproductionCell) -> Path:
        """Folder of a cell, which exists if the cell is complete."""
        return self.folder / cell.name

    def complete(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.kept(cell).exists()]

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if not self.kept(cell).exists()]

    def summary(self, cell: ReproductionCell) -> dict[str, Any]:
        """summary.json of a cell; no more than a status if it is not complete."""
        return RunDirectory(self.kept(cell)).summary()

    def loss(self, cell: ReproductionCell) -> str:
        """Final validation loss with four digits; a dash if the cell is not complete."""
        losses = self.summary(cell).get("losses")
        return f"{losses['eval/loss']:.4f}" if losses else "-"

    def compared(self, folders: Iterable[Path], baseline: str | None) -> Comparison:
        """The runs of these cells, beside the method of this name if one is asked for; notes say CORPUS/CELL."""
        runs, _ = read_runs(list(map(str, folders)))
        named = [replace(run, place=f"{self.name}/{Path(run.place).name}") for run in runs]
        (comparison,) = compare(families(named)[0], Question(baseline))
        return comparison

    def unpack(self, folder: Path) -> None:
        for path in self._archives:
            if path.exists():
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")

    def pack(self, folder: Path) -> None:
        """Writes the archives of the cells in this folder where they differ from those that are there."""
        members = sorted((path for path in folder.rglob("*") if path.is_file()), key=Path.as_posix)
        for path, kind in zip(self._archives, self._kinds, strict=True):
            of_kind = [member for member in members if member.relative_to(folder).parts[0].startswith(f"{kind}_")]
            content = _archive(folder, of_kind)
            if of_kind and not (path.exists() and path.read_bytes() == content):
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, content)

    def save(self) -> None:
        """Writes the archives at the end of a campaign; the folder is unpacked again when it is read."""
        self.pack(self.folder)
        files.remove(self.folder)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return _KINDS if self.kind is None else (self.kind,)

    @property
    def _archives(self) -> list[Path]:
        return [RESULTS / f"{self.name}_{kind}{_SUFFIX}" for kind in self._kinds]


def corpora() -> list[BenchmarkCorpus]:
    """The corpora with archives."""
    names = {path.name.removesuffix(_SUFFIX).rpartition("_")[0] for path in RESULTS.glob(f"*{_SUFFIX}")}
    return [BenchmarkCorpus(name) for name in sorted(names)]


def growth_costs(summary: dict[str, Any]) -> list[float]:
    """Rise of the validation loss at each growth of a run, in nats."""
    return [growth["eval/loss_after"] - growth["eval/loss_before"] for growth in summary["growths"]]


def _archive(folder: Path, members: Iterable[Path]) -> bytes:
    """A tar of these files, compressed; a new TarInfo has time 0, owner 0 and mode 644."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w:bz2", format=tarfile.USTAR_FORMAT) as archive:
        for member in members:
            info = tarfile.TarInfo(member.relative_to(folder).as_posix())
            info.size = member.stat().st_size
            with member.open("rb") as file:
                archive.addfile(info, file)
    return content.getvalue()


def main(command: str, folder: str) -> None:
    if command == "unpack":
        for corpus in corpora():
            corpus.unpack(Path(folder) / corpus.name)
    elif command == "pack":
        for path in sorted(Path(folder).iterdir()):
            BenchmarkCorpus(path.name).pack(path)
    else:
        sys.exit(f"{command}: no such command; they are unpack and pack")


if __name__ == "__main__":
    main(*sys.argv[1:])
