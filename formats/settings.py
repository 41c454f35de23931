"""config.json, read with care: values of the right kind, or a reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qconvert.formats.refusal import Reason

LARGEST = 1 << 53
"""Whole numbers from here on are none that a model has; a float does not hold them all."""


class Settings:
    """A configuration with the defaults of its model type. Faults are noted, not raised. Keys are
    Llama's; `names`: what a model type calls some of them."""

    def __init__(
        self,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any],
        names: Mapping[str, str] = {},
    ) -> None:
        self._config, self._defaults, self._names = config, defaults, names or {}
        self.reasons: list[Reason] = []

    def get(self, key: str) -> Any:
        """The value, None where it is absent or null without a default."""
        own = self._own(key)
        for name in (own, key):
            if name in self._config:
                return self._config[name]
        return self._defaults.get(own)

    def count(self, key: str, fallback: int | None = None) -> int:
        """A positive whole number; 1, and a reason, where there is none."""
        value = self.get(key)
        if value is None and fallback is not None:
            return fallback
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
        self._bad(key, value, "a positive whole number")
        return 1

    def number(
        self, key: str, given: Mapping[str, Any] | None = None, default: Any = None
    ) -> float:
        """A positive finite number, of `given` where that is set; 1, and a reason, otherwise."""
        value = self.get(key) if given is None else given.get(key)
        value = default if value is None else value
        if is_number(value) and value > 0:
            return float(value)
        self._bad(key, value, "a positive number")
        return 1.0

    def refuse(self, problem: str, remedy: str = "") -> None:
        self.reasons.append(Reason(problem, remedy))

    def rope_parameters(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """(of full attention, of sliding attention): `rope_parameters`, or the older
        `rope_scaling`; empty where there are none."""
        found = self.get("rope_parameters")
        found = found if found is not None else self.get("rope_scaling")
        if found is None:
            return {}, {}
        if not isinstance(found, Mapping):
            self.refuse(f"config.json: the rope parameters are {found!r}, not an object")
            return {}, {}
        if not {"full_attention", "sliding_attention"} & set(found):
            return found, {}
        full, local = found.get("full_attention") or {}, found.get("sliding_attention") or {}
        if not isinstance(full, Mapping) or not isinstance(local, Mapping):
            self.refuse("config.json: the rope parameters of a layer type are not an object")
            return {}, {}
        return full, local

    def _own(self, key: str) -> str:
        return self._names.get(key, key)

    def _bad(self, key: str, value: Any, wanted: str) -> None:
        self.refuse(f"config.json: {self._own(key)} is {value!r}", f"{wanted} is needed there")


def rope_kind(parameters: Mapping[str, Any]) -> str:
    """Phi-3's configurations say "su" or "yarn" and mean longrope; transformers reads them so."""
    kind = str(parameters.get("rope_type", parameters.get("type")) or "default").lower()
    return "longrope" if kind in ("su", "yarn") and "short_factor" in parameters else kind


def is_number(value: Any) -> bool:
    """True for a finite int or float that is no bool."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < LARGEST
    return isinstance(value, float) and math.isfinite(value)
