"""Whatever becomes of a worker: one readable error, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.runtimes import process
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker


def gone(pid: int, seconds: float = 10.0) -> bool:
    """True when the process ends within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_arguments_and_arrays_pass_and_prints_do_not(launch: Launch) -> None:
    worker = Worker(launch)
    try:
        for _ in range(2):
            reply = worker.call("echo", [np.arange(5, dtype=np.int32)], text="é")
            assert reply.head["result"] == {"text": "é"}
            np.testing.assert_array_equal(reply.arrays[0], np.arange(5))
    finally:
        worker.close()


def test_a_crash_is_one_error_with_the_last_words(launch: Launch) -> None:
    worker = Worker(launch)
    with pytest.raises(RuntimeFailed) as raised:
        worker.call("crash")
    assert raised.value.crashed
    assert "strange crashed (SIGABRT) (during 'crash')" in str(raised.value)
    assert "GGML_ASSERT(x > 0) failed" in str(raised.value)
    assert "frame #" not in str(raised.value)
    assert gone(worker.pid)
    with pytest.raises(RuntimeFailed):
        worker.call("echo")


def test_leaving_is_an_error_too(launch: Launch) -> None:
    worker = Worker(launch)
    with pytest.raises(RuntimeFailed, match="exit code 7"):
        worker.call("leave")


def test_a_module_that_does_not_start(launch: Launch) -> None:
    worker = Worker(replace(launch, module="no_such_worker"))
    with pytest.raises(RuntimeFailed, match="No module named"):
        worker.call("echo")


def test_a_call_that_takes_too_long_is_stopped(launch: Launch) -> None:
    worker = Worker(launch)
    worker.call("echo")
    begin = time.monotonic()
    with pytest.raises(RuntimeFailed, match=r"longer than 0\.5 s") as raised:
        worker.call("sleep", timeout=0.5, seconds=60)
    assert time.monotonic() - begin < 30
    assert not raised.value.crashed
    assert gone(worker.pid)


def test_close_ends_a_worker_and_its_folder(launch: Launch) -> None:
    worker = Worker(launch)
    worker.call("echo")
    folder = Path(f"/proc/{worker.pid}/cwd").resolve() if sys.platform == "linux" else None
    worker.close()
    worker.close()
    assert gone(worker.pid)
    assert folder is None or not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("end", ["close", "crash", "sleep"])
def test_what_a_worker_has_started_ends_with_it(launch: Launch, end: str) -> None:
    worker = Worker(launch)
    started = worker.call("start").head["result"]
    if end == "close":
        worker.close()
    else:
        with pytest.raises(RuntimeFailed):
            worker.call(end, timeout=1.0, **({"seconds": 60} if end == "sleep" else {}))
    assert gone(started)


def test_ctrl_c_ends_the_worker(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(stream: object) -> None:
        raise KeyboardInterrupt

    worker = Worker(launch)
    worker.call("echo")
    monkeypatch.setattr(process, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.call("sleep", seconds=60)
    assert gone(worker.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_does_not_outlive_a_killed_parent(launch: Launch) -> None:
    program = (
        "from qconvert.runtimes.process import *\n"
        "w = Worker(Launch('strange', 'strange_worker', '', {}))\n"
        "w.call('echo'); print(w.pid, flush=True); w.call('sleep', seconds=60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, **launch.environment},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_errors_keep_their_kind(launch: Launch) -> None:
    worker = Worker(launch)
    try:
        with pytest.raises(Refused, match="it cannot"):
            worker.call("error", kind="refused")
        with pytest.raises(MissingRuntime, match="it cannot"):
            worker.call("error", kind="missing")
        with pytest.raises(RuntimeFailed, match="it cannot"):
            worker.call("error", kind="failed")
        assert worker.call("echo").head["result"] == {}
    finally:
        worker.close()
