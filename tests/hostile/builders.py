"""Makes hostile files of good ones. The names of the cases say what is wrong."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]

# --- JSON, in any folder


def with_json(file: str, *path: Any, to: Any) -> Damage:
    """A value inside a JSON file replaced; `...` removes it."""

    def damage(folder: Path) -> None:
        place = folder / file
        parsed = json.loads(place.read_text("utf-8"))
        at = parsed
        for key in path[:-1]:
            at = at[key]
        if to is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = to
        place.write_text(json.dumps(parsed), encoding="utf-8")

    return damage


def put_in(file: str, **fields: Any) -> Damage:
    """Keys added to the object in a JSON file."""

    def damage(folder: Path) -> None:
        parsed = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps({**parsed, **fields}), encoding="utf-8")

    return damage


def with_bytes(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).unlink(missing_ok=True) or put(folder / file, content)


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def without(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def as_fifo(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return damage


def as_link(file: str, to: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(to)

    return damage


def as_folder(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def broken_json(file: str) -> dict[str, Damage]:
    """What can be wrong with any JSON file."""
    return {
        f"{file} empty": with_bytes(file, b""),
        f"{file} a list": with_bytes(file, b"[]"),
        f"{file} null": with_bytes(file, b"null"),
        f"{file} not UTF-8": with_bytes(file, b'{"a": "\xff\xfe"}'),
        f"{file} NUL bytes": with_bytes(file, b"\0" * 64),
        f"{file} cut off": with_bytes(file, b'{"model_type": "lla'),
        f"{file} nested 100,000 deep": with_bytes(file, b'{"a":' * 100_000),
        f"{file} nested 500 deep": with_bytes(file, b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"),
        f"{file} number of 5,000 digits": with_bytes(file, b'{"a": ' + b"9" * 5000 + b"}"),
        f"{file} half a surrogate": with_bytes(file, b'{"a": "\\ud800"}'),
        f"{file} ten million lists": with_bytes(file, b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"),
        f"{file} a FIFO": as_fifo(file),
        f"{file} a folder": as_folder(file),
        f"{file} /dev/zero": as_link(file, "/dev/zero"),
        f"{file} a loop of links": as_link(file, file),
    }


EXTREMES: Mapping[str, Any] = {
    "10^12": 10**12, "negative": -1, "zero": 0, "half": 0.5, "infinite": float("inf"),
    "not a number": float("nan"), "of 4,000 digits": 10**4000, "text": "12", "null": None,
    "list": [[]], "object": {"a": {}}, "flag": True,
}  # fmt: skip


def extremes(file: str, *path: Any, but: tuple[str, ...] = ()) -> dict[str, Damage]:
    where = ".".join(map(str, path))
    return {
        f"{file}: {where} {name}": with_json(file, *path, to=value)
        for name, value in EXTREMES.items()
        if name not in but
    }


MODEL: dict[str, Damage] = {
    **broken_json("config.json"),
    **broken_json("tokenizer.json"),
    **extremes("config.json", "num_hidden_layers"),
    **extremes("config.json", "hidden_size"),
    **extremes("config.json", "num_attention_heads"),
    **extremes("config.json", "vocab_size"),
    **extremes("config.json", "rms_norm_eps", but=("half", "10^12")),
    **extremes("config.json", "rope_parameters", but=("null",)),
    **extremes("config.json", "rope_parameters", "rope_type", but=("null",)),
    **extremes("config.json", "hidden_act"),
    **extremes("tokenizer.json", "model", "vocab"),
    **extremes("tokenizer.json", "added_tokens", but=("null",)),
    **extremes("tokenizer.json", "added_tokens", 0, "id", but=("zero",)),
    "tokenizer.json: it would abort the process": with_json(
        "tokenizer.json", "model", "continuing_subword_prefix", to="x"
    ),
    "tokenizer.json: a token of the id 2^31": with_json(
        "tokenizer.json", "model", "vocab", "\u0120t", to=2**31
    ),
    "tokenizer_config.json: a template of 100,000 brackets": with_json(
        "tokenizer_config.json", "chat_template", to="{{" + "(" * 100_000
    ),
    "config.json: a billion labels": put_in("config.json", num_labels=10**9),
    "config.json: a billion layers of another part": put_in(
        "config.json", vision_config={"num_hidden_layers": 10**9}
    ),
    "config.json: a name with control characters": with_json(
        "config.json", "model_type", to="\x1b[2J\x07llama"
    ),
    "model.safetensors a FIFO": as_fifo("model.safetensors"),
    "model.safetensors /dev/zero": as_link("model.safetensors", "/dev/zero"),
    "model.safetensors a loop of links": as_link("model.safetensors", "model.safetensors"),
    "model.safetensors missing": without("model.safetensors"),
}

# --- safetensors


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """The header of model.safetensors changed; the data stays."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        header, data = header_of(path)
        changed = change(header)
        text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    return damage


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


def with_shape(shape: Any) -> Damage:
    return with_header(lambda header: first(header).update(shape=shape))


def with_offsets(offsets: Any) -> Damage:
    return with_header(lambda header: first(header).update(data_offsets=offsets))


def cut(file: str, keep: int) -> Damage:
    return lambda folder: put(folder / file, (folder / file).read_bytes()[:keep])


def with_length(length: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])

    return damage


SAFETENSORS: dict[str, Damage] = {
    "a header of 2^64 - 1 bytes": with_length(2**64 - 1),
    "a header of no bytes": with_length(0),
    "a header of 99 million bytes": with_length(99_000_000),
    "seven bytes": cut("model.safetensors", 7),
    "no data": cut("model.safetensors", 2000),
    "a shape of a million sizes": with_shape([1] * 1_000_000),
    "a shape of huge sizes": with_shape([2**62] * 20_000),
    "a shape of nothing and everything": with_shape([0, 2**70]),
    "a negative size": with_shape([-1, -1]),
    "a size that is a fraction": with_shape([1.5]),
    "a size that is true": with_shape([True]),
    "a shape that is null": with_shape(None),
    "offsets backwards": with_offsets([8, 0]),
    "offsets of 4,000 digits": with_offsets([0, 10**4000]),
    "offsets that are text": with_offsets(["0", "8"]),
    "three offsets": with_offsets([0, 1, 2]),
    "a type that is a list": with_header(lambda header: first(header).update(dtype=["F32"])),
    "a name with half a surrogate": with_header(lambda h: b'{"\\udfff": {}}'),
    "a name twice": with_header(lambda h: b'{"a": {}, "a": {}}'),
    "a name with a newline": with_header(lambda h: h.update({"a\n-> rm": first(h)})),
    "half a million tensors": with_header(
        lambda h: (
            b"{"
            + b",".join(
                b'"%d":{"dtype":"U8","shape":[],"data_offsets":[0,1]}' % n for n in range(500_000)
            )
            + b"}"
        )
    ),
}

# --- GGUF


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf(entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), *, keys: int | None = None,
         count: int | None = None, version: int = 3, rest: bytes = b"") -> Damage:  # fmt: skip
    """A file of one's own: header, keys, tensors, and what follows."""
    counts = len(tensors) if count is None else count, len(entries) if keys is None else keys
    head = struct.pack("<4sIQQ", b"GGUF", version, *counts)
    return lambda path: put(path, head + b"".join(entries) + b"".join(tensors) + rest)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return gguf_string(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name: bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        gguf_string(name)
        + struct.pack("<I", len(sizes))
        + struct.pack(f"<{len(sizes)}Q", *sizes)
        + struct.pack("<IQ", kind, offset)
    )


def patched(at: int, value: bytes) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(value)] = value
        put(path, bytes(content))

    return damage


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


GGUF: dict[str, Damage] = {
    "nothing": lambda path: put(path, b""),
    "the magic alone": lambda path: put(path, b"GGUF"),
    "a FIFO": fifo,
    "version 2^32 - 1": patched(4, b"\xff" * 4),
    "2^64 - 1 tensors": patched(8, b"\xff" * 8),
    "2^64 - 1 keys": patched(16, b"\xff" * 8),
    "a million keys of a byte": gguf([key(b"", 0, b"\0")] * 1_000_000),
    "a string of 2^63 bytes": gguf([struct.pack("<Q", 1 << 63)]),
    "an unknown kind": gguf([key(b"a", 99, b"\0" * 8)]),
    "an array of 2^60 strings": gguf([key(b"a", 9, array(8, 1 << 60))], rest=b"\0" * 64),
    "an array of 2^61 numbers": gguf([key(b"a", 9, array(10, 1 << 61))], rest=b"\0" * 64),
    "three million strings": gguf([key(b"a", 9, array(8, 3_000_000, gguf_string(b"ab") * 10))],
                                  rest=b"\0" * 24_000_000),
    "arrays in arrays": gguf([key(b"a", 9, array(9, 1, array(9, 1)))]),
    "a key twice": gguf([key(b"a", 0, b"\0")] * 2),
    "an alignment of 3": gguf([key(b"general.alignment", 4, struct.pack("<I", 3))]),
    "an alignment of an array": gguf([key(b"general.alignment", 9, array(0, 1, b"\0"))]),
    "a tensor of five dimensions": gguf([], [info(b"t", (1,) * 5)]),
    "a tensor of no dimensions": gguf([], [info(b"t", ())]),
    "a tensor of nothing and everything": gguf([], [info(b"t", (0, 1 << 63))]),
    "a tensor of 2^63 rows": gguf([], [info(b"t", (32, 1 << 63), 2)]),
    "a tensor at 2^63": gguf([], [info(b"t", (4,), 0, 1 << 63)], rest=b"\0" * 64),
    "a tensor without a name": gguf([], [info(b"", (4,))], rest=b"\0" * 64),
    "a tensor of an unknown type": gguf([], [info(b"t", (4,), 9999)], rest=b"\0" * 64),
    "a tensor of rows that are no blocks": gguf([], [info(b"t", (33,), 2)], rest=b"\0" * 64),
    "two tensors in one place": gguf([], [info(b"a", (8,)), info(b"b", (8,))], rest=b"\0" * 99),
    "a name that is not UTF-8": gguf([], [info(b"\xff\x1b[2J", (4,), 77)], rest=b"\0" * 64),
    "a split count that is an array": gguf([key(b"split.count", 9, array(2, 2, b"\1\0\1\0"))]),
    "a split count of text": gguf([key(b"split.count", 8, gguf_string(b"2"))]),
    "split tensors of an array": gguf([key(b"split.tensors.count", 9, array(2, 2, b"\1\0\1\0"))]),
}  # fmt: skip

# --- served folders

_Q = "quantization_config"
SERVED: dict[str, Damage] = {
    **extremes("config.json", _Q, "bits"),
    **extremes("config.json", _Q, "group_size", but=("negative", "zero")),
    **extremes("config.json", _Q, "dynamic", but=("null", "object")),
    "a pattern of exponential time": with_json(
        "config.json", _Q, "dynamic", to={"-:(.+)*(.+)*(.+)*$!": {}}
    ),
    "a pattern that is none": with_json("config.json", _Q, "dynamic", to={"+:((": {"bits": 4}}),
    **SAFETENSORS,
}
COMPRESSED: dict[str, Damage] = {
    **extremes("config.json", _Q, "config_groups"),
    **extremes("config.json", _Q, "config_groups", "group_0", "weights", "num_bits"),
    **extremes("config.json", _Q, "ignore", but=("null",)),
    "a pattern of exponential time": with_json("config.json", _Q, "ignore", to=["re:(a|a|.)*x"]),
}

# --- MLC

_CACHE = "tensor-cache.json"


def with_record(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        place = folder / _CACHE
        parsed = json.loads(place.read_text())
        parsed["records"][0]["records"][0].update(fields)
        place.write_text(json.dumps(parsed))

    return damage


MLC: dict[str, Damage] = {
    **broken_json(_CACHE),
    **broken_json("mlc-chat-config.json"),
    **extremes("mlc-chat-config.json", "model_config", "hidden_size"),
    **extremes("mlc-chat-config.json", "quantization"),
    **extremes(_CACHE, "records"),
    **extremes(_CACHE, "records", 0, "nbytes"),
    "a shard above": with_json(_CACHE, "records", 0, "dataPath", to="../model.bin"),
    "a shard of the system": with_json(_CACHE, "records", 0, "dataPath", to="/dev/zero"),
    "a shard with a NUL": with_json(_CACHE, "records", 0, "dataPath", to="a\0b"),
    "a shard that is this folder": with_json(_CACHE, "records", 0, "dataPath", to="."),
    "a record of 2^70 rows": with_record(shape=[2**70, 1]),
    "a record of 100,000 sizes": with_record(shape=[2**40] * 100_000),
    "a record of nothing": with_record(shape=[], nbytes=4),
    "a record before the file": with_record(byteOffset=-8),
    "a record behind the file": with_record(byteOffset=2**62),
    "a record of a type that is a list": with_record(dtype=["uint32"]),
    "a record without a name": with_record(name=None),
}

# --- ONNX


def with_graph(change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        from onnx import ModelProto

        path = folder / "model.onnx"
        model = ModelProto.FromString(path.read_bytes())
        changed = change(model)
        put(path, changed if isinstance(changed, bytes) else model.SerializeToString())

    return damage


def node_of(model: Any, kind: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == kind)


def with_attribute(name: str, value: Any, kind: str = "MatMulNBits") -> Damage:
    def change(model: Any) -> None:
        from onnx import helper

        node = node_of(model, kind)
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not ...:
            node.attribute.append(helper.make_attribute(name, value))

    return with_graph(change)


def with_place(**fields: str) -> Damage:
    def change(model: Any) -> None:
        held = next(one for one in model.graph.initializer if one.external_data)
        for one in held.external_data:
            if one.key in fields:
                one.value = fields[one.key]

    return with_graph(change)


def with_dims(*dims: int) -> Damage:
    def change(model: Any) -> None:
        held = next(one for one in model.graph.initializer if one.external_data)
        held.dims[:] = dims

    return with_graph(change)


def circle(model: Any) -> None:
    node = node_of(model, "MatMulNBits")
    node.input[0] = node.output[0]


def renaming_circle(model: Any) -> None:
    from onnx import helper

    model.graph.node.extend(
        [helper.make_node("Identity", ["x1"], ["x2"]), helper.make_node("Identity", ["x2"], ["x1"])]
    )
    node_of(model, "MatMulNBits").input[1] = "x1"


def emptied(field: str, kind: str = "MatMulNBits") -> Damage:
    return with_graph(lambda model: node_of(model, kind).ClearField(field))


def message(number: int, content: bytes) -> bytes:
    size, out = len(content), b""
    while size > 127:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + out + bytes([size]) + content


def escaped(model: Any) -> None:
    """A node whose name would clear a screen, and which is to be told of."""
    node = node_of(model, "MatMulNBits")
    node.name = "\x1b[2J" * 9
    node.ClearField("attribute")


def of_no_type(graph: Any) -> None:
    graph.initializer[0].data_type = 12345


ONNX: dict[str, Damage] = {
    **extremes("genai_config.json", "model"),
    **extremes("genai_config.json", "model", "vocab_size"),
    **extremes("genai_config.json", "model", "decoder", "filename"),
    **broken_json("genai_config.json"),
    "a graph above": with_json("genai_config.json", "model", "decoder", "filename",
                               to="../model.onnx"),
    "a graph of the system": with_json("genai_config.json", "model", "decoder", "filename",
                                       to="/dev/zero"),
    "a graph with a NUL": with_json("genai_config.json", "model", "decoder", "filename", to="\0"),
    "model.onnx empty": with_bytes("model.onnx", b""),
    "model.onnx a FIFO": as_fifo("model.onnx"),
    "model.onnx cut off": cut("model.onnx", 3000),
    "ten million empty nodes": with_bytes("model.onnx", message(7, b"\x0a\x00" * 10_000_000)),
    "messages 10,000 deep": with_bytes(
        "model.onnx", message(7, message(1, message(5, message(6, b"\x32\x00" * 1000))))
    ),
    "a node that reads itself": with_graph(circle),
    "two nodes that read each other": with_graph(renaming_circle),
    "a node without inputs": emptied("input"),
    "a node without outputs": emptied("output"),
    "a node without attributes": emptied("attribute"),
    "an attention without attributes": emptied("attribute", "GroupQueryAttention"),
    "a norm without inputs": emptied("input", "SkipSimplifiedLayerNormalization"),
    "bits of 0": with_attribute("bits", 0),
    "bits of 2^62": with_attribute("bits", 1 << 62),
    "bits of text": with_attribute("bits", "four"),
    "blocks of 0": with_attribute("block_size", 0),
    "blocks of -32": with_attribute("block_size", -32),
    "rows of 2^62": with_attribute("N", 1 << 62),
    "no rows said": with_attribute("N", ...),
    "columns of floats": with_attribute("K", 1.5),
    "a window of text": with_attribute("local_window_size", "x", "GroupQueryAttention"),
    "a table of 0 bits": with_attribute("bits", 0, "GatherBlockQuantized"),
    "a type that is unknown": with_graph(lambda model: of_no_type(model.graph)),
    "a shape of 2^62": with_dims(1 << 62, 1 << 62),
    "a shape of nothing and everything": with_dims(0, 1 << 62),
    "a negative shape": with_dims(-1, -4),
    "a shape of 100,000 sizes": with_dims(*[1 << 40] * 100_000),
    "data above": with_place(location="../x"),
    "data of the system": with_place(location="/etc/passwd"),
    "data nowhere": with_place(location="absent.bin"),
    "data with a NUL": with_place(location="a\0b"),
    "data in the folder itself": with_place(location="."),
    "data at 2^63": with_place(offset=str(1 << 63)),
    "data at -8": with_place(offset="-8"),
    "data at a place of 5,000 digits": with_place(offset="9" * 5000),
    "data at no number": with_place(offset="x"),
    "data of 2^63 bytes": with_place(length=str(1 << 63)),
    "a name of control characters": with_graph(escaped),
}  # fmt: skip

CASES: Mapping[str, Mapping[str, Damage]] = {
    "model": {**MODEL, **SAFETENSORS}, "gguf": GGUF, "gptq": SERVED, "ct": COMPRESSED,
    "onnx": ONNX, "mlc": MLC,
}  # fmt: skip
"""By the kind of what is damaged."""
