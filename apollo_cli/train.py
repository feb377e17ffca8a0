"""`apollo-train`: parse, call, exit code. Heavy imports wait until they are needed."""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from apollo_cli.cli.exit_codes import report
from apollo_cli.cli.help import page
from apollo_cli.cli.program import Program
from apollo_cli.errors import EXIT_OK, ConfigError
from apollo_cli.training.distributed.environment import ProcessEnv, launcher_start_time, leave_group

STAMP = "APOLLO_STAMP"  # names the run directory; conf/config.yaml reads it
_STAMP_FORMAT = "%Y-%m-%d_%H-%M-%S-%f"


def _train(words: list[str]) -> int:
    os.environ[STAMP] = datetime.now().strftime(_STAMP_FORMAT)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us as they are
    if "--schema" in words:
        from apollo_cli.config.json_schema import schema_text

        print(schema_text(), flush=True)
        return EXIT_OK

    from apollo_cli.cli.arguments import CommandLine
    from apollo_cli.cli.resume import resume_overrides

    _refuse_other_encodings(words)
    line = CommandLine.parse(words)
    env = ProcessEnv.from_environ(os.environ)
    if env and not line.multirun:  # a sweep of several processes is refused
        if line.typed("plan") != "true":
            _agree_on_stamp(line.typed("distributed.timeout"))
        elif env.rank == 0:  # one process plans for all
            leave_group(os.environ)
            line = replace(line, overrides=[f"devices={env.world_size}", *line.overrides])
        else:
            return EXIT_OK
    if line.runs and (asked := resume_overrides(line)):
        from apollo_cli.training.run import resume

        run_dir = Path(asked[0])
        try:
            resume(run_dir, asked[1])
        except Exception as error:
            return report(error, run_dir)
        return EXIT_OK

    from apollo_cli.sweeps.sweep import run_hydra

    return run_hydra(line)


def _agree_on_stamp(timeout: str | None) -> None:
    """Gives all processes of a run the same run directory, also after a restart; waits for them so many seconds."""
    from apollo_cli.training.distributed.group import connect

    group = connect(float(timeout)) if timeout and timeout.isdecimal() else connect()
    os.environ[STAMP] = group.broadcast_via_store("stamp", lambda: launcher_start_time().strftime(_STAMP_FORMAT))


def _refuse_other_encodings(words: list[str]) -> None:
    """Raises a ConfigError for names that could not be written into a run's files and messages, which are UTF-8."""
    problems = [
        f"{what} {os.fsencode(text)!r} is not UTF-8: rename what it names, or move it elsewhere"
        for what, text in (*(("the word", word) for word in words), ("the working directory", str(Path.cwd())))
        if text.encode(errors="ignore").decode() != text
    ]
    if problems:
        raise ConfigError(*problems)


_PROGRAM = Program("apollo-train", lambda: f"{page()}\n", _train)
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
