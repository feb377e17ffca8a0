"""The end of a cell that is a submitted job, and was stopped by a signal: it is requeued."""

import os
import signal
from time import sleep


def requeue(signum: int) -> None:
    """Has Slurm start the job again, which goes on with the cell; its checkpoint is written.

    SIGUSR2 comes before the time limit, and on some clusters before a preemption: what submitit does then is still
    its handler, and exits. At SIGTERM a job is preempted, and Slurm requeues it, or it is cancelled; it looks the
    same. A job that ends then would be taken for done, so it waits until it is killed, as do the other processes
    of a cell at SIGUSR2, which the first one has requeued.

    Raises:
        UncompletedJobError: it may not be requeued any more (hydra.launcher.max_num_timeout).
    """
    if signum == signal.SIGUSR2 and callable(handler := signal.getsignal(signal.SIGUSR2)):
        handler(signum, None)
    elif os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    while True:
        sleep(60)
