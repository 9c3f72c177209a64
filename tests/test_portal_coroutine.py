"""The portal is a coroutine: driven by hand, it answers as the coroutine it stands for."""

from __future__ import annotations

import collections.abc
import gc
import inspect
import sys
import types
import warnings
import weakref

import pytest
from portalpatch import _core, await_

# What is dropped half way says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
]


@types.coroutine
def trap(value):
    """Yields `value` to whoever drives the coroutine."""
    return (yield value)


class Recorder:
    """Drives a coroutine and notes each answer in a form that can be compared."""

    def __init__(self, coroutine):
        self.coroutine = coroutine
        self.answers = []

    def __getattr__(self, name):
        def call(*args):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    answer = ["returned", getattr(self.coroutine, name)(*args)]
                except BaseException as error:
                    context = error.__context__
                    answer = [type(error), str(error), repr(getattr(error, "value", None))]
                    answer += [type(error.__cause__), type(context)]
            self.answers.append((name, answer, [str(w.message) for w in warned]))
            return self

        return call


async def plain(log):
    log.append("started")
    received = await trap("first")
    log.append(received)
    received = await trap("second")
    log.append(received)
    return "result"


async def catching(log):
    for turn in range(4):
        try:
            log.append(await trap(turn))
        except BaseException as error:
            log.append((type(error), error.args))
            if isinstance(error, GeneratorExit):
                raise
    return "caught"


async def ignoring_exit(log):
    while len(log) < 3:
        try:
            await trap("again")
        except GeneratorExit:
            log.append("ignored")


async def returning_at_exit(log):
    try:
        await trap("first")
    except GeneratorExit:
        return "returned at exit"


async def raising_at_exit(log):
    try:
        await trap("first")
    finally:
        log.append("finally")
        raise LookupError("at exit")


async def raising(log):
    raise LookupError("at once")


async def stopping(log):
    raise StopIteration("stop")


async def returning_exception(log):
    return StopIteration("value")


async def returning_tuple(log):
    await trap("first")
    return (1, 2)


COROUTINES = [
    plain,
    catching,
    ignoring_exit,
    returning_at_exit,
    raising_at_exit,
    raising,
    stopping,
    returning_exception,
    returning_tuple,
]


class BadInit(Exception):
    def __init__(self):
        raise LookupError("in __init__")


SCRIPTS = {
    "to the end": [("send", None), ("send", 1), ("send", 2), ("send", 3)],
    "value at the start": [("send", 5), ("send", None), ("send", 1)],
    "throw at the start": [("throw", ValueError("thrown")), ("send", None)],
    "throw inside": [("send", None), ("throw", ValueError("thrown")), ("send", 1)],
    "throw a class": [("send", None), ("throw", ValueError), ("send", 1)],
    "throw a class and a value": [("send", None), ("throw", ValueError, "text"), ("send", 1)],
    "throw a class and a tuple": [("send", None), ("throw", ValueError, (1, 2)), ("send", 1)],
    "throw three arguments": [("send", None), ("throw", ValueError, ValueError("v"), None)],
    "throw an instance and a value": [("send", None), ("throw", ValueError("v"), "value")],
    "throw an instance and None": [("send", None), ("throw", ValueError("v"), None, None)],
    "throw with a bad traceback": [("send", None), ("throw", ValueError, None, 3)],
    "throw what is no exception": [("send", None), ("throw", 3), ("throw", int), ("send", 1)],
    "throw a class that fails": [("send", None), ("throw", BadInit), ("send", 1)],
    "throw nothing": [("send", None), ("throw",), ("send", 1)],
    "throw too much": [("send", None), ("throw", ValueError, None, None, None), ("send", 1)],
    "throw StopIteration": [("send", None), ("throw", StopIteration(4)), ("send", 1)],
    "throw GeneratorExit": [("send", None), ("throw", GeneratorExit("exit")), ("send", 1)],
    "close at the start": [("close",), ("send", None), ("close",)],
    "close inside": [("send", None), ("close",), ("send", None), ("close",)],
    "close later": [("send", None), ("send", 1), ("close",), ("throw", ValueError)],
    "close after the end": [("send", None)] + [("send", n) for n in range(5)] + [("close",)],
    "throw after the end": [("send", None)]
    + [("send", n) for n in range(5)]
    + [("throw", ValueError("late")), ("throw", GeneratorExit)],
}


def synchronous_twin(async_fn):
    """The same steps inside a synchronous function that awaits the coroutine."""

    async def twin(log):
        return await_(async_fn(log))

    return twin


def run_script(coroutine, script):
    recorder = Recorder(coroutine)
    for name, *args in script:
        getattr(recorder, name)(*args)
    return recorder.answers


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("async_fn", COROUTINES, ids=lambda fn: fn.__name__)
def test_portal_answers_as_its_coroutine(async_fn, script):
    native_log, portal_log = [], []
    native = run_script(async_fn(native_log), SCRIPTS[script])
    portal = run_script(_core.portal_coroutine_auto(async_fn(portal_log)), SCRIPTS[script])
    assert portal == native
    assert portal_log == native_log


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("async_fn", COROUTINES, ids=lambda fn: fn.__name__)
def test_portal_suspended_in_synchronous_code_answers_as_a_coroutine(async_fn, script):
    async def delegating(log):
        return await async_fn(log)

    native_log, portal_log = [], []
    native = run_script(delegating(native_log), SCRIPTS[script])
    twin = synchronous_twin(async_fn)
    portal = run_script(_core.portal_coroutine_auto(twin(portal_log)), SCRIPTS[script])
    assert portal == native
    assert portal_log == native_log


def test_portal_awaited_by_a_coroutine_forwards_everything():
    async def outer(make, log):
        return await make(plain(log))

    for make in (lambda coroutine: coroutine, _core.portal_coroutine_auto):
        log = []
        coroutine = outer(make, log)
        assert coroutine.send(None) == "first"
        assert coroutine.send(1) == "second"
        with pytest.raises(StopIteration) as stop:
            coroutine.send(2)
        assert stop.value.value == "result"
        assert log == ["started", 1, 2]

        coroutine = outer(make, log)
        coroutine.send(None)
        with pytest.raises(LookupError):
            coroutine.throw(LookupError())
        coroutine = outer(make, log)
        coroutine.send(None)
        coroutine.close()


# ---- running and finishing -------------------------------------------------------------------


def test_portal_that_steps_itself_is_refused():
    portals = []

    async def steps_itself():
        for name, *args in (("send", None), ("throw", ValueError()), ("close",)):
            with pytest.raises(ValueError, match="coroutine already executing"):
                getattr(portals[0], name)(*args)
        return "survived"

    portals.append(_core.portal_coroutine_auto(steps_itself()))
    with pytest.raises(StopIteration, match="survived"):
        portals[0].send(None)


def test_portal_quacks_like_its_coroutine():
    log = []
    coroutine = plain(log)
    portal = _core.portal_coroutine_auto(coroutine)
    assert isinstance(portal, types.CoroutineType)
    assert isinstance(portal, collections.abc.Coroutine)
    assert inspect.iscoroutine(portal)
    assert inspect.isawaitable(portal)
    assert repr(portal) == repr(coroutine)
    assert portal.__name__ == "plain"
    assert portal.__qualname__ == "plain"
    assert portal.cr_code is plain.__code__
    assert portal.cr_origin is None
    assert inspect.getcoroutinestate(portal) == inspect.CORO_CREATED
    portal.send(None)
    assert inspect.getcoroutinestate(portal) == inspect.CORO_SUSPENDED
    assert portal.cr_frame is coroutine.cr_frame
    assert portal.cr_await is coroutine.cr_await
    portal.close()
    assert inspect.getcoroutinestate(portal) == inspect.CORO_CLOSED
    assert not hasattr(portal, "no_such_attribute")


def test_state_of_a_portal_that_runs_or_waits_in_synchronous_code():
    portals, states = [], []

    def synchronous():
        states.append(inspect.getcoroutinestate(portals[0]))
        await_(trap("waiting"))
        states.append(inspect.getcoroutinestate(portals[0]))

    async def runs():
        synchronous()

    portals.append(_core.portal_coroutine_auto(runs()))
    portals[0].send(None)
    assert inspect.getcoroutinestate(portals[0]) == inspect.CORO_SUSPENDED
    assert not portals[0].cr_running
    with pytest.raises(StopIteration):
        portals[0].send(None)
    assert states == [inspect.CORO_RUNNING] * 2
    assert inspect.getcoroutinestate(portals[0]) == inspect.CORO_CLOSED


def test_frames_of_a_portal_that_waits_in_synchronous_code():
    def synchronous():
        await_(inner())

    async def inner():
        await trap("waiting")

    async def outer():
        synchronous()

    portal = _core.portal_coroutine_auto(outer())
    portal.send(None)
    names, coroutine = [], portal
    while coroutine is not None and hasattr(coroutine, "cr_frame"):
        names.append(coroutine.cr_frame.f_code.co_name)
        assert coroutine.cr_code.co_name == names[-1] or coroutine is portal
        coroutine = coroutine.cr_await
    assert names[:2] == ["outer", "synchronous"]
    frame = portal.cr_frame
    while frame is not None:  # walking the frames of a suspended greenlet is safe
        frame = frame.f_back
    portal.close()
    assert portal.cr_frame is None and portal.cr_await is None


# ---- the end of dropped portals --------------------------------------------------------------


def test_portal_dropped_before_it_began_leaves_the_coroutines_own_warning():
    portal = _core.portal_coroutine_auto(plain([]))
    with pytest.warns(RuntimeWarning, match=r"coroutine 'plain' was never awaited"):
        del portal
        gc.collect()


@pytest.mark.parametrize("async_fn", [catching, raising_at_exit, returning_at_exit])
@pytest.mark.parametrize("twin", [lambda fn: fn, synchronous_twin], ids=["native", "synchronous"])
def test_portal_dropped_while_suspended_is_closed(async_fn, twin):
    logs = []
    for make in (lambda coroutine: coroutine, _core.portal_coroutine_auto):
        log = []
        function = twin(async_fn) if make is _core.portal_coroutine_auto else async_fn
        coroutine = make(function(log))
        coroutine.send(None)
        del coroutine
        gc.collect()
        logs.append(log)
    assert logs[0] == logs[1]


def test_portal_that_ignores_being_closed_can_be_dropped():
    def never_ends(log):
        while True:
            try:
                await_(trap("again"))
            except GeneratorExit:
                log.append("ignored")

    async def main(log):
        never_ends(log)

    log = []
    portal = _core.portal_coroutine_auto(main(log))
    portal.send(None)
    with pytest.raises(RuntimeError, match="coroutine ignored GeneratorExit"):
        portal.close()
    del portal
    gc.collect()
    assert log == ["ignored"] * 2


def test_portal_in_a_reference_cycle_is_collected():
    class Holder:
        pass

    async def holds(holder):
        await trap("waiting")

    for function in (holds, synchronous_twin(holds)):
        holder = Holder()
        holder.portal = _core.portal_coroutine_auto(function(holder))
        if function is holds:
            holder.portal.send(None)
        else:
            holder.portal.close()
        collected = weakref.ref(holder)
        del holder
        gc.collect()
        assert collected() is None


def test_portal_can_be_referenced_weakly():
    portal = _core.portal_coroutine_auto(plain([]))
    reference = weakref.ref(portal)
    assert reference() is portal
    portal.close()
    del portal
    gc.collect()
    assert reference() is None


def test_coroutine_is_closed_with_its_portal():
    coroutine = plain([])
    portal = _core.portal_coroutine_auto(coroutine)
    portal.close()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_portal_of_a_function_driven_by_hand():
    def function(a, *, b):
        assert await_(trap("waiting")) == "sent"
        return a, b

    portal = _core.portal_call(function, (1,), {"b": 2})
    with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
        portal.send(1)
    assert portal.send(None) == "waiting"
    assert portal.cr_frame.f_code is function.__code__
    with pytest.raises(StopIteration) as stop:
        portal.send("sent")
    assert stop.value.value == (1, 2)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        portal.send(None)

    portal = _core.portal_call(function, (1,), {"b": 2})
    with pytest.raises(LookupError):
        portal.throw(LookupError())
    portal = _core.portal_call(function, (1,), {"b": 2})
    portal.close()


def test_recursion_in_a_portal_ends_in_recursion_error():
    def synchronous():
        return await_(asynchronous())

    async def asynchronous():
        return synchronous()

    async def main():
        with pytest.raises(RecursionError):
            synchronous()
        return "recovered"

    with pytest.raises(StopIteration, match="recovered"):
        _core.portal_coroutine_auto(main()).send(None)


def test_exception_being_handled_is_its_own_in_each_portal():
    async def handles(name, log):
        try:
            raise LookupError(name)
        except LookupError:
            await_(trap(name))
            log.append(str(sys.exc_info()[1]))
        assert sys.exc_info() == (None, None, None)

    log = []
    portals = [_core.portal_coroutine_auto(handles(name, log)) for name in "abc"]
    for portal in portals:
        portal.send(None)
    assert sys.exc_info() == (None, None, None)
    for portal in reversed(portals):
        with pytest.raises(StopIteration):
            portal.send(None)
    assert log == ["c", "b", "a"]
