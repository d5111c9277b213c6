"""Of many bodies that have come at once, each is parsed in a turn of its own."""

import asyncio
import itertools

from fimlora_service.http.body_turns import received_whole, take_turn

N = 20


def test_who_looks_comes_in_between():
    """A step of somebody else is never kept waiting by more than one of those in the queue."""

    async def scene() -> list[str]:
        seen: list[str] = []

        async def parse() -> None:
            await take_turn()
            seen.append("parsed")

        async def look() -> None:
            while seen.count("parsed") < N:
                seen.append("looked")
                await asyncio.sleep(0)

        await asyncio.gather(*(parse() for _ in range(N)), look())
        return seen

    seen = asyncio.run(scene())

    assert seen.count("parsed") == N
    assert not [pair for pair in itertools.pairwise(seen) if pair == ("parsed", "parsed")]


def test_those_in_the_queue_come_in_order():
    """First come, first served."""

    async def scene() -> list[int]:
        done: list[int] = []

        async def parse(number: int) -> None:
            await take_turn()
            done.append(number)

        await asyncio.gather(*map(parse, range(N)))
        return done

    assert asyncio.run(scene()) == list(range(N))


def test_a_body_comes_out_as_it_came_in():
    """All pieces, then whatever the server says next."""
    sent = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def scene() -> list[dict]:
        left = iter(sent)

        async def receive() -> dict:
            return next(left)

        replay = await received_whole(receive)
        assert len(list(left)) == 1  # no more than the body was taken
        left = iter(sent[2:])
        return [await replay() for _ in sent]

    assert asyncio.run(scene()) == sent
