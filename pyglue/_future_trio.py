"""How a Trio task awaits a `portalpatch.Future`. Called by futures.c; imported only then."""

from __future__ import annotations

from typing import Any


async def wait(future: Any) -> Any:
    """Wait until `future` is done; a cancelled wait leaves the future as it is."""
    import trio

    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()
    waiting = True

    def wake() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            trio.lowlevel.reschedule(task)

    def done(_: Any) -> None:
        token.run_sync_soon(wake)

    def abort(_: Any) -> Any:
        nonlocal waiting
        waiting = False
        future.remove_done_callback(done)
        return trio.lowlevel.Abort.SUCCEEDED

    future.add_done_callback(done)
    await trio.lowlevel.wait_task_rescheduled(abort)
    return future.result()
