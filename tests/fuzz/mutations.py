"""Strategies of hypothesis that spoil what is sound: JSON, the header of a safetensors file, bytes."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_DIGITS, _DEEP, _HUGE = "@digits@", "@deep@", "@huge@"
_RAW = {_DIGITS: "9" * 5000, _DEEP: "[" * 5000 + "]" * 5000, _HUGE: "1e400"}
"""What Python's own writer of JSON could not write."""

ODD = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2, 3, 7, 64, 65, 10**5, 10**7, 2**31, 10**12, 2**63, 10**30]),
    st.sampled_from([0.0, -0.5, 0.5, 1.5, 1e-9, 1e300, float("nan"), float("inf"), _HUGE, _DIGITS, _DEEP]),
    st.sampled_from(["", "x", "../outside", "/etc/passwd", "a\x1b[31mred", "line\nbreak", "\x00", "\ud800", "é" * 500]),
    st.sampled_from(["tests.fuzz.tripwire:build", "tests.fuzz.tripwire", "AttnDownBlock2D", "learned", "identity"]),
    st.sampled_from([[], {}, [[]], [[0.1]], [1, 1], [0, 0], {"a": 1}, [None], [True], ["*"], [10**6] * 3, [1] * 5000]),
    st.integers(-(10**4), 10**4),
    st.floats(width=32),
    st.text(max_size=8),
).map(deepcopy)
"""A value that hardly ever fits where it is put."""


def write_json(value: Any) -> str:
    """JSON text, with the values that Python cannot write in the place of their marks."""
    text = json.dumps(value)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text


def places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in tables and lists."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [way for key in keys for way in [(*above, key), *places(tree[key], (*above, key))]]


@st.composite
def spoilt(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """The tree of tables and lists with up to ``most`` values replaced, removed, or added."""
    changed = deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        ways = places(changed)
        if not ways:
            return draw(ODD)
        *above, last = draw(st.sampled_from(ways))
        holder = changed
        for key in above:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename"]))
        if action == "replace":
            holder[last] = draw(ODD)
        elif isinstance(holder, list):
            holder.append(draw(ODD)) if action == "add" else holder.pop(last)
        elif action == "add":
            holder[
                draw(st.sampled_from(["_class_name", "_factory", "lora", "quantization_config", "x", "\x1b[2J"]))
            ] = draw(ODD)
        else:
            value = holder.pop(last)
            if action == "rename":
                holder[draw(st.text(max_size=6))] = value
    return changed if draw(st.integers(0, 19)) else draw(ODD)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes, header: int = 2000) -> bytes:
    """The bytes, cut off, with some changed, mostly in the ``header``, or with more behind them."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        end = min(len(changed), header if draw(st.booleans()) else len(changed))
        if end:
            changed[draw(st.integers(0, end - 1))] = draw(st.integers(0, 255))
    action = draw(st.sampled_from(["nothing", "cut", "more"]))
    if action == "cut":
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed) + (draw(st.binary(max_size=64)) if action == "more" else b"")


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: Any, data: bytes) -> bytes:
    """The file of a header and data, sound or not."""
    text = (header if isinstance(header, str) else write_json(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def spoilt_safetensors(draw: st.DrawFn, content: bytes, key: str) -> bytes:
    """A safetensors file with its bytes, its header, or the JSON in its metadata under ``key`` spoilt."""
    what = draw(st.sampled_from(["bytes", "header", "facts", "facts", "facts", "tensors"]))
    if what == "bytes":
        return draw(spoilt_bytes(content))
    header, data = split_safetensors(content)
    if what == "header":
        return join_safetensors(draw(spoilt(header)), data)
    if what == "tensors":
        return join_safetensors(*_spoilt_tensors(draw, header, data))
    facts = write_json(draw(spoilt(json.loads(header["__metadata__"][key]))))
    return join_safetensors(header | {"__metadata__": header["__metadata__"] | {key: facts}}, data)


def _spoilt_tensors(draw: st.DrawFn, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """One tensor of another type or shape with as many bytes, of other numbers, under another name, or gone."""
    name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
    entry, header = dict(header[name]), dict(header)
    start, end = entry["data_offsets"]
    action = draw(st.sampled_from(["type", "shape", "numbers", "name"]))
    if action == "type":
        kind, size = draw(st.sampled_from([("I32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1), ("BOOL", 1)]))
        header[name] = entry | {"dtype": kind, "shape": [(end - start) // size]}
    elif action == "shape":
        header[name] = entry | {"shape": draw(st.sampled_from([[], [0], [1, *entry["shape"]], entry["shape"][::-1]]))}
    elif action == "numbers":
        bits = draw(
            st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x00\x00", b"\xff\xff\x7f\x7f"])
        )
        data = data[:start] + (bits * (end - start))[: end - start] + data[end:]
    else:
        header[draw(st.sampled_from(["other", "weights/../x", "update/\x1b[31m", "update/"]))] = header.pop(name)
    return header, data


def write(path: Path, content: bytes) -> None:
    """Write a file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
