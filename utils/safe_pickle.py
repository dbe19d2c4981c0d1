"""Reader of tensors from untrusted files, which executes nothing that a file contains.

``read_tensors`` opens every format that ``torch.save`` has written (zip, and the stream before torch 1.6) and
``.safetensors``: first with PyTorch's own ``weights_only`` reader, and where that refuses (the checkpoints of the
original DyMo hold an OmegaConf object) with a restricted reader that builds only tensors, arrays of numbers and plain
containers. All other objects in a file become ``None``.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import IO, Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from utils.checksums import verify_artefact
from utils.errors import UserError
from utils.pickle_size import check_expansion

# Entry in the header of a .safetensors file that describes its weights in JSON. Such a file reads like a checkpoint:
# these values, and the tensors as its state_dict.
HEADER = "description"


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without executing anything in it.

    Returns:
        Tensors, NumPy arrays, numbers, strings and containers of them; objects of other classes are None.

    Raises:
        UserError: the file does not exist, holds no dictionary of tensors, or is not as its stage wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: check the path, or run the stage that writes it")
    verify_artefact(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_LEGACY_HEAD))
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): check its permissions") from error
    try:
        content = _read(path, head)
    except Exception as error:  # a file can be broken in any way
        if head.startswith(b"PK\x03\x04") or head == _LEGACY_HEAD or path.suffix == ".safetensors":
            raise UserError(f"{path} is cut off or damaged: copy or download it again") from error
        raise UserError(f"{path} is not a checkpoint: give a file written by torch.save or safetensors") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of tensors: save the state_dict() of the module, not the module")
    return dict(content)


def _read(path: Path, head: bytes) -> Any:
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        with safe_open(path, "pt") as file:
            description = (file.metadata() or {}).get(HEADER)
        tensors = load_file(path)
        return tensors if description is None else {**json.loads(description), "state_dict": tensors}
    check_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # refused: try the restricted reader
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


_checked: set[tuple[str, int, int, int]] = set()  # path, inode, size and time of files whose pickles are sound


def check_pickles(path: Path) -> None:
    """Check that the pickles in a file of ``torch.save`` do not expand beyond bounds when they are read, once per
    process and version of the file.

    Raises:
        pickle.UnpicklingError: they do, or are compressed.
    """
    status = path.stat()
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _checked:
        _check_pickles(path)
        _checked.add(key)


def _check_pickles(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    if entry.compress_type != zipfile.ZIP_STORED:
                        raise pickle.UnpicklingError("a compressed pickle")
                    check_expansion(archive.read(entry))
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 0
        for _ in range(5):  # magic number, version, machine, content and storage keys
            end = check_expansion(content, end)


# --------------------------------------------------------------------------------------- the restricted reader

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


# In a file a storage is a flat tensor; `as_strided` checks the bounds. Gradients, hooks and subclasses are dropped.
def _tensor(flat: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), flat.storage_offset() + offset)


def _typed_tensor(
    flat: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], _grad: object, _hooks: object,
    dtype: torch.dtype, *_: object,
) -> Tensor:  # fmt: skip
    return _tensor(flat.view(dtype), offset, size, stride)


def _tensor_of_subclass(rebuild: object, _type: object, args: tuple[Any, ...], _state: object) -> Tensor | None:
    return rebuild(*args) if isinstance(rebuild, FunctionType) else None


def _number_type(code: str, *_: object) -> np.dtype:
    if not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise pickle.UnpicklingError(f"array of type {code}")
    return np.dtype(code)


def _number(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype).item()


# All functions that a file may call: replacements under the names of the originals, which return new objects.
_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda items=(): dict(items),
    ("collections", "defaultdict"): lambda *_: {},
    ("builtins", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),  # bytes in protocol 2
    ("torch", "Size"): lambda items=(): tuple(items),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_subclass,
    ("numpy", "dtype"): _number_type,
} | {
    (f"numpy.{core}.multiarray", name): function
    for core in ("core", "_core")
    for name, function in {"scalar": _number, "_reconstruct": lambda *_: np.empty(0)}.items()
}


_PythonUnpickler: Any = pickle._Unpickler  # the pure Python version, whose instructions can be replaced


class _Reader(_PythonUnpickler):
    """Unpickler that imports nothing, sets no attribute and calls only ``_FUNCTIONS``; other objects become None."""

    def __init__(self, file: IO[bytes], storage: Callable[..., Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if module.split(".")[0] == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return _FUNCTIONS.get((module, name))

    def persistent_load(self, pid: Any) -> Tensor:
        if self.storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something that is no storage")
        _, dtype, key, _, numel, *view = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(numel, int) or not isinstance(key, str | int):
            raise pickle.UnpicklingError("a storage of an unknown type")
        flat = self.storage(key, dtype, numel)
        if view and view[0] is not None:
            _, start, length = view[0]
            return flat[start : start + length]
        return flat

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes")

    def _instantiate(self, klass: object, args: object) -> None:  # of the instructions INST and OBJ
        self.append(None)

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        # the only functions that can be on the stack are those that `find_class` returns
        self.append(function(*args) if isinstance(function, FunctionType) else None)

    def load_newobj(self) -> None:
        del self.stack[-2:]
        self.append(None)

    def load_newobj_ex(self) -> None:
        del self.stack[-3:]
        self.append(None)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.ndarray):
            _, shape, dtype, fortran, data = state
            if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
                raise pickle.UnpicklingError("an array of objects")
            cast(Any, target).__setstate__((1, tuple(shape), dtype, bool(fortran), data))
        elif isinstance(target, np.dtype) and state[1] == ">":
            raise pickle.UnpicklingError("a big-endian array")

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(items[::2], items[1::2]))

    def load_additems(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(items)

    dispatch = _PythonUnpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
    }


def _flat(buffer: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)


def _read_zip(path: Path) -> Any:
    """``<root>/data.pkl`` refers to the storages ``<root>/data/<key>``."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (index,) = (name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name))
        root = index.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise pickle.UnpicklingError("byte order")
        buffers: dict[str | int, bytearray] = {}

        def storage(key: str | int, dtype: torch.dtype, numel: int) -> Tensor:
            if key not in buffers:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != numel * dtype.itemsize:
                    raise pickle.UnpicklingError(f"storage {key} has another size")
                buffers[key] = bytearray(archive.read(entry))
            return _flat(buffers[key], dtype)

        with archive.open(index) as file:
            return _Reader(file, storage).load()


_LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # the first bytes of the magic number as a pickle
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


def _read_legacy(path: Path) -> Any:
    """Pickles of magic number, version, machine, content and storage keys; then length and bytes of every storage."""
    size = path.stat().st_size
    buffers: dict[str | int, tuple[bytearray, int]] = {}

    def storage(key: str | int, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in buffers:
            if not 0 <= numel * dtype.itemsize <= size:
                raise pickle.UnpicklingError(f"storage {key} is larger than the file")
            buffers[key] = bytearray(numel * dtype.itemsize), numel
        return _flat(buffers[key][0], dtype)

    with path.open("rb") as file:
        if (_Reader(file).load(), _Reader(file).load()) != (_LEGACY_MAGIC, _LEGACY_VERSION):
            raise pickle.UnpicklingError("no checkpoint")
        _Reader(file).load()
        content = _Reader(file, storage).load()
        for key in _Reader(file).load():
            buffer, numel = buffers[key]
            if struct.unpack("<q", file.read(8)) != (numel,) or file.readinto(buffer) != len(buffer):
                raise EOFError
    return content
