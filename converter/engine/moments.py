"""Statistics of what a linear reads, over all calibration tokens. All are sums over tokens, or
extremes, so they do not depend on how the rows were batched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Change:
    """What a transform did to an input x: the linears now read (x - shift) / divide."""

    divide: torch.Tensor  # [cols], not zero
    shift: torch.Tensor | None = None  # [cols]

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """What became of tokens x [n, cols]."""
        return (x if self.shift is None else x - self.shift) / self.divide


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the vectors x [cols] that reach one input; float32, on the device of the engine."""

    tokens: int
    second: torch.Tensor  # [cols, cols], mean of x x'
    mean: torch.Tensor  # [cols]
    mean_abs: torch.Tensor  # [cols]
    fourth: torch.Tensor  # [cols], mean of x^4
    lowest: torch.Tensor  # [cols]
    highest: torch.Tensor  # [cols]

    @property
    def largest(self) -> torch.Tensor:
        """Largest magnitude of each channel, [cols]."""
        return torch.maximum(self.lowest.abs(), self.highest.abs())

    def waiting(self, device: torch.device) -> Moments:
        """With the second moments on `device`."""
        return replace(self, second=self.second.to(device))

    def after(self, change: Change) -> Moments:
        """The statistics of (x - shift) / divide. `mean_abs` and `fourth` cannot be derived from
        sums when there is a shift: the former is then bounded by the deviation, the latter kept."""
        scale = 1 / change.divide
        outer = scale[:, None] * scale[None, :]
        second, mean, mean_abs = self.second, self.mean, self.mean_abs
        lowest, highest = self.lowest, self.highest
        if change.shift is not None:
            z = change.shift
            moved = mean - z
            second = second - z[:, None] * mean[None, :] - moved[:, None] * z[None, :]
            mean, lowest, highest = moved, lowest - z, highest - z
            mean_abs = second.diagonal().clamp_min(0).sqrt()
        ends = torch.stack([lowest * scale, highest * scale])
        return Moments(
            self.tokens,
            second * outer,
            mean * scale,
            mean_abs * scale.abs(),
            self.fourth * scale.square().square(),
            ends.amin(0),
            ends.amax(0),
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """One input, seen on the rows that algorithms may fit to and on rows held out to judge them."""

    fit: Moments
    held: Moments

    def waiting(self, device: torch.device) -> Observed:
        return Observed(self.fit.waiting(device), self.held.waiting(device))

    def after(self, change: Change) -> Observed:
        return Observed(self.fit.after(change), self.held.after(change))
