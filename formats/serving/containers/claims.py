"""What a configuration claims of a folder, held against the headers of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qconvert.formats.refusal import Reason, Refused, raise_if_any, refuse
from qconvert.formats.serving.container import CacheType, Entry, Joint, Linear, Measured
from qconvert.formats.serving.containers.names import EMBEDDINGS
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.scheme import Activations, Form, Scheme
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.shapes import Keys, Shape, check
from qconvert.formats.source import DTYPES, Dtype

SHOWN = 5  # reasons of one kind
AGAIN = "write the folder again, or get an undamaged copy"
NEEDED = "loaders read it of every such linear: store ones where its inputs are not scaled"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a configuration says. The functions take the name of a module."""

    scheme: Callable[[str], Scheme | None]  # how it is quantized, unless it stays float
    stays_float: Callable[[str], bool] | None  # None: loaders go by the types of the tensors
    listed: Sequence[str] = ()  # names, not patterns, of modules that stay float
    inside: bool = False  # whether loaders look for `listed` inside names
    kv: CacheType | None = None  # type of the KV cache that it switches on


class Stores(Protocol):
    """What is asked of a container here."""

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> Callable[[Scheme], Layout | None]: ...
    def inputs(self, linear: Linear, source: str) -> tuple[Measured, ...]: ...
    def column_part(self, linear: Linear) -> str | None: ...
    def joint(self, linear: Linear) -> Joint | None: ...


def scheme_like(
    form: Form,
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    activations: Activations | None = None,
    static: bool = False,
) -> Scheme:
    """The known scheme with these facts; `Refused` where there is none."""
    asked = (form, bits, group, symmetric, activations, static)
    for one in schemes().values():
        if asked == (one.form, one.bits, one.group, one.symmetric, one.activations, one.static):
            return one
    what = f"{form} weights of {bits} bits, {f'groups of {group}' if group else 'whole rows'}"
    what += "" if symmetric else ", zero points"
    what += f", activations in {activations}" * (activations is not None) + ", static" * static
    raise refuse(f"the folder holds {what}: qconvert reads no such scheme",
                 f"it reads {', '.join(schemes())}")  # fmt: skip


def read_linears(
    container: Stores,
    claims: Claims,
    stored: Mapping[str, Entry],
    *,
    tied: bool,
    tolerated: list[Reason] | None = None,
) -> list[Linear]:
    """The quantized linears in the order of `stored`; `Refused` with all contradictions. `tied`:
    the head has no tensor of its own. Where `tolerated` is a list, it is told of linears that are
    said to be float and are not, or the other way round, and they are read as they are stored."""
    modules: dict[str, dict[str, Entry]] = {}
    for name, entry in stored.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = entry
    linears: list[Linear] = []
    reasons: list[Reason] = []
    for module, parts in modules.items():
        try:
            linear = _linear(container, claims, module, parts, tolerated)
        except Refused as refused:
            reasons += refused.reasons
            continue
        if linear is not None:
            linears.append(linear)
    (reasons if tolerated is None else tolerated).extend(
        Reason(f"the configuration keeps {one} in float, and the folder has no such module", AGAIN)
        for one in claims.listed
        if one not in modules
        and not (claims.inside and any(one in module for module in modules))
        and not (tied and "." not in one)
    )
    raise_if_any(_some(reasons))
    return linears


def _some(reasons: Sequence[Reason]) -> list[Reason]:
    """The first reasons, each once, and how many more there are."""
    each = list(dict.fromkeys(reasons))
    more = len(each) - SHOWN
    return [*each[:SHOWN], *([Reason(f"and {more} more like these")] if more > 0 else [])]


def _linear(
    container: Stores,
    claims: Claims,
    module: str,
    parts: Mapping[str, Entry],
    tolerated: list[Reason] | None,
) -> Linear | None:
    """None for a module that is not quantized."""
    weight = parts.get("weight")
    is_float = weight is not None and weight.dtype in DTYPES
    if is_float or not _packed(parts):
        looked_up = module.rpartition(".")[2] in EMBEDDINGS
        if weight is None or len(weight.shape) != 2 or looked_up:
            return None
        if claims.stays_float is None or claims.stays_float(module):
            return None
        if claims.scheme(module) is None:
            return None
        _contradicted(
            f"{module} is stored in float, and the configuration says it is quantized",
            "list it among the modules that stay float",
            tolerated,
        )
        return None
    if claims.stays_float is not None and claims.stays_float(module):
        _contradicted(
            f"{module} is quantized, and the configuration says it stays float", AGAIN, tolerated
        )
    scheme = claims.scheme(module)
    if scheme is None:
        raise refuse(f"{module} is quantized, and the configuration does not say how", AGAIN)
    layout = container.layout(scheme)
    if layout is None:
        raise refuse(f"{module}: {container.name} holds no {scheme.name}", AGAIN)
    try:
        linear = Linear(module, layout.shape(parts, scheme), scheme)
    except KeyError as missing:
        raise refuse(f"{module}.{missing.args[0]} is missing", AGAIN) from None
    except (ValueError, IndexError):
        held = ", ".join(sorted(parts))
        raise refuse(f"{module} is not stored as {scheme.name}: it has {held}", AGAIN) from None
    raise_if_any(list(_differences(container, layout, linear, parts)))
    return linear


def _contradicted(problem: str, remedy: str, tolerated: list[Reason] | None) -> None:
    if tolerated is None:
        raise refuse(problem, remedy)
    tolerated.append(Reason(problem, remedy))


def _packed(parts: Mapping[str, Entry]) -> bool:
    """Whether a module holds matrices that are not float."""
    return any(len(one.shape) > 1 and one.dtype not in DTYPES for one in parts.values())


def _differences(
    container: Stores, layout: Layout, linear: Linear, parts: Mapping[str, Entry]
) -> Iterator[Reason]:
    """Tensors of a module that are missing, too many, or of another type or shape."""
    scale = parts.get("weight_scale")
    float_type: Dtype = next((one for one in DTYPES if scale and scale.dtype == one), "F16")
    columns = container.column_part(linear)
    wanted = [*layout.entries(linear, float_type), *_beside(container, linear)]
    for entry in wanted:
        found = parts.get(entry.name.rpartition(".")[2])
        if found is None:
            remedy = NEEDED if entry.name == f"{linear.module}.{columns}" else AGAIN
            yield Reason(f"{entry.name} is missing", remedy)
        elif (found.dtype, found.shape) != (entry.dtype, entry.shape) and not _as_good(
            found, entry
        ):
            yield Reason(
                f"{entry.name} is {found.dtype} {list(found.shape)}, not {entry.dtype} "
                f"{list(entry.shape)}",
                AGAIN,
            )
    names = {entry.name for entry in wanted}
    for part, found in parts.items():
        if found.name not in names and part not in BESIDE:
            yield Reason(f"{found.name} belongs to no {linear.scheme.name}", AGAIN)


def _beside(container: Stores, linear: Linear) -> Iterator[Entry]:
    """What is stored of a linear besides what its layout says."""
    yield from (one.entry for one in container.inputs(linear, ""))
    part = container.column_part(linear)
    if part is not None:
        yield Entry(f"{linear.module}.{part}", "F16", (linear.shape[1],))
    joint = container.joint(linear)
    if joint is not None:
        yield joint.entry


BESIDE = ("bias", "k_scale", "v_scale")
"""Parts of a module of a quantized linear that its layout does not know."""


def _as_good(found: Entry, entry: Entry) -> bool:
    """Scales in another float type, and numbers of other rank, which loaders take as well."""
    alone = found.shape in ((), (1,)) and entry.shape in ((), (1,))
    if entry.dtype not in DTYPES or found.dtype not in DTYPES:
        return False
    return alone or found.shape == entry.shape


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`quantization_config` of config.json; empty where there is none."""
    found = config.get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def check_told(told: Mapping[str, Any], keys: Mapping[str, Shape]) -> None:
    """`Refused` where what a container reads of its configuration is of another kind."""
    check(told, Keys(keys), "config.json: quantization_config", AGAIN)
