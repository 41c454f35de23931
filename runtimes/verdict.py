"""The rules by which a check passes or fails. Each gives its reasons; none means that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qconvert.runtimes.findings import LoaderFacts, Noise, TokenParity
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.weights import TensorError

NOISE_FACTOR = 3.0
"""The runtime may add this many times what its rounding explains. Measured in llama.cpp (AVX-512)
on SmolLM2-135M and its wide twin, Q8_0, Q4_0, Q4_K_M, Q2_K: 0.95 to 1.02 times. The noise floor
alone would not do: a correct runtime adds 37 to 284 times the floor of a bfloat16 file there."""

SMALLEST_LIMIT = 1e-6  # nats: where nothing is rounded, float32 and its order of summation remain
SHOWN = 5


def noise_limit(expected: Distance, floor: Distance | None) -> float:
    """Largest mean KL, in nats, that the runtime may add to the decoded file."""
    explained = expected.kl_mean + (floor.kl_mean if floor else 0.0)
    return max(NOISE_FACTOR * explained, SMALLEST_LIMIT)


def tensor_faults(errors: Sequence[TensorError]) -> Iterator[str]:
    """Tensors that are further from the source than their bits explain."""
    wrong = sorted((error for error in errors if not error.ok), key=lambda error: -error.error)
    for error in wrong[:SHOWN]:
        yield (
            f"{error.name} is not what the model holds: row {error.row} is off by"
            f" {error.worst_row:.0%} (rounding explains at most {error.limit:.0%};"
            f" whole tensor {error.error:.1%})"
        )
    if len(wrong) > SHOWN:
        yield f"{len(wrong) - SHOWN} more tensors are not what the model holds"


def loader_problems(loaders: Sequence[LoaderFacts]) -> Iterator[str]:
    for one in loaders:
        who = one.version or one.name
        yield from (f"{who} does not load it as it is meant: {problem}" for problem in one.problems)


def broken_logits(where: str, distance: Distance | None) -> Iterator[str]:
    if distance is not None and distance.broken:
        share = f"{distance.broken} of {distance.positions} positions"
        yield f"{where}: logits at {share} are not finite"


def runtime_failure(name: str, failure: str) -> Iterator[str]:
    if failure:
        yield failure if failure.startswith(name) else f"{name}: {failure}"


def runtime_noise(name: str, noise: Noise | None) -> Iterator[str]:
    if noise is None or noise.adds.kl_mean <= noise.limit:
        return
    parts = f"{noise.expected.kl_mean:.2g} expected from its rounding of activations"
    if noise.floor is not None:
        parts += f", {noise.floor.kl_mean:.2g} on an unquantized file"
    yield (
        f"{name} does not compute what the file says: KL {noise.adds.kl_mean:.3g} nats from the"
        f" decoded file, where at most {noise.limit:.2g} is explained ({parts})"
    )


def token_faults(parity: TokenParity | None) -> Iterator[str]:
    if parity is None or not parity.mismatches:
        return
    first = parity.examples[0]
    yield (
        f"{parity.mismatches} of {parity.strings} strings get other tokens than from the model's"
        f" tokenizer, such as {first.text!r}: {list(first.expected)} became {list(first.runtime)}"
    )


def too_far(where: str, distance: Distance, max_kl: float | None) -> Iterator[str]:
    """`where`: the way of running the file, in front of the reason; empty for the first."""
    if max_kl is not None and not distance.kl_mean <= max_kl:
        told = f"KL from the source is {distance.kl_mean:.4g} nats, more than {max_kl:g} (--max-kl)"
        yield f"{where}: {told}" if where else told
