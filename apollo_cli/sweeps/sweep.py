"""A command from Hydra's start to its exit code: one run, or the jobs of a sweep and their closing table."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from shutil import which
from typing import Any, ClassVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

import apollo_cli
from apollo_cli import files
from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.error_help import explained
from apollo_cli.cli.exit_codes import report
from apollo_cli.config.hydra_syntax import in_quotes, job_config, typed_value
from apollo_cli.errors import EXIT_BUG, EXIT_OK, EXIT_USER_ERROR, ApolloError, ConfigError
from apollo_cli.signals import StopRequest, Terminated
from apollo_cli.sweeps import gpus, grid
from apollo_cli.sweeps.job import AS_FOLDER, job
from apollo_cli.sweeps.journal import Journal
from apollo_cli.sweeps.table import close_sweep
from apollo_cli.training.distributed.environment import ProcessEnv

_GRID_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS
_WAIT = 5  # seconds for the other processes of a sweep that is refused


def run_hydra(line: CommandLine) -> int:
    """Has Hydra run, sweep or show what was typed; returns the exit code."""
    with ExitStack() as opened:
        command = Command.current = Command(line, opened)
        opened.callback(command.end)
        try:
            commands = grid.commands(line)
            command.later = commands[1:]
            for overrides in commands:
                if code := _hydra_main([*line.flags, *overrides]):
                    break
            if command.refusal:
                raise command.refusal
        except (KeyboardInterrupt, Terminated) as stop:  # between two jobs, or the second signal
            if not command.folder:
                raise
            code = 128 + (stop.signum if isinstance(stop, Terminated) else signal.SIGINT)
        except ConfigError:
            raise
        except Exception as error:
            if command.folder and not command.refusal:
                code = command.failure(error)
            elif _is_ours(error) or isinstance(error, BrokenPipeError):  # Program.run knows what it means
                raise
            else:
                raise explained(line, error) from error
        if code == EXIT_BUG and not line.runs:  # Hydra printed why it cannot show what was asked for
            code = EXIT_USER_ERROR
        return command.close(code)


def _is_ours(error: Exception) -> bool:
    """Whether this program raised it, which is a bug; Hydra raises all sorts for words that it does not expect."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return Path(last[0].f_code.co_filename).is_relative_to(Path(apollo_cli.__file__).parent)


def _hydra_main(words: list[str]) -> int:
    """Calls Hydra with these words; returns the code that it or the job exits with."""
    sys.argv[1:] = words
    try:
        hydra.main(config_path="pkg://apollo_cli.conf", config_name="config", version_base="1.3")(job)()
    except SystemExit as stop:
        if isinstance(stop, Terminated):
            raise
        return int(stop.code or EXIT_OK)
    return EXIT_OK


class Command:
    """What one `apollo-train` command does through Hydra. Its callback finds it in `current`."""

    current: ClassVar["Command | None"] = None

    def __init__(self, line: CommandLine, opened: ExitStack) -> None:
        self.line = line
        self.later: list[list[str]] = []  # the overrides of the sweeps that follow; none but for a shipped sweep
        self.refusal: Exception | None = None  # why a sweep does not begin
        self.new_folders: list[Path] = []  # run or sweep folder and its parents that did not exist; innermost first
        self.folder: Path | None = None  # of the sweep; None for a run on its own, and before a sweep has begun
        self._hint = ""  # how the sweep continues
        self._submitted: Path | None = None  # folder of the logs of submitted jobs
        self._forwarder: StopRequest | None = None
        self._opened = opened  # until the end of the command

    def end(self) -> None:
        files.remove_empty(self.new_folders)
        Command.current = None
        if "joblib.externals.loky" in sys.modules:  # its processes would stay, with the journal of this sweep
            sys.modules["joblib.externals.loky"].get_reusable_executor(reuse=True).shutdown()

    def begin_sweep(self, config: DictConfig) -> None:
        """Checks the jobs of a sweep, opens its journal, says how it continues; edits Hydra's part of `config`."""
        is_grid = config.hydra.sweeper._target_ == _GRID_SWEEPER
        overrides = _sweep_overrides(config)
        jobs = grid.combinations(overrides, is_grid)
        _escape_slashes(config)
        if self.folder is None:
            _check_processes()
            _check_jobs(config, jobs, is_grid)
            loader = GlobalHydra.instance().config_loader()
            for words in self.later:  # now, not after hours of the first one
                other = loader.load_configuration(config.hydra.job.config_name, words, RunMode.MULTIRUN)
                _escape_slashes(other)
                of_other = _sweep_overrides(other)
                _check_jobs(other, grid.combinations(of_other, is_grid), is_grid)
                overrides += of_other
            HydraConfig.instance().set_config(config)
            self._open_sweep(config, [o.key_or_group for o in overrides if o.is_sweep_override()], is_grid)
        if is_grid:  # all jobs lie in one folder, though hydra.sweep.dir may name a key in which they differ
            _set(config, "hydra.sweep.dir", str(self.folder))
        launcher = config.hydra.launcher
        with read_write(config.hydra):
            if self._submitted:
                launcher.submitit_folder = f"{self._submitted}/%j"
            elif is_grid and "n_jobs" in launcher:  # no more processes than jobs: each has its share of the CPUs
                from joblib import effective_n_jobs

                launcher.n_jobs = min(len(jobs), effective_n_jobs(launcher.n_jobs))

    def _open_sweep(self, config: DictConfig, swept: list[str], is_grid: bool) -> None:
        """Makes the journal of jobs that differ in the swept keys; says where they lie and how to continue."""
        target = str(config.hydra.launcher._target_)
        if target.endswith(".SlurmLauncher") and not (which("sbatch") and which("srun")):
            name = HydraConfig.get().runtime.choices["hydra/launcher"]
            raise ConfigError(
                f"hydra/launcher={name}: no sbatch and srun here; type the command on a machine of the cluster"
            )
        if not is_grid:
            _continue_study(config)
        folder = Path(config.hydra.sweep.dir)
        self.new_folders += files.missing(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"hydra.sweep.dir={folder}: cannot be made ({error.strerror}); type another folder"
            ) from error
        if ".hydra_submitit_launcher." in target:  # a new folder, so that nothing pickled earlier is loaded
            self._submitted = folder / ".submitit" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        is_joblib = target.endswith(".JoblibLauncher")
        place = self._submitted and self._submitted / "journal"
        self._journal = self._opened.enter_context(Journal.kept(swept, gpus.visible() if is_joblib else [], place))
        if is_joblib:  # the second signal is for the command itself
            self._forwarder = self._opened.enter_context(StopRequest(self._journal.stop))
        self.folder = folder
        if is_grid or config.hydra.sweeper.get("storage"):
            self._hint = f"continue with: {_continuing(self.line, folder if is_grid else None)}"
        else:
            self._hint = "a search without hydra.sweeper.storage begins anew when it is typed again"
        print(f"sweep in {files.shown(folder)}; if it ends early, {self._hint}", flush=True)

    def failure(self, error: Exception) -> int:
        """Says why a sweep ended before its time; the exit code."""
        if self._forwarder and self._forwarder.signum:
            return 128 + self._forwarder.signum
        if isinstance(error, BrokenExecutor):
            reason = (
                "a process that ran a job was killed, perhaps because memory was used up (a smaller "
                "hydra.launcher.n_jobs runs fewer jobs at once)"
            )
        elif self._submitted and type(error).__module__.startswith("submitit."):
            reason = (
                f"{' '.join(str(error).splitlines()[:2])}; logs are in {files.shown(self._submitted)}. Jobs that "
                "were submitted run on without this command, to their end"
            )
        elif self._journal.ended() and isinstance(error, ValueError):  # a search without a single loss
            return EXIT_OK
        else:
            return report(error)
        print(f"apollo-train: {reason}; {self._hint}", file=sys.stderr)
        return EXIT_USER_ERROR

    def close(self, code: int) -> int:
        """Prints the table of a sweep, or how it continues after a signal; the exit code of the command."""
        if self.folder is None:
            return code
        if self._forwarder and self._forwarder.signum:
            code = 128 + self._forwarder.signum
        if code > 128:
            jobs = "; submitted jobs run without this command" if self._submitted else ""
            name = signal.Signals(code - 128).name
            print(f"apollo-train: stopped by {name}{jobs}; {self._hint}", file=sys.stderr)
        if code:
            return code
        ended = self._journal.ended()
        code = close_sweep(ended)
        if sum(job.status == "completed" for job in ended) > 1:
            print(f"compare them: {files.command('apollo-compare')} {shlex.quote(files.shown(self.folder))}")
        return code


class SweepCallback(Callback):
    """Lets the command of this process act before Hydra makes a folder or runs a job; named in conf/config.yaml."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if command := Command.current:
            with _refusing(command), suppress(OmegaConfBaseException):  # Hydra raises it again
                _check_names("hydra.run.dir", config.hydra.run.dir)
                command.new_folders += files.missing(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if command := Command.current:
            with _refusing(command):
                command.begin_sweep(config)


@contextmanager
def _refusing(command: Command) -> Iterator[None]:
    """Ends Hydra with the error that is raised here, which Hydra would turn into a warning."""
    try:
        yield
    except Exception as error:
        command.refusal = error
        sys.exit(EXIT_USER_ERROR)


def _check_names(key: str, folder: str) -> None:
    """Raises a ConfigError for a folder that has too long a name, or lies in one."""
    size = max((len(os.fsencode(part)) for part in Path(folder).parts), default=0)
    if size > _LONGEST_NAME:
        raise ConfigError(
            f"{key}: a folder would have a name of {size} bytes, and {_LONGEST_NAME} is the most; name fewer "
            "keys in it, or leave some out by hydra.job.config.override_dirname.exclude_keys=[KEY,...]"
        )


def _check_processes() -> None:
    """Refuses a sweep that several processes were started for: each would run all of it."""
    if process := ProcessEnv.from_environ(os.environ):
        from apollo_cli.training.distributed.group import connect

        with suppress(ApolloError):  # so that one of them says it
            connect(timeout=_WAIT)
        raise ConfigError(
            f"-m: each of the {process.world_size} processes would run the whole sweep; leave torchrun or srun "
            "out, and type devices=N, which gives each job as many devices, or hydra/launcher=joblib"
        )


def _check_jobs(config: DictConfig, jobs: Sequence[Sequence[str]], is_grid: bool) -> None:
    """Composes and parses each job of a sweep, given by its words, once.

    A ConfigError has the problems if every job has some. Others are printed: these jobs fail alone.
    """
    if is_grid and (size := config.hydra.sweeper.max_batch_size) is not None and size < 1:
        raise ConfigError(f"hydra.sweeper.max_batch_size={size}: should be greater than 0")
    loader = GlobalHydra.instance().config_loader()
    fixed = list(OmegaConf.to_container(config.hydra.overrides.hydra))  # type: ignore[arg-type]
    found: dict[str, None] = {}  # in order
    failing = 0
    owners: dict[str, Sequence[str]] = {}
    for number, words in enumerate(jobs):
        composed = loader.load_configuration(config.hydra.job.config_name, [*fixed, *words], RunMode.MULTIRUN)
        if composed.hydra.sweeper.get("params") and not config.hydra.sweeper.get("params"):
            name = composed.hydra.runtime.choices["experiment"]
            raise ConfigError(f"experiment={name}: it is a sweep itself; type no other experiment beside it")
        with read_write(composed.hydra), open_dict(composed.hydra):
            composed.hydra.job.update(num=number, id=str(number))
            composed.hydra.runtime.update(output_dir=".", cwd=str(Path.cwd()))
        HydraConfig.instance().set_config(composed)
        if is_grid:
            _check_folder(composed, words, owners)
        try:
            with open_dict(composed):
                values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            parsed = job_config(values, words)
            if not is_grid and (parsed.run.plan or parsed.data.inspect):
                key = "plan" if parsed.run.plan else "data.inspect"
                raise ConfigError(f"{key}=true: a search chooses its jobs by their losses; type a grid to see one")
        except (ConfigError, OmegaConfBaseException) as error:
            of_job = error.problems if isinstance(error, ConfigError) else [str(error).splitlines()[0]]
            found |= dict.fromkeys(of_job)
            failing += 1
    if failing == len(jobs):
        raise ConfigError(*found)
    if found:
        listed = "".join(f"\n  - {problem}" for problem in found)
        print(f"apollo-train: some jobs of this sweep will fail; the others run{listed}", file=sys.stderr)


def _check_folder(config: DictConfig, words: Sequence[str], owners: dict[str, Sequence[str]]) -> None:
    """Notes in `owners`, {folder: words of its job}, which folder the job of these words has.

    A ConfigError if it cannot be made, or is that of another job, after which this one would be refused.
    """
    with suppress(OmegaConfBaseException):  # Hydra raises it again when it makes the folder
        _check_names("hydra.sweep.subdir", config.hydra.sweep.subdir)
        other = owners.setdefault(config.hydra.sweep.subdir, words)
        if other != words:
            key = next(word.lstrip("+").partition("=")[0] for word in words if word not in other)
            name = f"{'hydra:runtime.choices.' * (key in config.hydra.runtime.choices)}{key}"
            raw = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[call-overload, index]
            typed = raw.replace(f"${{{AS_FOLDER}:${{", "${").replace("}}", "}")
            remedy = (
                f"add ${{{name}}} to it"
                if f"${{{name}}}" not in typed
                else "type hydra.sweep.subdir='${hydra.job.num}'"
            )
            raise ConfigError(f"hydra.sweep.subdir={typed}: jobs that differ in {key} have one folder; {remedy}")


def _sweep_overrides(config: DictConfig) -> list[Override]:
    """What Hydra's sweepers read: the parameters in a config, then the words of the command."""
    params = config.hydra.sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return list({o.key_or_group: o for o in parser.parse_overrides(words)}.values())


def _escape_slashes(config: DictConfig) -> None:
    """A value with a slash in hydra.sweep.subdir names one folder, not several."""
    raw = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[call-overload, index]
    escaped = raw.replace("${", f"${{{AS_FOLDER}:${{").replace("}", "}}")
    if raw not in (escaped, "${hydra.job.num}"):
        _set(config, "hydra.sweep.subdir", escaped)


def _set(config: DictConfig, key: str, value: str) -> None:
    """Sets a key of Hydra's, here and in the config of every job, which Hydra composes anew."""
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config, key, value)
        config.hydra.overrides.hydra.append(f"{key}={in_quotes(value)}")


def _continue_study(config: DictConfig) -> None:
    """A search with a storage has a name, by which it continues when it is typed again, in a new folder."""
    sweeper, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir)
    if sweeper.get("storage") and not sweeper.get("study_name"):
        with read_write(config.hydra), open_dict(config.hydra):
            sweeper.study_name = config.name
    if folder.exists() and any(folder.iterdir()):
        number = next(n for n in range(2, 1_000_000) if not Path(f"{folder}_{n}").exists())
        _set(config, "hydra.sweep.dir", f"{folder}_{number}")
        study = f"study {sweeper.study_name} continues" if sweeper.get("storage") else "a new study begins"
        print(f"{files.shown(folder)} holds trials already: {study} in {files.shown(folder)}_{number}")


def _continuing(line: CommandLine, folder: Path | None) -> str:
    """The command that continues a sweep, as it is typed here; a search has a new folder each time."""
    typed = [word for word in line.overrides if not word.lstrip("+").startswith("hydra.sweep.dir=")]
    place = [f"hydra.sweep.dir={typed_value(files.shown(folder))}"] if folder else []
    return shlex.join([files.command("apollo-train"), *line.flags, *typed, *place])
