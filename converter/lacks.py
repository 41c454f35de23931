"""What this machine lacks for a calibrated conversion, and with what less text it would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qconvert.asked import Asked
from qconvert.cost import free_on_device, placed
from qconvert.engine.work import work_bytes
from qconvert.formats.refusal import Reason
from qconvert.job import Job, work_folder
from qconvert.resources import available_memory, folder_bytes, free_bytes, resident_bytes
from qconvert.sizes import sizes_of, states_bytes
from qconvert.units import size

_LEAST_ROWS, _LEAST_LENGTH = 8, 64  # that a remedy names: less text does not calibrate


def shortages(job: Job, asked: Asked, threads: int) -> list[Reason]:
    """Why it does not fit this machine now, each with the option that would make it fit."""
    return [*_of_memory(job, asked, threads), *_of_disk(job, asked)]


def _of_memory(job: Job, asked: Asked, threads: int) -> Iterator[Reason]:
    sizes = sizes_of(job)
    here = available_memory() + resident_bytes()
    there = free_on_device(asked)
    peak = placed(job, asked, threads, sizes)
    if peak.host <= here and peak.device <= there:
        return

    def fits(other: Asked) -> bool:
        found = placed(job, other, threads, sizes)
        return found.host <= here and found.device <= there

    where, need, have = "memory", peak.host, here
    if peak.host <= here:
        where, need, have = "memory of the CUDA device", peak.device, there
    remedies = [_words(one, asked) for one in _smaller(asked) if fits(one)][:1]
    if asked.device != "cpu" and fits(replace(asked, device="cpu")):
        remedies.append("--device cpu")
    if sizes.outside <= here:
        remedies.append(f"--method rtn, which needs about {size(sizes.outside)}")
    yield Reason(
        f"not enough {where}: {size(have)} are free, about {size(need)} are needed",
        " or ".join(remedies) or "take a machine with more of it: no option makes this model fit",
    )


def _of_disk(job: Job, asked: Asked) -> Iterator[Reason]:
    folder = work_folder(job, asked)
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = free_bytes(place)
    if free is None:
        return
    out = job.path.absolute().parent
    shared = out.exists() and out.stat().st_dev == place.stat().st_dev
    sizes, written = sizes_of(job), job.plan.nbytes if shared else 0
    free += folder_bytes(folder)

    def need(other: Asked) -> int:
        states = 2 * states_bytes(sizes, other.calib_rows, other.calib_length)
        return work_bytes(job.plan) + max(states, written)  # states are gone when it is written

    if need(asked) <= free:
        return
    smaller = [_words(one, asked) for one in _smaller(asked) if need(one) <= free][:1]
    rtn = ["--method rtn, which needs no work folder"] if written <= free else []
    yield Reason(
        f"not enough disk space for the work folder {folder}: {size(free)} are free,"
        f" {size(need(asked))} are needed",
        " or ".join(["name a folder on another disk with --work", *smaller, *rtn]),
    )


def _smaller(asked: Asked) -> Iterator[Asked]:
    """Fewer rows, then shorter ones, the largest first."""
    length = asked.calib_length
    while length >= min(_LEAST_LENGTH, asked.calib_length):
        rows = asked.calib_rows
        while rows >= min(_LEAST_ROWS, asked.calib_rows):
            yield replace(asked, calib_rows=rows, calib_length=length)
            rows //= 2
        length //= 2


def _words(other: Asked, asked: Asked) -> str:
    """The options that make `other` of `asked`."""
    rows = other.calib_rows != asked.calib_rows
    length = other.calib_length != asked.calib_length
    words = [f"--calib-rows {other.calib_rows}"] * rows
    return " ".join([*words, *[f"--calib-length {other.calib_length}"] * length])
