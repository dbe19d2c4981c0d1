"""Reading weights that others wrote, and telling what they are.

``read_tensors`` opens every format that ``torch.save`` has written (zip, and the stream before torch 1.6) and
``.safetensors``, and executes nothing that a file contains: first PyTorch's own ``weights_only`` reader, and where that
refuses (the checkpoints of the original DyMo hold an OmegaConf object) a reader of our own that can build tensors,
arrays of numbers and plain containers. Whatever else a file asks for becomes ``None``.

Masks and subsets: True = missing, as everywhere.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import sys
import uuid
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import IO, Any, Literal, TypedDict, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.errors import UserError

Metric = Literal["cosine_similarity", "squared_euclidean"]
Kind = Literal[
    "reference_dynamic_transformer", "reference_gaussian", "reference_mopoe", "reference_tip", "lightning", "unknown"
]


def read_tensors(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, without executing anything in it.

    Returns:
        Tensors, NumPy arrays, numbers, strings and containers of them; objects of other classes are None.

    Raises:
        UserError: there is no such file, or it holds no dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: check the path, or run the stage that writes it")
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
        return load_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # refused: see what our own reader makes of it
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


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


# Everything that a file may call: our own functions under the names of the originals. Their values are new objects.
_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda items=(): dict(items),
    ("collections", "defaultdict"): lambda *_: {},
    ("builtins", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),  # how protocol 2 writes bytes
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


_PythonUnpickler: Any = pickle._Unpickler  # the one in pure Python: there every instruction can be replaced


class _Reader(_PythonUnpickler):
    """Unpickler that imports nothing, sets no attribute and calls only ``_FUNCTIONS``; the rest becomes None."""

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


# ------------------------------------------------------------------------------------------ what a file holds

_PREFIX = re.compile(r"^(?:module\.|model\.)+")


def checkpoint_kind(content: Mapping[str, Any]) -> Kind:
    """What a checkpoint is, told by its content."""
    state = content.get("state_dict")
    if isinstance(state, Mapping):
        names = {_PREFIX.sub("", str(key)) for key in state}
        if "prototypes" in names and any(name.startswith("m_encoders.") for name in names):
            return "reference_dynamic_transformer"
        if "architecture" not in content and any(name.startswith("encoder_multimodal.") for name in names):
            return "reference_tip"
        return "lightning" if "pytorch-lightning_version" in content else "unknown"
    if {"prototypes", "dist_std", "id2subset"} <= content.keys() and np.ndim(content["prototypes"]) == 3:
        return "reference_gaussian"
    if content and all(re.match(r"(en|de)coders\.", str(key)) for key in content):
        heads = r"encoders\.[^.]+\.(class_mu|hidden_mu|latent_mu|feature_compressor\.content_mu)\."
        if any(re.match(heads, key) for key in content) and any(key.startswith("decoders.") for key in content):
            return "reference_mopoe"
    return "unknown"


def convert_dynamic_transformer(state: Mapping[str, Any], modality_names: Sequence[str]) -> dict[str, Any]:
    """The weights of an original DynamicTransformer under our names.

    Encoders move from ``m_encoders.{index or name}.`` to ``encoders.{name}.``; everything else keeps its name. Encoders
    of modalities that the data set does not have are passed on, so that ``load_strict`` can say what is wrong.
    """
    converted = {}
    for key, value in state.items():
        key = _PREFIX.sub("", key)
        if key.startswith("m_encoders."):
            _, name, rest = key.split(".", 2)
            if name.isdecimal() and int(name) < len(modality_names):
                name = modality_names[int(name)]
            key = f"encoders.{name}.{rest}"
        converted[key] = value
    return converted


TIP_PARTS = ("encoder_imaging.", "encoder_tabular.", "encoder_multimodal.", "predictor_tabular.")


def convert_tip(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a TIP checkpoint that recover tables; heads that pre-training alone reads are those of ``own``."""
    parts = {key: value for key, value in state.items() if key.startswith(TIP_PARTS)}
    return parts | {key: value for key, value in own.items() if not key.startswith(TIP_PARTS)}


def load_part(module: nn.Module, path: Path, prefixes: Sequence[str], what: str, ignore: tuple[str, ...] = ()) -> None:
    """Load a module from a file that holds it alone, or as a part of a larger one.

    Args:
        prefixes: of the part's entries in larger files; the first that occurs counts.
        what: the module in words, for the message.
        ignore: entries of the part that start so are left out.

    Raises:
        UserError: no such file, or its entries do not fit.
    """
    content = read_tensors(path)
    state = {_PREFIX.sub("", str(key)): value for key, value in content.get("state_dict", content).items()}
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    load_strict(module, {k: v for k, v in part.items() if not k.startswith(ignore or "\0")}, path, what)


def load_strict(module: nn.Module, state: Mapping[str, Any], path: Path, what: str) -> None:
    """Load weights into a module; every entry must fit and be finite.

    Args:
        path: where the weights come from, for the message.
        what: the module in words, for the message ("DynamicTransformer on PolyMNIST").

    Raises:
        UserError: they do not fit; one line that says what they were trained for.
    """
    own = {key: tuple(getattr(value, "shape", ())) for key, value in module.state_dict().items()}
    theirs = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    if own != theirs:
        raise UserError(
            f"{path} does not fit the {what}: {_misfit(theirs, own)}: give the checkpoint that was trained with this "
            "data set and these settings"
        )
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path} holds NaN or infinite values in {key}: its training diverged, give another one")
    module.load_state_dict(state, strict=True)


Shapes = Mapping[str, tuple[int, ...]]


def _names(shapes: Shapes, pattern: str) -> list[str]:
    """The distinct parts of the keys that the group of the pattern matches, in their order."""
    return list(dict.fromkeys(found[1] for key in shapes if (found := re.match(pattern, key))))


def _misfit(theirs: Shapes, own: Shapes) -> str:
    """What the checkpoint was made for, where that can be told from shapes; else the first names that differ."""

    def size(shapes: Shapes, axis: int, *keys: str) -> int:
        return next((shapes[key][axis] for key in keys if len(shapes.get(key, ())) > axis), 0)

    def sizes(axis: int, *keys: str) -> tuple[int, int]:
        return size(theirs, axis, *keys), size(own, axis, *keys)

    def counts(pattern: str) -> tuple[int, int]:
        return len(_names(theirs, pattern)), len(_names(own, pattern))

    encoder = r"encoders\.([^.]+)\."
    modalities = next(
        (pair for pair in (sizes(0, "modality_embeddings.weight"), counts(r"m_norms\.(\d+)\."), counts(encoder))
         if all(pair)), (0, 0),
    )  # fmt: skip
    facts = [
        (modalities, "trained for {} modalities, the data set has {}"),
        (sizes(2, "cls_token", "pos_embeddings"), "width {}, the model has {}"),
        (counts(r"transformer\.(\d+)\."), "{} transformer blocks, the model has {}"),
        (sizes(0, "classifier.weight", "prototypes"), "{} classes, the data set has {}"),
        (sizes(1, "prototypes", "projection.weight"), "prototypes of {} values, those of the model have {}"),
    ]
    reasons = [text.format(a, b) for (a, b), text in facts if a and b and a != b]
    tokens, encoders = sizes(1, "pos_embeddings"), (_names(theirs, encoder), _names(own, encoder))
    if modalities[0] == modalities[1]:
        if all(encoders) and set(encoders[0]) != set(encoders[1]):
            reasons.append("trained for {}, the data set has {}".format(*map(" + ".join, encoders)))
        elif all(tokens) and tokens[0] != tokens[1]:
            reasons.append("{} tokens, the model has {}".format(*tokens))
    if reasons:
        return "; ".join(reasons)

    other = [key for key in own if key in theirs and own[key] != theirs[key]]
    listed = [
        ("without", [key for key in own if key not in theirs]),
        ("with unknown", [key for key in theirs if key not in own]),
        ("another shape of", [f"{key} {theirs[key]}, the model has {own[key]}" for key in other]),
    ]
    return "; ".join(
        f"{word} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for word, keys in listed if keys
    )  # fmt: skip


# ------------------------------------------------------------------- class-wise Gaussian parameters of the original


class ReferenceGaussian(TypedDict):
    """Class-wise parameters of every subset; S = 2^M - 1 in the order of the file.

    ``prototypes`` (S, C, D), ``overall_prototypes`` (C, D), ``dist_std`` (S, C) > 0, ``student_t`` (S, C, 3) or None
    (degrees of freedom, location, scale), all float32; ``subsets`` (S, M) bool, True = missing.
    """

    prototypes: Tensor
    overall_prototypes: Tensor
    dist_std: Tensor
    student_t: Tensor | None
    subsets: Tensor


def read_reference_gaussian(content: Mapping[str, Any], path: Path) -> ReferenceGaussian:
    """The content of ``subset_gaussian.pt`` or ``subset_gaussian_EU.pt``, checked.

    Args:
        content: as ``read_tensors`` returns it.
        path: for the messages.

    Raises:
        UserError: the file contradicts itself, or a class has no usable spread.
    """
    again = "estimate the parameters again with the stage 'gaussian', or give another file"

    def array(key: str, *shape: int) -> Tensor:
        try:
            value = torch.as_tensor(content[key]).detach().float()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} has no array '{key}': {again}") from error
        if (value.ndim != 3 or 0 in value.shape) if not shape else value.shape != shape:
            wanted = shape or "(subsets, classes, values)"
            raise UserError(f"{path}: '{key}' has the shape {tuple(value.shape)} instead of {wanted}: {again}")
        return value

    prototypes = array("prototypes")
    s, c, d = prototypes.shape
    ids = content.get("id2subset")
    if not isinstance(ids, Mapping) or set(ids) != set(range(s)):
        raise UserError(f"{path}: 'id2subset' does not number the {s} subsets of 'prototypes' from 0: {again}")
    rows = [tuple(map(bool, ids[i])) if isinstance(ids[i], Sequence) else () for i in range(s)]
    m = len(rows[0])
    if s != 2**m - 1 or len(set(rows)) != s or any(len(row) != m or all(row) for row in rows):
        raise UserError(
            f"{path}: 'id2subset' does not list every subset of {m} modalities once ({2**m - 1}, has {s}): {again}"
        )
    inverse = content.get("subset2id")
    if isinstance(inverse, Mapping) and dict(inverse) != {row: i for i, row in enumerate(rows)}:
        raise UserError(f"{path}: 'subset2id' is not the inverse of 'id2subset': {again}")

    def where(bad: Tensor) -> str:
        subset, label = bad.nonzero()[0].tolist()
        absent = ", ".join(str(i) for i, missing in enumerate(rows[subset]) if missing) or "nothing"
        return f"class {label} in subset {subset} (missing: {absent})"

    dist_std = array("dist_std", s, c)
    if (bad := ~torch.isfinite(prototypes).all(-1)).any():
        raise UserError(f"{path}: the prototype of {where(bad)} is not finite, the class had no sample: {again}")
    if (bad := ~(torch.isfinite(dist_std) & (dist_std > 0))).any():
        value = dist_std[bad][0].item()
        raise UserError(
            f"{path}: the spread of {where(bad)} is {value:g}, a class needs two different samples or more: {again}"
        )
    overall = array("overall_prototypes", c, d)
    if not torch.isfinite(overall).all():
        raise UserError(f"{path}: 'overall_prototypes' is not finite: {again}")
    student_t = None if content.get("t_dist_params") is None else array("t_dist_params", s, c, 3)
    if student_t is not None and student_t.isnan().all():
        student_t = None
    return ReferenceGaussian(
        prototypes=prototypes,
        overall_prototypes=overall,
        dist_std=dist_std,
        student_t=student_t,
        subsets=torch.tensor(rows, dtype=torch.bool),
    )


def write_reference_gaussian(
    path: Path,
    prototypes: Tensor,
    dist_std: Tensor,
    subsets: Tensor,
    overall_prototypes: Tensor | None = None,
    student_t: Tensor | None = None,
) -> None:
    """Write Gaussian parameters as the original DyMo reads them (shapes as in ``ReferenceGaussian``).

    Args:
        overall_prototypes: None = the mean of ``prototypes`` over the subsets.
        student_t: None = NaN (DyMo never reads them).
    """
    rows = [tuple(row) for row in subsets.bool().tolist()]
    if overall_prototypes is None:
        overall_prototypes = prototypes.mean(0)
    if student_t is None:
        student_t = torch.full((*dist_std.shape, 3), torch.nan)
    arrays = {
        "prototypes": prototypes,
        "overall_prototypes": overall_prototypes,
        "dist_std": dist_std,
        "t_dist_params": student_t,
    }
    content: dict[str, Any] = {key: value.detach().cpu().float().contiguous() for key, value in arrays.items()}
    content["id2subset"] = dict(enumerate(rows))
    content["subset2id"] = {row: i for i, row in enumerate(rows)}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def guess_metric(prototypes: Tensor, dist_std: Tensor | None = None) -> Metric | None:
    """The distance that Gaussian parameters were estimated with, as far as their values tell.

    Cosine features z have length one, so a prototype c = mean z has |c| <= 1, and d = 1 - <z, c> has the mean 1 - |c|²,
    so (1 - |c|²)² <= σ² = E d² <= 1 - |c|². A longer prototype, or a σ outside, cannot be cosine.

    Args:
        prototypes: (S, C, D).
        dist_std: (S, C), or None.

    Returns:
        None where it cannot be told: NaN, or no prototype longer than one and no ``dist_std``.
    """
    norms = prototypes.double().norm(dim=-1)
    if not torch.isfinite(norms).all():
        return None
    if (norms > 1 + _NORM_TOLERANCE).any():
        return "squared_euclidean"
    if dist_std is None:
        return None
    rest, spread = 1 - norms.square(), dist_std.double()
    # Prototypes of length one leave cosine no spread; files made by hand have them, trained Euclidean ones do not.
    possible = (spread >= rest - 1e-3) & ((spread.square() <= rest + 1e-3) | (norms > 1 - 1e-3))
    return "cosine_similarity" if possible.all() else "squared_euclidean"


_NORM_TOLERANCE = 1e-4


def reference_gaussian_metric(
    content: Mapping[str, Any] | ReferenceGaussian, path: Path, wanted: str | None = None
) -> Metric:
    """The distance of a Gaussian file of the original: by its name where it has one, else by its values.

    The original names are ``subset_gaussian.pt`` (cosine) and ``subset_gaussian_EU.pt``. Values can refute cosine (a
    prototype longer than one) but never Euclidean distance, so a name in ``_EU`` is believed. Where the name says
    nothing and the values refute nothing, ``wanted`` decides.

    Raises:
        UserError: the name says cosine and the values refute it, or neither says anything.
    """
    path = Path(path)
    prototypes = torch.as_tensor(content["prototypes"])
    stem = path.stem.lower()
    if stem.endswith("_eu"):
        return "squared_euclidean"
    if stem == "subset_gaussian" or stem.endswith("_cos"):
        longest = prototypes.double().norm(dim=-1).max().item()
        if longest > 1 + _NORM_TOLERANCE:
            raise UserError(
                f"{path} is named like cosine parameters, but a prototype has the length {longest:.4g} and cosine ones "
                "have at most 1: rename it to subset_gaussian_EU.pt if it is of a squared_euclidean model, or give the "
                "file of the cosine model"
            )
        return "cosine_similarity"
    refuted = bool((prototypes.double().norm(dim=-1) > 1 + _NORM_TOLERANCE).any())
    if wanted in ("cosine_similarity", "squared_euclidean") and not refuted:
        return cast(Metric, wanted)
    spread = content.get("dist_std")
    metric = guess_metric(prototypes, None if spread is None else torch.as_tensor(spread))
    if metric is None:
        raise UserError(
            f"the distance that {path} was estimated with cannot be told from its values: name it subset_gaussian.pt "
            "for cosine or subset_gaussian_EU.pt for squared Euclidean distance"
        )
    return metric
