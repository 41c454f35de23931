"""A device that is not the processor, emulated: what a CUDA device would refuse is refused here.

    import far_device
    device = far_device.install()      # torch.device("far:0")
    x = torch.ones(3, device=device)
    x + torch.ones(3)                  # RuntimeError: tensors on two devices
    x.numpy()                          # RuntimeError

`install` gives torch's spare device type (PrivateUse1) a name and a body: a `FarTensor` says that
it is on the device, and holds an ordinary tensor that nobody else sees. An operation on it is the
processor's own on what it holds, once its arguments have passed the rules of a CUDA device: all of
them on one device, but for scalars, indices and copies. So results are the processor's, bit for
bit, and a line that forgets a `.to(device)`, a `device=` or a `.cpu()` raises.

What it does not show: operations that a CUDA device lacks or computes otherwise, memory, streams,
autocast, tensors of inference mode (which is `no_grad` here), and Triton (`kernels.bodies` picks
plain bodies for a device of another type than "cuda").

`install` changes torch for the whole process and cannot be taken back: only for processes that are
started for it. It rests on an interface that torch calls experimental (2.13 has it). Call it before
anything is differentiated: autograd counts devices once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils import backend_registration

NAME = "far"
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Their indices may be on the processor, if what is indexed is not."""

_MADE_NEAR = ("tensor", "eye", "arange", "linspace")
"""Makers whose own way to a device takes more than an emulated one has."""

_library: torch.library.Library | None = None  # what it registers goes when it does


class Backend:
    """What torch asks of the module of a device type."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class FarTensor(torch.Tensor):
    """A tensor on the device: shape, type and device of its own, values in `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls: type[FarTensor], held: torch.Tensor) -> FarTensor:
        made: FarTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.held})"


def install() -> torch.device:
    """The device, known to torch from now on."""
    global _library
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(run, "PrivateUse1")  # of what has no tensor among its arguments
    for name in _MADE_NEAR:
        setattr(torch, name, _brought(getattr(torch, name)))
    torch.inference_mode = torch.no_grad  # inside it, wrapped tensors cannot be split
    return torch.device(NAME, 0)


def _brought(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make`, but on the processor and then copied."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        found = make(*args, **kwargs)
        return found if device is None else found.to(device)

    return made


@dataclass(frozen=True, slots=True)
class Rules:
    """What one operation may be given."""

    copies: bool  # between devices
    indexes: bool  # its second argument: where in the first
    changed: tuple[int, ...]  # arguments that are changed in place

    @classmethod
    @cache
    def of(cls, func: Any) -> Rules:
        told = func._schema
        written = (i for i, one in enumerate(told.arguments) if one.is_write)
        return cls(told.name in _COPIES, told.name in _INDEXED, tuple(written))


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """`func`, an operation of torch, as the device would: RuntimeError where a GPU would raise."""
    rules = Rules.of(func)
    given = list(_tensors((*args, *kwargs.values())))
    far = any(isinstance(one, FarTensor) for one in given)
    if far and not rules.copies:
        _refuse_two_devices(func, rules, args, given)
    args, kwargs = _inside(args), {name: _inside(one) for name, one in kwargs.items()}
    device = kwargs.get("device")
    if device is not None:
        far = torch.device(device).type == NAME
        kwargs["device"] = torch.device("cpu") if far else device
    if far and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the processor, values on the device")
    found = func(*args, **kwargs)
    if not rules.changed:
        return _outside(found) if far else found
    known = {id(_inside(one)): one for one in given}
    for one in given:
        if _inside(one).shape != one.shape:
            raise NotImplementedError(f"{func} changes a shape in place")
    return known.get(id(found), found)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for one in values:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _tensors(one)


def _inside(value: Any) -> Any:
    """What is held, of tensors and of lists of them."""
    if isinstance(value, FarTensor):
        return value.held
    if isinstance(value, (list, tuple)):
        return type(value)(_inside(one) for one in value)
    return value


def _outside(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return FarTensor(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_outside(one) for one in value)
    return value


def _refuse_two_devices(func: Any, rules: Rules, args: Any, given: list[torch.Tensor]) -> None:
    excused = set()
    if rules.indexes and isinstance(args[0], FarTensor):
        excused = {id(one) for one in args[1]}
    changed = {id(args[i]) for i in rules.changed if i < len(args)}
    for one in given:
        if isinstance(one, FarTensor) or id(one) in excused:
            continue
        if one.dim() or id(one) in changed:
            raise RuntimeError(f"{func}: tensors on two devices")
