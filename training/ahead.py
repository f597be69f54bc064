"""Loading ahead in threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def load_ahead(
    load: Callable[[T], R], plans: Iterable[T], depth: int = 4, workers: int = 1
) -> Generator[R, None, None]:
    """``load(plan)`` of each plan, in order; so many threads work up to ``depth`` of them ahead.

    Closing the generator waits for the loads under way and drops those that wait. What ``load`` raises is raised at its
    turn.
    """
    remaining = iter(plans)
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[R]] = deque(pool.submit(load, plan) for plan in islice(remaining, depth))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(load, plan) for plan in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
