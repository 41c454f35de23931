"""config.json, read with care: values of the right kind, or a reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qconvert.formats.refusal import Reason


class Settings:
    """A configuration with the defaults of its model type. Faults are noted, not raised."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._config, self._defaults = config, defaults
        self.reasons: list[Reason] = []

    def get(self, key: str) -> Any:
        """The value, None where it is absent or null without a default."""
        return self._config[key] if key in self._config else self._defaults.get(key)

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

    def _bad(self, key: str, value: Any, wanted: str) -> None:
        self.refuse(f"config.json: {key} is {value!r}", f"{wanted} is needed there")


def is_number(value: Any) -> bool:
    """True for a finite int or float that is no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
