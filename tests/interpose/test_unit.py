"""What only the library's own interface shows (unit.c)."""

import pathlib
import subprocess

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "close",
        "failed_dup2",
        "pool_bound",
        "pool_after_fork",
        "abandoned",
        "interface",
        "no_portal",
    ],
    ids=[
        "closing_an_fd_ends_its_waits_with_ebadf",
        "failed_dup2_wakes_nobody",
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
