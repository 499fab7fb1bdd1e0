"""Work that may hang, in threads that nothing has to wait for."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from backupd.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def started(call: Callable[[], _T]) -> Future[_T]:
    """The outcome of `call`, which runs in a thread that the end of the process does not wait for."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised again where the result is asked for)
            outcome.set_exception(error)

    start_thread(run, name="unwaited")
    return outcome
