"""The batcher, without a server."""

import asyncio
import threading

import numpy as np
import pytest

pytest.importorskip("orjson")

from kresnet.serve.batching import Batcher
from kresnet.serve.status import RequestError, Status, invalid


def batcher(**changes):
    settings = {"max_rows": 8, "max_pixels": 1000, "max_waiting_rows": 64, "wait_s": 0.05}
    return Batcher(**settings | changes)


def rows(*values):
    return {"x": np.array(values, float)}


class Model:
    """Doubles its input; remembers the batches; may wait for `go` or choke on a value."""

    def __init__(self, poison=None):
        self.batches = []
        self.threads = set()
        self.poison = poison
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()

    def __call__(self, inputs):
        self.busy.set()
        assert self.go.wait(10)
        self.threads.add(threading.get_ident())
        values = inputs["x"].tolist()
        self.batches.append(values)
        if self.poison in values:
            raise invalid("poison")
        return {"y": 2 * inputs["x"]}


def play(scene, **changes):
    """Run a coroutine function with a batcher that works."""

    async def main():
        one = batcher(**changes)
        one.start()
        try:
            return await scene(one)
        finally:
            await one.stop()

    return asyncio.run(main())


def ask(one, model, *values, key="k", seconds=10, pixels=0):
    deadline = asyncio.get_running_loop().time() + seconds
    return one.submit(key, model, rows(*values), rows=len(values), pixels=pixels, deadline=deadline)


def test_requests_share_a_batch_and_get_their_own_rows():
    model = Model()

    async def scene(one):
        return await asyncio.gather(ask(one, model, 1, 2), ask(one, model, 3), ask(one, model, 4))

    answers = play(scene)
    assert [answer["y"].tolist() for answer in answers] == [[2, 4], [6], [8]]
    assert model.batches == [[1, 2, 3, 4]]
    assert threading.get_ident() not in model.threads


def test_a_full_batch_does_not_wait_and_none_is_too_full():
    model = Model()

    async def scene(one):
        await asyncio.gather(*(ask(one, model, k, k) for k in range(8)))

    play(scene, wait_s=3600)
    assert [len(batch) for batch in model.batches] == [8, 8]


def test_large_images_do_not_share_a_batch():
    model = Model()

    async def scene(one):
        await asyncio.gather(*(ask(one, model, k, pixels=400) for k in range(5)))

    play(scene)
    assert sorted(len(batch) for batch in model.batches) == [1, 2, 2]


def test_keys_do_not_mix_and_none_starves():
    """A steady stream of one key must not keep the only request of another from its turn."""
    model, order = Model(), []

    async def scene(one):
        async def stream(worker):
            for k in range(20):
                await ask(one, model, 100 + worker, key="busy")
                order.append(("busy", k))

        async def single():
            await asyncio.sleep(0)
            await ask(one, model, 1, key="rare")
            order.append(("rare", 0))

        await asyncio.gather(*(stream(worker) for worker in range(8)), single())

    play(scene, wait_s=0)
    assert [1.0] in model.batches
    assert all(1.0 not in batch for batch in model.batches if len(batch) > 1)
    assert order.index(("rare", 0)) < 24


def test_the_fault_of_one_request_costs_the_others_nothing():
    model = Model(poison=13)

    async def scene(one):
        return await asyncio.gather(
            ask(one, model, 1), ask(one, model, 13), ask(one, model, 3), return_exceptions=True
        )

    good, bad, other = play(scene)
    assert good["y"] == [2]
    assert other["y"] == [6]
    assert isinstance(bad, RequestError)
    assert bad.message == "poison"


def test_a_fault_of_the_model_is_the_servers_and_is_not_quoted():
    def broken(inputs):
        raise RuntimeError("secret")

    async def scene(one):
        with pytest.raises(RequestError) as refused:
            await ask(one, broken, 1)
        return refused.value

    error = play(scene)
    assert error.status is Status.INTERNAL
    assert "secret" not in error.message


def test_a_wrong_number_of_answers_is_noticed():
    async def scene(one):
        with pytest.raises(RequestError, match="wrong number of answers"):
            await ask(one, lambda inputs: {"y": inputs["x"][:1]}, 1, 2)

    play(scene)


def test_requests_that_are_gone_or_late_take_no_room():
    model = Model()

    async def scene(one):
        model.go.clear()
        first = asyncio.ensure_future(ask(one, model, 1))
        await asyncio.to_thread(model.busy.wait, 10)
        cancelled = asyncio.ensure_future(ask(one, model, 2))
        late = asyncio.ensure_future(ask(one, model, 3, seconds=0.1))
        patient = asyncio.ensure_future(ask(one, model, 4))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(RequestError, match="time for this request is up") as refused:
            await late
        assert refused.value.status is Status.DEADLINE_EXCEEDED
        assert one.waiting_rows == 1
        model.go.set()
        await asyncio.gather(first, patient)
        assert one.waiting_rows == 0

    play(scene)
    assert model.batches == [[1], [4]]


def test_what_waits_is_bounded():
    model = Model()

    async def scene(one):
        model.go.clear()
        first = asyncio.ensure_future(ask(one, model, 0))
        await asyncio.to_thread(model.busy.wait, 10)
        waiting = [asyncio.ensure_future(ask(one, model, 1, 1)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="4 images are waiting") as refused:
            await ask(one, model, 9)
        assert refused.value.status is Status.UNAVAILABLE
        assert refused.value.retry_after_s == 1
        model.go.set()
        await asyncio.gather(first, *waiting)
        assert (await ask(one, model, 9))["y"] == [18]

    play(scene, max_waiting_rows=4)


def test_any_interleaving_gives_every_request_its_own_answer():
    """Random requests, keys, cancellations and faults; the answer is always that of the request."""
    rng = np.random.default_rng(3)
    model = Model(poison=-1)

    async def scene(one):
        async def client(number):
            await asyncio.sleep(rng.uniform(0, 0.05))
            values = [float(number)] * int(rng.integers(1, 9))
            if number % 17 == 0:
                values[-1] = -1
            task = asyncio.ensure_future(ask(one, model, *values, key=number % 3))
            if number % 5 == 0:
                await asyncio.sleep(rng.uniform(0, 0.01))
                task.cancel()
            try:
                answer = await task
            except asyncio.CancelledError:
                return number % 5 == 0
            except RequestError:
                return number % 17 == 0
            return answer["y"].tolist() == [2 * value for value in values]

        return await asyncio.gather(*(client(number) for number in range(300)))

    assert all(play(scene, wait_s=0.002, max_waiting_rows=5000))
    assert max(len(batch) for batch in model.batches) == 8
