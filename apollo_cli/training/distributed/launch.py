"""`devices=N`: the processes of a run on this machine, started and watched by torch's launcher."""

import logging
import os
import signal
import sys
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from apollo_cli.errors import ReportedError
from apollo_cli.signals import ASKING

THREADS = "OMP_NUM_THREADS"
_PATIENCE = 120  # seconds to stop in, with a checkpoint (18 GB take 90); then torch kills


def launch(words: list[str], devices: int) -> None:
    """Has so many processes do what these words say to `apollo-train`, which is to go on with a run.

    Args:
        words: of the command.
        devices: how many processes.

    Raises:
        ReportedError: one of them failed and has said why, or a signal stopped them.
    """
    for name in [*logging.root.manager.loggerDict]:  # the processes speak for themselves
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    asking = [s for s in ASKING if signal.getsignal(s) != signal.SIG_IGN]
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // devices)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_PATIENCE,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder stays in /tmp
        signals_to_handle=",".join(s.name for s in asking),
    )
    handlers = {s: signal.getsignal(s) for s in asking}  # torch takes them, and does not give them back
    try:
        elastic_launch(config, sys.executable)("-m", "apollo_cli.train", *words)
    except SignalException as stop:
        raise ReportedError(128 + stop.sigval) from stop
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:  # killed: it could not say so
            print(
                f"apollo-train: a process of this run was killed by {signal.Signals(-code).name}", file=sys.stderr
            )
        raise ReportedError(code if code > 0 else 128 - code) from error
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
