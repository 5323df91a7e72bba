"""Run the processes of one node, of one or several; needs nothing but Python's standard library.

    python deploy/node.py --nodes 2 --node 0 --address HOST:29500 --processes 8 python pretrain.py RECIPE data.path=...

on every node with its own `--node`; HOST is the one of node 0. Slurm and Kubernetes tell the defaults. It does what
torchrun does, with two differences: SIGTERM, SIGUSR1, SIGINT and SIGHUP reach every process, which has time to write
a checkpoint; and its exit code is that of the first process that failed (128 + the signal that killed it), so that a
script can tell 75 (run it again) from 2 (mend the recipe). When one has failed, the others have `--wait` seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--nodes", type=int, default=_told("SLURM_NNODES", default=1), help="number of nodes")
    add("--node", type=int, default=_told("SLURM_NODEID", "JOB_COMPLETION_INDEX"), help="this one, from 0")
    add("--processes", type=int, default=_told("SLURM_GPUS_ON_NODE", default=1), help="per node: its number of GPUs")
    add("--address", default="127.0.0.1:29500", help="HOST:PORT of node 0, the port free there")
    add("--wait", type=float, default=120.0, help="seconds for the other processes after one has failed")
    add("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    args = parser.parse_args()
    if not args.command or not 0 <= args.node < args.nodes or args.processes < 1:
        parser.error(f"found node {args.node} of {args.nodes}, command {args.command}; expected 0 <= node < nodes")
    started: list[subprocess.Popen[bytes]] = []
    for number in SIGNALS:
        signal.signal(number, lambda received, _: _send(started, received))
    started += [subprocess.Popen(args.command, env=_environment(args, local)) for local in range(args.processes)]
    return _wait(started, args.wait)


def _told(*names: str, default: int = 0) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), default)


def _environment(args: argparse.Namespace, local: int) -> dict[str, str]:
    """The variables by which processes find each other, as torchrun sets them."""
    host, _, port = args.address.rpartition(":")
    threads = max(1, len(os.sched_getaffinity(0)) // args.processes)
    ranks = {
        "RANK": args.node * args.processes + local,
        "LOCAL_RANK": local,
        "GROUP_RANK": args.node,
        "WORLD_SIZE": args.nodes * args.processes,
        "LOCAL_WORLD_SIZE": args.processes,
        "MASTER_ADDR": host or args.address,
        "MASTER_PORT": port if host else 29500,
    }
    return {"OMP_NUM_THREADS": str(threads)} | os.environ | {name: str(value) for name, value in ranks.items()}


def _send(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        process.send_signal(number)  # does nothing where it has ended


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> int:
    """The exit code of the first process that failed; 0 = none did."""
    first, end = 0, 0.0
    while None in (codes := [process.poll() for process in processes]):
        if not first and (first := next(filter(None, codes), 0)):
            end = time.monotonic() + seconds
        if first and time.monotonic() > end:
            _send(processes, signal.SIGKILL)
        time.sleep(0.1)
    first = first or next(filter(None, codes), 0)
    return first if first >= 0 else 128 - first


if __name__ == "__main__":
    sys.exit(main())
