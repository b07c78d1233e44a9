"""Tasks side by side: on threads of this process, or on the workers of a dask cluster."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from wm2cli.errors import ResourceError, UsageError
from wm2cli.machine import cores

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Done = TypeVar("Done")


def run(
    work: Callable[[Shared, Task], Done],
    shared: Shared,
    tasks: Sequence[Task],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
) -> Iterator[tuple[int, Done]]:
    """Does tasks in any order.

    Args:
        work: A function of a module; takes `shared` and one task.
        shared: What all tasks need; sent to each worker once.
        tasks: What to do.
        scheduler: Address of a dask scheduler; its workers must see the same files under the same names.
        workers: Threads of this process; as many as there are processor cores by default.

    Yields:
        The number of a task and what came of it, as it is done.

    Raises:
        UsageError: No such scheduler, or the tasks cannot be sent to other processes.
        ResourceError: The cluster failed.
        Exception: What a task raised.
    """
    if scheduler is not None:
        yield from _on_cluster(work, shared, tasks, scheduler)
        return
    pool = ThreadPoolExecutor(max_workers=workers or cores(), thread_name_prefix="preprocess")
    try:
        futures = {pool.submit(work, shared, task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            # Popped, so that what came of it can be freed while the others run.
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_cluster(work: Callable[[Shared, Task], Done], shared: Shared, tasks: Sequence[Task],
                address: str) -> Iterator[tuple[int, Done]]:  # fmt: skip
    try:
        import distributed as loaded
    except ImportError as error:
        raise UsageError("--scheduler needs dask.distributed", hint='pip install "wm2cli[cluster]"') from error
    distributed: Any = loaded  # half of it has no types
    try:
        pickle.dumps(shared)
    except Exception as error:
        raise UsageError(f"these inputs cannot be sent to other processes: {error}",
                         hint="unpack ZIP archives, or run without --scheduler") from error  # fmt: skip
    try:
        client = distributed.Client(address, timeout="20s")
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"there is no dask scheduler at {address}: {error}",
                         hint="start one: `dask scheduler`, then `dask worker ADDRESS`") from error  # fmt: skip
    with client:
        sent: Any = client.scatter(shared, broadcast=True)
        futures = {client.submit(work, sent, task, pure=False): number for number, task in enumerate(tasks)}
        try:
            for future in distributed.as_completed(list(futures)):
                yield futures.pop(future), future.result()
        except (distributed.KilledWorker, distributed.CancelledError) as error:
            raise ResourceError(f"the cluster at {address} gave up: {error}",
                                hint="look at the logs of its workers; run it again to go on") from error  # fmt: skip
        finally:
            client.cancel(list(futures))
