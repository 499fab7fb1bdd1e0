"""What is done to a request in place of passing it on and answering what the server says."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from faults.proxy import Answer

if TYPE_CHECKING:
    from faults.proxy import Exchange


def internal_error(exchange: Exchange) -> None:
    """The server answers with 500, and does nothing."""
    exchange.handler.error(500, "InternalError", "on purpose")


def slow_down(exchange: Exchange) -> None:
    """The server answers with 503, and does nothing."""
    exchange.handler.error(503, "SlowDown", "on purpose")


def reset_before(exchange: Exchange) -> None:
    """The server never sees it."""
    exchange.reset()


def reset_amid(exchange: Exchange) -> None:
    """The request is done, and half of the answer comes."""
    exchange.answer_in_part(exchange.pass_on())
    exchange.reset()


def reset_after(exchange: Exchange) -> None:
    """The request is done, and no answer comes."""
    exchange.pass_on()
    exchange.reset()


def stall(exchange: Exchange) -> None:
    """No answer comes until the fault is over, and none after that."""
    exchange.wait()
    exchange.reset()


def truncate(exchange: Exchange) -> None:
    """The body ends early."""
    exchange.answer_in_part(exchange.pass_on())


def flip_a_bit(exchange: Exchange) -> None:
    """One bit of the body is flipped, always the same one of the same body."""
    answer = exchange.pass_on()
    changed = bytearray(answer.body)
    if changed:
        changed[int.from_bytes(hashlib.sha256(answer.body).digest()[:4]) % len(changed)] ^= 0x10
    exchange.answer(Answer(answer.status, answer.headers, bytes(changed)))


def list_as_before(exchange: Exchange) -> None:
    """A listing shows what it showed before the fault began."""
    earlier = exchange.earlier_listing()
    exchange.answer(earlier if earlier is not None else exchange.pass_on())


def lose(exchange: Exchange) -> None:
    """The upload is acknowledged, and the object is lost."""
    exchange.answer(Answer(200, {"ETag": f'"{hashlib.md5(exchange.request.body).hexdigest()}"'}, b""))


def pretend(exchange: Exchange) -> None:
    """A deletion is acknowledged, and not done."""
    exchange.handler.answer(204)
