"""What only the library's own interface shows (unit.c)."""

import pathlib
import subprocess

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "close",
        "failed_dup2",
        "streams",
        "streams_at_start",
        "handler_writes",
        "signal_in_a_look",
        "pool_bound",
        "pool_after_fork",
        "abandoned",
        "interface",
        "no_portal",
    ],
    ids=[
        "closing_an_fd_ends_its_waits_with_ebadf",
        "failed_dup2_wakes_nobody",
        "what_gets_a_closed_streams_number_parks",
        "what_gets_the_number_of_a_stream_closed_at_start_parks",
        "signal_handler_writes_in_the_midst_of_a_write",
        "signal_that_ends_a_look_does_not_make_the_read_block",
        "pool_keeps_its_bound",
        "pool_works_anew_in_a_fork_child",
        "abandoned_offload_is_canceled_for_its_caller",
        "other_versions_of_the_interface_are_refused",
        "calls_block_where_no_portal_is_installed",
    ],
)
def test_unit(built: pathlib.Path, parking: dict[str, str], name: str) -> None:
    run = subprocess.run(
        [built / "unit", name], env=parking, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stdout + run.stderr
