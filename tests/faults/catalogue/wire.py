"""What an S3 server and the network before it do wrong: every request, those of one kind, or one now and then."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from faults import answers
from faults.fault import Fault, Felt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from faults.proxy import Exchange
    from faults.world import World

_ERRORS = (answers.internal_error, answers.slow_down, answers.reset_before, answers.reset_amid, answers.reset_after)


@contextmanager
def _failing(
    world: World, fault: Callable[[Exchange], None], concerns: Callable[[Exchange], bool] = lambda _: True
) -> Iterator[Felt]:
    with world.proxy.failing(fault, concerns):
        yield lambda: world.proxy.hits > 0


def _is(method: str, part: str = "/") -> Callable[[Exchange], bool]:
    return lambda exchange: exchange.request.method == method and not exchange.is_listing and part in exchange.key


def _is_listing(exchange: Exchange) -> bool:
    return exchange.is_listing


@contextmanager
def every_answer_500(world: World, chosen: Random) -> Iterator[Felt]:
    """The bucket answers every request with 500 InternalError."""
    with _failing(world, answers.internal_error) as felt:
        yield felt


@contextmanager
def every_answer_503(world: World, chosen: Random) -> Iterator[Felt]:
    """The bucket answers every request with 503 SlowDown."""
    with _failing(world, answers.slow_down) as felt:
        yield felt


@contextmanager
def reset_before_a_request(world: World, chosen: Random) -> Iterator[Felt]:
    """Every connection is reset before the server sees the request."""
    with _failing(world, answers.reset_before) as felt:
        yield felt


@contextmanager
def reset_amid_an_answer(world: World, chosen: Random) -> Iterator[Felt]:
    """Every request is done, and the connection reset in the middle of the answer."""
    with _failing(world, answers.reset_amid) as felt:
        yield felt


@contextmanager
def reset_after_a_request(world: World, chosen: Random) -> Iterator[Felt]:
    """Every request is done, and the connection reset before the answer."""
    with _failing(world, answers.reset_after) as felt:
        yield felt


@contextmanager
def stall(world: World, chosen: Random) -> Iterator[Felt]:
    """Every request is accepted, and none is answered."""
    with _failing(world, answers.stall) as felt:
        yield felt


@contextmanager
def put_that_fails(world: World, chosen: Random) -> Iterator[Felt]:
    """Every PUT fails, in one of five ways."""
    with _failing(world, chosen.choice(_ERRORS), _is("PUT")) as felt:
        yield felt


@contextmanager
def get_that_fails(world: World, chosen: Random) -> Iterator[Felt]:
    """Every GET of an object fails, in one of five ways."""
    with _failing(world, chosen.choice(_ERRORS), _is("GET")) as felt:
        yield felt


@contextmanager
def list_that_fails(world: World, chosen: Random) -> Iterator[Felt]:
    """Every LIST fails, in one of five ways."""
    with _failing(world, chosen.choice(_ERRORS), _is_listing) as felt:
        yield felt


@contextmanager
def delete_that_fails(world: World, chosen: Random) -> Iterator[Felt]:
    """Every DELETE fails, in one of four ways."""
    with _failing(
        world, chosen.choice([each for each in _ERRORS if each is not answers.reset_amid]), _is("DELETE")
    ) as felt:
        yield felt


@contextmanager
def truncated_body(world: World, chosen: Random) -> Iterator[Felt]:
    """Half of the body of every object arrives, then the connection ends; restores from there must fail."""
    with _failing(world, answers.truncate, _is("GET")) as felt:
        world.try_restore(world.s3, chosen)
        yield felt


@contextmanager
def wrong_body(world: World, chosen: Random) -> Iterator[Felt]:
    """One bit of every object that is read is wrong; restores from there must fail."""
    with _failing(world, answers.flip_a_bit, _is("GET")) as felt:
        world.try_restore(world.s3, chosen)
        yield felt


@contextmanager
def stale_listing(world: World, chosen: Random) -> Iterator[Felt]:
    """Every LIST shows its earlier result, whatever was put or deleted since."""
    with _failing(world, answers.list_as_before, _is_listing) as felt:
        yield felt


@contextmanager
def lost_pack(world: World, chosen: Random) -> Iterator[Felt]:
    """Every PUT of a pack is acknowledged, and the pack is lost."""
    with _failing(world, answers.lose, _is("PUT", "/packs/")) as felt:
        yield felt


@contextmanager
def lost_manifest(world: World, chosen: Random) -> Iterator[Felt]:
    """Every PUT of a manifest is acknowledged, and the manifest is lost."""
    with _failing(world, answers.lose, _is("PUT", "/snapshots/")) as felt:
        yield felt


@contextmanager
def lost_record(world: World, chosen: Random) -> Iterator[Felt]:
    """Every PUT of anything else (segments, trash, sweeps, drills) is acknowledged, and lost."""

    def concerns(exchange: Exchange) -> bool:
        is_other = not any(part in exchange.key for part in ("/packs/", "/snapshots/"))
        return exchange.request.method == "PUT" and is_other

    with _failing(world, answers.lose, concerns) as felt:
        yield felt


@contextmanager
def delete_that_is_not_done(world: World, chosen: Random) -> Iterator[Felt]:
    """Every DELETE is acknowledged and not done."""
    with _failing(world, answers.pretend, _is("DELETE")) as felt:
        yield felt


@contextmanager
def hiccups(world: World, chosen: Random) -> Iterator[Felt]:
    """One request in six fails, each in a different way."""

    def fail_somehow(exchange: Exchange) -> None:
        chosen.choice(_ERRORS)(exchange)

    with _failing(world, fail_somehow, lambda _: chosen.random() < 1 / 6) as felt:
        yield felt


FAULTS = (
    Fault(every_answer_500, stops=("s3",)),
    Fault(every_answer_503, stops=("s3",)),
    Fault(reset_before_a_request, stops=("s3",)),
    Fault(reset_amid_an_answer, stops=("s3",)),
    Fault(reset_after_a_request, stops=("s3",)),
    Fault(stall, stops=("s3",)),
    Fault(put_that_fails, stops=("s3",)),
    Fault(get_that_fails, stops=("s3",)),
    Fault(list_that_fails, stops=("s3",)),
    Fault(delete_that_fails),
    Fault(truncated_body, stops=("s3",)),
    Fault(wrong_body),
    Fault(stale_listing),
    Fault(lost_pack, stops=("s3",)),
    Fault(lost_manifest),
    Fault(lost_record),
    Fault(delete_that_is_not_done),
    Fault(hiccups),
)
