"""What the preparation tools share: parallel work on files, shards, skipping of finished files, and a list of failures."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import cv2
from jsonargparse.typing import NonNegativeInt
from tqdm import tqdm

from engine import distributed
from errors import DISK_FULL, Failure, UserError

T = TypeVar("T")


@dataclass(kw_only=True)
class BatchConfig:
    """Which part of the files to process, and in how many processes."""

    shard: str = "1/1"
    """part of the files to process, i/n: run 1/4, 2/4, 3/4 and 4/4 on four machines"""
    workers: NonNegativeInt = 0
    """processes; 0: one per core (under torchrun, the cores are shared by the processes)"""

    def __post_init__(self):
        distributed.items_of_shard([], self.shard)  # refuses a wrong shard before any file is written

    def settings(self) -> dict:
        """The settings that decide the content of the written files: all settings but shard, workers and out."""
        return {key: value for key, value in asdict(self).items() if key not in ("shard", "workers", "out")}


def process(
    work: Callable[[str, T], Any],
    items: Mapping[str, T],
    finished: Callable[[str], bool],
    config: BatchConfig,
    what: str,
    problems: Sequence[str] = (),
) -> tuple[list, int]:
    """Runs `work(name, item)` for every item of this shard that is not `finished`, in parallel, with a progress bar.

    A UserError of an item, or a file that the system refuses to read, does not stop the other items. Failures are listed on
    stderr at the end, after `problems`. Returns the results in the items' order, and the exit code: 1 if an item failed or
    there are `problems`, else 0. what: text of the progress bar. Raises Failure if a worker is killed.
    """
    mine = distributed.items_of_shard(list(items), config.shard)
    todo = [(name, items[name]) for name in mine if not finished(name)]
    results, failures = [], list(distributed.items_of_shard(problems, config.shard))
    with parallel(config.workers, len(todo)) as mapping:
        for name, result, error in tqdm(mapping(partial(_attempt, work), todo), what, len(todo), unit="file", disable=None):
            if error is None:
                results.append(result)
            else:
                failures.append(f"{name}: {error}")
    print(f"{what}: {len(results)} written, {len(mine) - len(todo)} skipped" + f", {len(failures)} failed" * bool(failures))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    with distributed.joined_until_all_finish():
        pass
    return results, int(bool(failures or problems))


@contextlib.contextmanager
def parallel(workers: int, count: int) -> Iterator[Callable]:
    """Yields `map` for `count` items: over `workers` processes (0: one per core of this process's share), or in this process if
    one worker is enough. Raises Failure if a worker is killed."""
    cores = len(os.sched_getaffinity(0))  # that we may use
    share_of_cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    workers = min(workers or share_of_cores, count)
    if workers <= 1:
        yield map
        return
    # A fork would copy locks that other threads of this process may hold.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        try:
            yield partial(pool.map, chunksize=max(1, min(16, count // (4 * workers))))
        except BrokenProcessPool as error:
            raise Failure(
                "a worker was killed, perhaps for lack of memory; finished files stay: run the same command again "
                "(--workers 1 takes the least memory)"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Ends a worker when the program that started the worker is killed. The worker would not notice otherwise."""

    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _attempt(work: Callable[[str, T], Any], named: tuple[str, T]) -> tuple[str, Any, str | None]:
    cv2.setNumThreads(1)  # the processes already run in parallel
    name, item = named
    try:
        return name, work(name, item), None
    except UserError as error:
        return name, None, str(error)
    except OSError as error:
        if error.filename is None or error.errno in DISK_FULL:  # a bug, or a full disk
            raise
        return name, None, f"{error.filename}: {error.strerror}"
