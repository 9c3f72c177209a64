"""conformance.py BUILD [MODULE...]: CPython's own tests under the C portal, test by test as plain.

Every blocking call of the interpreter and of the tests' helpers takes the parking path; portalpatch's
Python half is not there. Each module runs plain and parked, on the Python that runs this. A test
whose outcome is not the plain run's is run once more, alone, both ways; if it differs again it is printed
and the exit status is 1. One that fails plain too is the environment's.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

MODULES = [
    "test_socket",
    "test_select",
    "test_poll",
    "test_epoll",
    "test_eintr",
    "test_ssl",
    "test_subprocess",
    "test_os",
]
LIMIT = 900  # seconds for one module; a test without progress is reported by regrtest before
# The kernel may offer vsock and carry nothing between two ends: these hang, plain or not.
IGNORED = ["-i", "*VSOCK*"]


def outcomes(module: str, environment: dict[str, str], *only: str) -> dict[str, str]:
    """The outcome of each test of one module; of one that ended it, its name and the status."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        command = [sys.executable, "-m", "test", "-u", "walltime,cpu,subprocess", *IGNORED]
        command += ["--timeout", "300", "--junit-xml", str(report)]
        for test in only:
            command += ["-m", test]
        try:
            run = subprocess.run(
                [*command, module],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return {module: "hang"}
        if not report.exists():
            print(run.stdout[-3000:], run.stderr[-3000:], file=sys.stderr)
            return {module: f"ended with status {run.returncode}"}
        found = {}
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            found[case.get("name", "")] = ", ".join(sorted(kinds)) or "ok"
        return found


def compare(module: str, plain: dict[str, str], parked: dict[str, str]) -> int:
    """Prints what differs in one module and returns how many tests that are."""
    first = [outcomes(module, plain), outcomes(module, parked)]
    differing = sorted(
        name
        for name in first[0].keys() | first[1].keys()
        if first[0].get(name) != first[1].get(name)
    )
    again = []
    for name in differing:
        second = [outcomes(module, way, name).get(name) for way in (plain, parked)]
        said = f"plain {first[0].get(name)}, parked {first[1].get(name)}"
        if second[0] == second[1] and second[0] is not None:
            print(f"  {name}: {said}; alone both {second[0]}")
        else:
            print(f"  {name}: {said}; alone plain {second[0]}, parked {second[1]}")
            again.append(name)
    passed = sum(outcome == "ok" for outcome in first[1].values())
    print(
        f"{module}: {len(first[1])} tests, {passed} passed parked, {len(again)} differ", flush=True
    )
    return len(again)


def main() -> int:
    build = pathlib.Path(sys.argv[1]).resolve()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    parked = {
        **plain,
        "LD_PRELOAD": f"{build}/libportalpatch.so {build}/c_portal.so",
        "PORTALPATCH_C_PORTAL": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        counts = pathlib.Path(folder, "counts")
        parked["PORTALPATCH_C_PORTAL_COUNTS"] = str(counts)
        print("Python", sys.version.split()[0])
        differ = sum(compare(module, plain, parked) for module in sys.argv[2:] or MODULES)
        parks = sum(int(line.split()[1]) for line in counts.read_text().splitlines())
    print(f"{parks} calls parked, {differ} tests differ")
    return differ > 0 or parks == 0


if __name__ == "__main__":
    sys.exit(main())
