"""The command line: its options, and that a program under it cannot tell it from plain Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from programs import MODES, command_for, finish, library_path
from servers.process import clean_environment

# Modes in which no line is put into the program, so that its tracebacks have the same bytes.
UNSEEN = ("cli", "preload", "no-preload")

# What a program can see of how it was started.
MIRROR = """
import json, os, sys
main = {name: repr(value) for name, value in vars(sys.modules["__main__"]).items()
        if name not in ("__builtins__", "__loader__", "__spec__")}
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": repr(sys.flags),
    "main": main, "environ": dict(os.environ), "sitecustomize": "sitecustomize" in sys.modules,
    "executable": sys.executable, "warnoptions": sys.warnoptions, "xoptions": sys._xoptions,
    "stdin": sys.stdin.read(),
}, indent=1, sort_keys=True))
"""


@pytest.fixture
def mirror(tmp_path):
    path = tmp_path / "mirror.py"
    path.write_text(MIRROR)
    return path


def both(run_app, *program, mode, **how):
    """Run a program plainly and in `mode`; returns the two results."""
    return run_app(*program, mode="plain", **how), run_app(*program, mode=mode, **how)


# ---- fidelity --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
@pytest.mark.parametrize(
    "program",
    [
        ["mirror.py", "a", "--stats", "-m", "x y", ""],
        ["./mirror.py"],
        ["-m", "mirror", "1", "--host"],
        ["-mmirror", "1"],
        ["-c", MIRROR, "-c", "2"],
        ["-", "x"],
    ],
    ids=lambda program: " ".join(program)[:16].strip(),
)
def test_program_sees_what_plain_python_shows(run_app, mirror, mode, program):
    stdin = "some input\n" if program[0] != "-" else MIRROR
    plain, patched = both(run_app, *program, mode=mode, stdin=stdin)
    assert json.loads(patched.check().out) == json.loads(plain.check().out)
    assert patched.err == plain.err


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-X", "dev", "-B"], ["-W", "error", "-s"]])
def test_interpreter_flags_are_kept(run_app, mirror, mode, flags):
    for program in (["mirror.py", "1"], ["-c", MIRROR, "2"]):
        plain, patched = both(run_app, *program, mode=mode, flags=flags, stdin="")
        assert json.loads(patched.check().out) == json.loads(plain.check().out)


def test_interpreter_flags_joined_with_the_module_option(run_app, mirror, tmp_path):
    plain = run_app("mirror.py", mode="plain", flags=["-I"], stdin="").check()
    command = [sys.executable, "-Im", "portalpatch", "mirror.py"]
    joined = subprocess.run(
        command,
        cwd=tmp_path,
        env={**clean_environment(), "PYTHONFAULTHANDLER": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(joined.stdout) == json.loads(plain.out), joined.stderr


@pytest.mark.parametrize("mode", ["cli", "no-preload", "preload"])
@pytest.mark.parametrize("pythonpath", [None, "", "/nowhere/at:all"])
def test_environment_is_restored(run_app, mirror, mode, pythonpath):
    env = {"EMPTY": "", "LATIN": "\udce9"}
    if pythonpath is not None:
        env["PYTHONPATH"] = pythonpath
    plain = json.loads(run_app(mirror, mode="plain", env=env, stdin="").check().out)
    patched = json.loads(run_app(mirror, mode=mode, env=env, stdin="").check().out)
    if mode == "preload":  # the user set these himself: they stay, and reach his children
        assert patched["environ"].pop("LD_PRELOAD") == library_path()
        assert patched["environ"].pop("PORTALPATCH") == "1"
    assert patched == plain


def test_user_variables_survive_the_command_line(run_app, mirror):
    env = {"LD_PRELOAD": library_path(), "PORTALPATCH": "1", "PORTALPATCH_HOST": "asyncio"}
    plain = json.loads(run_app(mirror, mode="plain", env=env, stdin="").check().out)
    patched = json.loads(
        run_app(mirror, mode="cli", options=["--host", "asyncio"], env=env, stdin="").check().out
    )
    assert patched == plain
    assert patched["environ"]["PORTALPATCH"] == "1"


@pytest.mark.parametrize("mode", UNSEEN)
def test_real_sitecustomize_still_runs(run_app, tmp_path, mode):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("value = __name__, __file__\n")
    plain, patched = both(
        run_app,
        "-c",
        "import sitecustomize; print(sitecustomize.value)",
        mode=mode,
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert patched.check().out == plain.check().out


@pytest.mark.parametrize("mode", UNSEEN)
def test_children_are_plain_unless_the_user_set_the_variables(run_app, mode):
    result = run_app(
        "-c",
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', "
        "'import sys; print(\"portalpatch\" in sys.modules)'], capture_output=True).stdout)",
        mode=mode,
    )
    assert ("True" in result.check().out) == (mode == "preload")


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
def test_directory_and_zip_run_like_plain(run_app, tmp_path, mode):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(MIRROR)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", MIRROR)
    for program in ("folder", "app.zip"):
        for flags in ([], ["-I"]):
            plain, patched = both(run_app, program, "x", mode=mode, flags=flags, stdin="")
            assert json.loads(patched.check().out) == json.loads(plain.check().out)


# Green threads and a loop, with sockets at the first free numbers. The result goes to a file.
TALKS = """
import asyncio, os, socket, sys, threading, time
here, there = socket.socketpair()
threading.Thread(target=lambda: (time.sleep(0.01), there.sendall(b"thread"))).start()
said = [here.recv(10)]

async def main():
    reader, writer = await asyncio.open_connection(sock=here)
    asyncio.get_running_loop().call_later(0.01, there.send, b"task")
    said.append(await reader.read(10))
    time.sleep(0.01)
    writer.close()

asyncio.run(main())
with open(sys.argv[1], "w") as result:
    print(said, min(here.fileno(), there.fileno()), file=result)
"""


def in_shell(program, around, tmp_path, mode):
    """Run `program` (Python source), `around` being shell with a %s for its command line."""
    app, result = tmp_path / "app.py", tmp_path / "result"
    app.write_text(program)
    result.unlink(missing_ok=True)
    command, extra = command_for(mode, [str(app), str(result)])
    done = subprocess.run(
        [
            "sh",
            "-c",
            around % shlex.join(["env", *(f"{k}={v}" for k, v in extra.items()), *command]),
        ],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr, result.exists() and result.read_text()


@pytest.mark.parametrize("mode", UNSEEN)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_program_whose_standard_streams_are_closed(tmp_path, mode, closed):
    plain = in_shell(TALKS, f"%s {closed}", tmp_path, "plain")
    assert plain[0] == 0 and "task" in plain[3]
    assert in_shell(TALKS, f"%s {closed}", tmp_path, mode) == plain


@pytest.mark.parametrize("mode", UNSEEN)
def test_program_in_a_folder_that_is_gone(tmp_path, mode):
    (tmp_path / "gone").mkdir()
    around = f"mkdir -p {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; %s"
    plain = in_shell(TALKS, around, tmp_path, "plain")
    assert plain[0] == 0 and "task" in plain[3]
    assert in_shell(TALKS, around, tmp_path, mode) == plain


@pytest.mark.skipif(not shutil.which("faketime"), reason="needs Debian's package faketime")
def test_program_whose_clock_is_made_up(tmp_path):
    around = "faketime '2020-01-01 00:00:00' %s"
    plain = in_shell(TALKS, around, tmp_path, "plain")
    assert plain[0] == 0 and "task" in plain[3]
    assert in_shell(TALKS, around, tmp_path, "cli") == plain


def test_other_programs_are_left_alone():
    result = subprocess.run(
        ["/bin/bash", "-c", "echo $PORTALPATCH ${PYTHONPATH-unset}; env | grep -c PYTHONPATH"],
        env={"PATH": os.environ["PATH"], "LD_PRELOAD": library_path(), "PORTALPATCH": "1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (result.stdout, result.stderr) == ("1 unset\n0\n", "")


def test_a_python_that_cannot_run_portalpatch_stays_native(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60
    )
    environment = {"PATH": os.environ["PATH"], "PORTALPATCH": "1"}
    command = [tmp_path / "bare" / "bin" / "python", "-c", MIRROR]
    seen = [
        subprocess.run(command, input="x", env=env, capture_output=True, text=True, timeout=30)
        for env in (environment, {**environment, "LD_PRELOAD": library_path()})
    ]
    plain, preloaded = (json.loads(result.stdout) for result in seen)
    assert preloaded["environ"].pop("LD_PRELOAD") == library_path()
    assert preloaded == plain
    assert [(result.returncode, result.stderr) for result in seen] == [(0, "")] * 2


FAILING = {
    "exception": (1, "import time\ntime.sleep(0.01)\ndef f():\n    1 / 0\nf()\n"),
    "chained": (1, "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('no') from e\n"),
    "group": (1, "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])\n"),
    "syntax": (1, "x = 1\ny = (\n"),
    "exit 3": (3, "import sys\nsys.exit(3)\n"),
    "exit text": (1, "import sys\nsys.exit('no such luck')\n"),
    "exit none": (0, "import sys\nprint('x')\nsys.exit()\n"),
    "os._exit": (7, "import os\nprint('x', flush=True)\nos._exit(7)\n"),
    "killed": (-9, "import os\nprint('x', flush=True)\nos.kill(os.getpid(), 9)\n"),
    "terminated": (-15, "import os, time\nos.kill(os.getpid(), 15)\ntime.sleep(9)\n"),
    "atexit": (0, "import atexit\natexit.register(print, 'last')\nprint('first')\n"),
    "stderr": (0, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n"),
    "interrupt": (-2, "print('x', flush=True)\nraise KeyboardInterrupt\n"),
    "thread": (
        0,
        "import threading\ndef f():\n    raise ValueError('in thread')\n"
        "t = threading.Thread(target=f, name='worker')\nt.start()\nt.join()\nprint('end')\n",
    ),
    "unraisable": (0, "class C:\n    def __del__(self):\n        1 / 0\nC()\nprint('end')\n"),
}


@pytest.mark.parametrize("mode", UNSEEN)
@pytest.mark.parametrize("name", FAILING)
def test_end_and_output_are_the_same_bytes(run_app, tmp_path, mode, name):
    status, source = FAILING[name]
    if name == "group" and sys.version_info < (3, 11):
        source = source.replace("ExceptionGroup('g', [ValueError(1), KeyError(2)])", "ValueError")
    (tmp_path / "app.py").write_text(source)
    plain, patched = both(run_app, "app.py", mode=mode)
    # Addresses of objects differ from run to run.
    hidden = [
        (result.status, result.out, re.sub("0x[0-9a-f]+", "0x", result.err))
        for result in (plain, patched)
    ]
    assert hidden[1] == hidden[0]
    assert plain.status == status


@pytest.mark.parametrize("flags", [["-I"], ["-E"]])
@pytest.mark.parametrize(
    "name", ["exception", "chained", "syntax", "exit 3", "exit text", "interrupt"]
)
def test_end_and_output_are_the_same_where_site_cannot_help(run_app, tmp_path, flags, name):
    (tmp_path / "app.py").write_text(FAILING[name][1])
    plain, patched = both(run_app, "app.py", mode="cli", flags=flags)
    assert (patched.status, patched.out, patched.err) == (plain.status, plain.out, plain.err)


@pytest.mark.parametrize("mode", UNSEEN)
@pytest.mark.parametrize("program", [["missing.py"], ["-m", "missing_module"], ["-c", "1 +"]])
def test_program_that_cannot_start_says_what_python_says(run_app, mode, program):
    plain, patched = both(run_app, *program, mode=mode)
    assert (patched.status, patched.err) == (plain.status, plain.err)
    if program == ["missing.py"]:
        assert patched.status == 2
        assert patched.err.count("\n") == 1


def test_standard_input_is_the_programs(run_app):
    source = "import sys\nprint(sys.stdin.read())\nprint(repr(sys.stdin.buffer.read()))\n"
    assert run_app(source, stdin="one\ntwo\n").check().out == "one\ntwo\n\nb''\n"


@pytest.mark.parametrize("mode", UNSEEN)
def test_input_and_stdin_as_program(run_app, mode):
    plain, patched = both(run_app, "-", mode=mode, stdin="print(input())\n")
    assert (patched.status, patched.out, patched.err) == (plain.status, plain.out, plain.err)


# ---- signals ---------------------------------------------------------------------------------

SLEEPER = """\
import sys, time
print("ready", flush=True)
time.sleep(60)
"""


def interrupted(start_program, mode, source, signal_number):
    process = start_program(source, mode=mode)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # let it block, or park
    process.send_signal(signal_number)
    return finish(process, 20)


@pytest.mark.parametrize("mode", MODES)
def test_interrupt_in_a_parked_sleep_is_raised_at_that_line(start_program, mode):
    plain = interrupted(start_program, "plain", SLEEPER, signal.SIGINT)
    result = interrupted(start_program, mode, SLEEPER, signal.SIGINT)
    assert result.status == plain.status == -signal.SIGINT  # which a shell reports as 130
    if mode == "patch_all":
        assert result.err.splitlines()[-2:] == plain.err.splitlines()[-2:]
    else:
        assert result.err == plain.err
    assert "time.sleep(60)" in result.err


@pytest.mark.parametrize("mode", MODES)
def test_shell_sees_130_after_interrupt(start_program, tmp_path, mode):
    (tmp_path / "sleeper.py").write_text(
        SLEEPER
        if mode != "patch_all"
        else f"import portalpatch; portalpatch.patch_all()\n{SLEEPER}"
    )
    command, extra = command_for(mode, ["sleeper.py"])
    shell = subprocess.Popen(
        ["/bin/bash", "-c", "trap : INT; " + '"$@"; echo status $?', "sh", *command],
        cwd=tmp_path,
        env={**clean_environment(), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(shell.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    assert finish(shell, 20).out == "status 130\n"


@pytest.mark.parametrize("mode", MODES)
def test_terminated_while_parked(start_program, mode):
    result = interrupted(start_program, mode, SLEEPER, signal.SIGTERM)
    assert (result.status, result.err) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("mode", MODES)
def test_python_signal_handler_runs_during_a_parked_sleep(start_program, mode):
    source = """\
import signal, time
def handler(number, frame):
    print("handled", number, frame.f_code.co_name, flush=True)
signal.signal(signal.SIGUSR1, handler)
print("ready", flush=True)
start = time.monotonic()
time.sleep(1.5)
print(time.monotonic() - start >= 1.5)
"""
    result = interrupted(start_program, mode, source, signal.SIGUSR1).check()
    assert result.out == f"handled {int(signal.SIGUSR1)} <module>\nTrue\n"


# ---- options ---------------------------------------------------------------------------------


def portalpatch(*arguments, env=None):
    return subprocess.run(
        [sys.executable, "-m", "portalpatch", *arguments],
        env={**clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_version_and_help_and_settings():
    from importlib.metadata import version

    assert portalpatch("--version").stdout == f"portalpatch {version('portalpatch')}\n"
    text = portalpatch("--help").stdout
    for option in (
        "--host",
        "--only",
        "--without",
        "--no-preload",
        "--stats",
        "--stall",
        "--mutex-guard",
    ):
        assert option in text
    settings = portalpatch("--settings").stdout
    for name in ("PORTALPATCH ", "PORTALPATCH_HOST", "PORTALPATCH_LOG", "PORTALPATCH_STATS"):
        assert name in settings


def test_library_path_names_the_library():
    path = portalpatch("--library-path").stdout.removesuffix("\n")
    assert os.path.samefile(path, library_path())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense", "app.py"], "unknown option --nonsense"),
        (["--stats=1", "app.py"], "unknown option --stats"),
        (["-u", "app.py"], "unknown option -u"),
        (["--host", "twisted", "app.py"], "unknown host 'twisted'"),
        (["--host"], "--host needs a value"),
        (["-m"], "-m needs a value"),
        (["--only", "nonsense", "app.py"], "unknown patch 'nonsense'"),
        (["--without=nonsense", "app.py"], "unknown patch 'nonsense'"),
        (["--stall", "soon", "app.py"], "stall must be a number"),
        (["--stall", "-1", "app.py"], "stall must be a number"),
    ],
)
def test_bad_option_is_one_line_and_status_2(arguments, said):
    result = portalpatch(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.startswith("portalpatch: ")
    assert result.stderr.count("\n") == 1


def test_host_that_is_not_installed_is_one_line_and_status_2(tmp_path):
    hide = "import sys\nsys.modules['trio'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = portalpatch("--host", "trio", "app.py", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2
    assert result.stderr == "portalpatch: host 'trio' is not installed\n"


def test_bad_setting_in_the_environment_is_one_line_and_status_2(run_app):
    result = run_app("-c", "print(1)", mode="preload", env={"PORTALPATCH_HOST": "twisted"})
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("portalpatch: unknown host 'twisted'")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_program_without_a_loop_runs_on_either_host(run_app, host):
    source = """
    import threading, time
    seen = []
    def work(number):
        time.sleep(0.1 * (3 - number))
        seen.append(number)
        native.add(open("/proc/self/status").read().split("Threads:")[1].split()[0])
    native = set()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(seen, native)
    """
    result = run_app(source, options=["--host", host]).check()
    assert result.out == "[2, 1, 0] {'1'}\n"


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
def test_stats_prints_a_table_at_exit(run_app, mode):
    source = "import time\nfor _ in range(5): time.sleep(0.01)\nprint('done')\n"
    result = run_app(source, mode=mode, options=["--stats"]).check()
    assert result.out == "done\n"
    table = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", result.err, re.MULTILINE))
    # time.sleep() calls clock_nanosleep(), up to 3.10 select().
    waits = [table[name].split()[0] for name in ("clock_nanosleep", "select") if name in table]
    assert sum(map(int, waits)) == 5, result.err
    assert ("LD_PRELOAD" in table["calls caught by"]) == (mode == "cli")


def test_patch_all_with_stats_prints_the_table_at_exit(run_app):
    source = """
        import sys, threading, portalpatch
        portalpatch.patch_all(stats=True)
        lock = threading.Lock()
        lock.acquire()
        threading.Timer(0.01, lock.release).start()
        lock.acquire()
        if sys.argv[1:]:
            portalpatch.unpatch_all()
        """
    shown = run_app(source, mode="plain").check().err
    assert shown.count("portalpatch statistics") == 1
    assert re.search(r"^  lock +[1-9]", shown, re.MULTILINE)
    assert run_app(source, "unpatch", mode="plain").check().err == ""


def test_log_debug_traces_decisions(run_app):
    result = run_app(
        "-c", "import time; time.sleep(0.01)", env={"PORTALPATCH_LOG": "debug"}
    ).check()
    assert re.search(r"^portalpatch\[\d+\]: (clock_nanosleep|select) parks$", result.err, re.M)


@pytest.mark.parametrize("mode", MODES)
def test_unpatch_all_restores(run_app, mode):
    source = """
    import portalpatch, threading, time
    portalpatch.unpatch_all()
    names = set()
    def work():
        time.sleep(0.2)
        names.add(open("/proc/thread-self/stat").read().split()[0])
    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(names), type(threading.Lock()).__module__)
    """
    assert run_app(source, mode=mode).check().out == "5 _thread\n"
