"""Loading ahead in a thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def load_ahead(load: Callable[[T], R], plans: Iterable[T], depth: int = 4) -> Generator[R, None, None]:
    """``load(plan)`` of each plan, in order; a thread works up to ``depth`` of them ahead.

    Closing the generator waits for the load under way and drops those that wait. What ``load`` raises is raised at its
    turn.
    """
    remaining = iter(plans)
    pool = ThreadPoolExecutor(1)
    try:
        waiting: deque[Future[R]] = deque(pool.submit(load, plan) for plan in islice(remaining, depth))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(load, plan) for plan in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
