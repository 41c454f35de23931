"""Records of the engine, made up: as a model of a few blocks would have them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from qconvert.asked import Calibrated, CalibrationFacts
from qconvert.engine.record import BlockRecord, InputRecord, LinearRecord

ROLES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_o": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
INPUTS = {"attn_in": 48, "attn_mid": 48, "ffn_in": 48, "ffn_mid": 96}

Records = Callable[..., tuple[BlockRecord, ...]]


def _linear(chance: random.Random, block: int, role: str) -> LinearRecord:
    plain = 0.03 * math.exp(chance.gauss(0, 0.3))
    name = f"model.layers.{block}.{ROLES[role]}.weight"
    kept = plain * chance.uniform(0.4, 0.7)
    return LinearRecord(name, role, "Q4_K", plain, kept, ("weighted", "gptq"))


def _input(chance: random.Random, block: int, name: str) -> InputRecord:
    channels = INPUTS[name]
    largest = tuple(chance.uniform(0.5, 2) for _ in range(channels)) if block == 0 else ()
    outlier, kurtosis = chance.uniform(5, 80), chance.uniform(3, 300)
    return InputRecord(name, channels, int(block == 1), outlier, kurtosis, largest)


@pytest.fixture(scope="session")
def records() -> Records:
    """`records(blocks=4, seed=0)`: the records of a model of that many blocks."""

    def build(blocks: int = 4, seed: int = 0) -> tuple[BlockRecord, ...]:
        chance = random.Random(seed)
        return tuple(
            BlockRecord(
                index,
                tuple(_linear(chance, index, role) for role in ROLES),
                tuple(_input(chance, index, name) for name in INPUTS),
                seconds=chance.uniform(1, 2),
                peak_bytes=10**9 + index,
            )
            for index in range(blocks)
        )

    return build


@pytest.fixture(scope="session")
def calibrated(records: Records) -> Calibrated:
    """What the engine says of a finished job."""
    facts = CalibrationFacts(
        "mine.txt", "0123456789abcdef" * 4, 64, 512, 16, chat=True, notes=("some text was short",)
    )
    return Calibrated("best", ("weighted", "gptq"), facts, 7, 2, "cpu", records(), resumed=1)
