"""Where clips are worked on: in processes of this machine, or as tasks of a Ray cluster.

Either way a clip is one task, gets paths and settings, leaves what it finds on the disk, and answers with a short report. A
worker that dies costs its own clip alone; whoever started the tasks may die at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from lamp.cluster import ClusterError, cause_of, join_cluster, task_environment
from lamp_client.child_processes import ProcessPool

Report = TypeVar("Report")
Jobs = Mapping[str, tuple[Any, ...]]
"""The arguments of each clip's task, by the clip's name."""
Failed = Callable[[str, str], Report]
"""The report of a clip whose worker died: its name, and why."""
WAITS_S = 1.0
"""So often it is said how far a build is. [s]"""
IN_FLIGHT = 2
"""Tasks of a cluster that are submitted at once, for each of its CPUs: enough that none waits."""
ATTEMPTS = 2
"""A task of a cluster that died is tried again so often in all: a machine may have gone, or memory been short for a moment."""
DIED = "its worker process was killed, perhaps for want of memory"


def run_here(
    work: Callable[..., Report], jobs: Jobs, workers: int, failed: Failed[Report], tick: Callable[[], None]
) -> Iterator[tuple[str, Report]]:
    """Works on clips in processes of this machine, and gives each report as it comes.

    Args:
        work: A module's function, since it is pickled.
        tick: Called now and then while nothing comes.
    """
    if workers == 1 or len(jobs) < 2:
        for name, job in jobs.items():
            yield name, work(*job)
        return
    left = dict(jobs)
    while left:
        try:
            with ProcessPool(min(workers, len(left)), torch.set_num_threads, (1,)) as pool:
                futures = {pool.submit(work, *job): name for name, job in left.items()}
                pending = set(futures)
                while pending:
                    finished, pending = wait(pending, timeout=WAITS_S, return_when=FIRST_COMPLETED)
                    tick()
                    for future in finished:
                        report = future.result()
                        left.pop(futures[future])
                        yield futures[future], report
        except BrokenProcessPool:
            # Which of those at work was it? Each is tried alone; others are not, so that one bad clip costs one process.
            for name in list(left)[:workers]:
                yield name, _alone(work, left.pop(name), lambda name=name: failed(name, DIED))


def _alone(work: Callable[..., Report], job: tuple[Any, ...], died: Callable[[], Report]) -> Report:
    """A clip in a process of its own, which may die of it."""
    try:
        with ProcessPool(1, torch.set_num_threads, (1,)) as pool:
            return pool.submit(work, *job).result()
    except BrokenProcessPool:
        return died()


def run_on_cluster(
    work: Callable[..., Report],
    jobs: Jobs,
    address: str,
    failed: Failed[Report],
    tick: Callable[[], None],
    *,
    gpus: float = 0.0,
) -> Iterator[tuple[str, Report]]:
    """The same as tasks of a Ray cluster, of which each takes one CPU, and so many GPUs.

    Raises:
        MissingDependencyError: Ray is not installed.
        ClusterError: There is no cluster, it has no such CPU or GPU, or a task raised what stops everything, such as a full disk.
    """
    ray = join_cluster(
        address,
        flag="--executor ray",
        instead="Without it, --executor local builds on this machine, and `lamp flow merge` "
        "makes one store of what several machines built.",
    )
    room = ray.cluster_resources()
    cpus = int(room.get("CPU", 0))
    if cpus < 1 or room.get("GPU", 0) < gpus:
        raise ClusterError(
            f"the Ray cluster has {cpus} CPUs and {room.get('GPU', 0):g} GPUs; expected 1 and {gpus:g} for each clip at least"
        )
    # No retries of Ray's own: which clip a task died of is to be known, and a clip that kills its worker is given up.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, runtime_env=task_environment())(_reported)
    waiting, attempts = list(jobs), dict.fromkeys(jobs, 0)
    running: dict[Any, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < IN_FLIGHT * cpus:
                name = waiting.pop(0)
                attempts[name] += 1
                running[remote.remote(work, jobs[name])] = name
            done, _ = ray.wait(list(running), timeout=WAITS_S)
            tick()
            for task in done:
                name = running.pop(task)
                try:
                    report, stop = ray.get(task)
                except Exception as error:
                    if attempts[name] < ATTEMPTS:
                        waiting.append(name)
                    else:
                        yield name, failed(name, f"its task on the cluster died: {cause_of(error)}")
                    continue
                if stop is not None:
                    raise ClusterError(f"{name}: {stop}; run the command again to go on")
                yield name, report
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _reported(work: Callable[..., Report], job: tuple[Any, ...]) -> tuple[Report | None, str | None]:
    """Runs in a task: a clip's report, or what stops everything."""
    torch.set_num_threads(1)
    try:
        return work(*job), None
    except OSError as error:
        return None, f"{type(error).__name__}: {error}"
