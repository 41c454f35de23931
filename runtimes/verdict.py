"""The rules that every output must keep, whatever the gates. Nothing found: it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qconvert.runtimes.findings import Finding, LoaderFacts, Noise, TokenParity
from qconvert.runtimes.measure import Distance

NOISE_FACTOR = 3.0
"""The runtime may add this many times what its rounding explains. Measured in llama.cpp (AVX-512)
on SmolLM2-135M and its wide twin, Q8_0, Q4_0, Q4_K_M, Q2_K: 0.95 to 1.02 times. The noise floor
alone would not do: a correct runtime adds 37 to 284 times the floor of a bfloat16 file there."""

TAIL_FACTOR = 10.0
"""By which the mean may be beyond its limit where the median is within: few positions make the
mean of what is left of 16 bits. Met in vLLM: 1.1 times the limit over 127 positions, where the
median was 2.0 times what rounding explains (SmolLM2-135M, w4a16-channel)."""

SMALLEST_LIMIT = 1e-6  # nats: where nothing is rounded, float32 and its order of summation remain


def noise_limit(expected: Distance, floor: Distance | None) -> float:
    """Largest mean KL, in nats, that the runtime may add to the decoded file."""
    explained = expected.kl_mean + (floor.kl_mean if floor else 0.0)
    return max(NOISE_FACTOR * explained, SMALLEST_LIMIT)


def loader_problems(loaders: Sequence[LoaderFacts]) -> Iterator[Finding]:
    for one in loaders:
        who = one.version or one.name
        for problem in one.problems:
            told = f"{who} does not load it as it is meant: {problem}"
            yield Finding("loader", one.name, told)


def broken_logits(where: str, distance: Distance | None) -> Iterator[Finding]:
    if distance is not None and distance.broken:
        share = f"{distance.broken} of {distance.positions} positions"
        yield Finding("numbers", where, f"{where}: logits at {share} are not finite")


def runtime_failure(name: str, failure: str) -> Iterator[Finding]:
    if failure:
        told = failure if failure.startswith(name) else f"{name}: {failure}"
        yield Finding("runtime", name, told)


def leaves_noise(noise: Noise) -> bool:
    """Whether the runtime adds more than is explained: at most positions, or far more at some."""
    if noise.adds.kl_mean <= noise.limit:
        return False
    usual = noise.expected.kl_median + (noise.floor.kl_median if noise.floor else 0.0)
    often = noise.adds.kl_median > max(NOISE_FACTOR * usual, SMALLEST_LIMIT)
    return often or not noise.adds.kl_mean <= TAIL_FACTOR * noise.limit


def runtime_noise(name: str, noise: Noise | None, block: int | None = None) -> Iterator[Finding]:
    """`block`: the first whose output leaves the noise, where it is known."""
    if noise is None or not leaves_noise(noise):
        return
    parts = f"{noise.expected.kl_mean:.2g} expected from its rounding of activations"
    if noise.floor is not None:
        parts += f", {noise.floor.kl_mean:.2g} on an unquantized file"
    where = "" if block is None else f"; block {block} is the first that leaves the noise"
    yield Finding(
        "numbers",
        name if block is None else f"block {block}",
        f"{name} does not compute what the file says: KL {noise.adds.kl_mean:.3g} nats from the"
        f" decoded file, where at most {noise.limit:.2g} is explained ({parts}){where}",
    )


def token_faults(parity: TokenParity | None) -> Iterator[Finding]:
    if parity is None or not parity.mismatches:
        return
    first = parity.examples[0]
    yield Finding(
        "tokens",
        "tokenizer",
        f"{parity.mismatches} of {parity.strings} strings get other tokens than from the model's"
        f" tokenizer, such as {first.text!r}: {list(first.expected)} became {list(first.runtime)}",
    )
