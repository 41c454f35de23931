"""One HTML page of one or several checks: no other file, no script, nothing from a network."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from qconvert.runtimes.findings import CheckReport, Verdict
from qconvert.runtimes.page import figures, layers, speed
from qconvert.runtimes.page.reasons import reasons
from qconvert.runtimes.page.section import section, visible
from qconvert.runtimes.page.tradeoff import front, points, sample, tradeoff
from qconvert.runtimes.page.words import base, count, megabytes, number, percent, ratio, span

PATHS = {
    "PASS": "M-9.5,0.5L-3,7L9.5,-6.5",
    "FAIL": "M-7,-7L7,7M-7,7L7,-7",
    "INCONCLUSIVE": "M-5,-5C-5,-12 5.5,-12 5.5,-5C5.5,0 0,-1.5 0,4M0,9.5V10",
}
COLOURS = {"PASS": "#009E73", "FAIL": "#D55E00", "INCONCLUSIVE": "#E69F00"}
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")


def page(reports: Sequence[CheckReport]) -> str:
    """A whole HTML document; the same bytes for the same reports. `ValueError` without a report.

    Its policy lets nothing be loaded and no script run, and holds the style by its sha256: what a
    file's name or a token may say is text.
    """
    if not reports:
        raise ValueError("a page needs a report")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qconvert.runtimes", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number)
    style = (files("qconvert.runtimes") / "data" / "check.css").read_text(encoding="utf-8")
    style = f"\n{style}"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    verdict = next(one for one in WORST_FIRST if any(r.verdict == one for r in reports))
    return environment.get_template("check.html.j2").render(
        style=Markup(style),
        digest=digest,
        icon=icon(verdict),
        symbol=symbol,
        sample=sample,
        visible=visible,
        title=_title(reports),
        sections=[section(report, at) for at, report in enumerate(reports, 1)],
        several=_several(reports) if len(reports) > 1 else None,
    )


def symbol(verdict: str, size: int) -> Markup:
    """The verdict as a shape: a tick, a cross or a question mark in a disc."""
    return Markup(
        '<svg class="symbol {}" viewBox="-20 -20 40 40" width="{}" height="{}"'
        ' aria-hidden="true"><circle r="20"/><path d="{}"/></svg>'
    ).format(verdict.lower(), size, size, PATHS[verdict])


def icon(verdict: str) -> str:
    """The symbol as the picture of the browser's tab, as a data: address."""
    drawn = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 -20 40 40">'
        f'<circle r="20" fill="{COLOURS[verdict]}"/><path d="{PATHS[verdict]}" fill="none"'
        ' stroke="#fff" stroke-width="4" stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode("ascii")


def _title(reports: Sequence[CheckReport]) -> str:
    if len(reports) == 1:
        return f"{reports[0].verdict}: {base(reports[0].file.path)}"
    return f"{len(reports)} outputs of {_models(reports)}"


def _models(reports: Sequence[CheckReport]) -> str:
    return ", ".join(dict.fromkeys(base(report.model) for report in reports))


def _several(reports: Sequence[CheckReport]) -> dict[str, Any]:
    """What stands above the sections of several outputs."""
    counted = Counter(report.verdict for report in reports)
    found = points(reports)
    best = {point.number for point in front(found)}
    return {
        "model": _models(reports),
        "verdicts": [(one, counted[one]) for one in reversed(WORST_FIRST) if counted[one]],
        "picture": tradeoff("tradeoff", found) if len(found) > 1 else None,
        "rows": [_row(report, at, at in best) for at, report in enumerate(reports, 1)],
        "speed": any(report.speed for report in reports),
        "told": f"{count(len(reports), 'output')} of {_models(reports)}",
    }


def _row(report: CheckReport, at: int, best: bool) -> dict[str, Any]:
    distance = figures.gated(report)
    kl, same, perplexity = (
        figures.kl_mean(distance), figures.top1(distance), figures.perplexity_ratio(distance),
    )  # fmt: skip
    tail = dict(figures.kl_tail(distance))
    rates = [] if report.speed is None else speed.timed(report.speed)
    generation = next((row for row in rates if row.kind == "generation"), None)
    why = reasons(report)
    return {
        "number": at,
        "verdict": report.verdict,
        "name": base(report.file.path),
        "best": best,
        "size": megabytes(report.file.nbytes),
        "bits": f"{report.file.bits_per_weight:.2f}",
        "kl": (number(kl.value), span(kl)),
        "p99": (number(tail["p99"].value), span(tail["p99"])),
        "top1": (percent(same.value), span(same, percent)),
        "perplexity": (ratio(perplexity.value), span(perplexity, ratio)),
        "speed": generation and generation.shown(generation.found.value),
        "culprit": why[0].culprit or why[0].problem if why else "",
        "blocks": layers.culprits(report),
    }
