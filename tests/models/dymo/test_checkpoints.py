"""Foreign checkpoints: read without executing anything, recognised, converted, refused with a reason."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from models.dymo.original import (
    convert_dynamic_transformer,
    guess_metric,
    read_reference_gaussian,
    reference_gaussian_metric,
    write_reference_gaussian,
)
from utils.errors import UserError
from utils.safe_pickle import _Reader, _tensor, read_tensors
from utils.weights import checkpoint_kind, load_strict

NAMES = ("m0", "m1", "m2", "m3", "m4")


def dynamic_transformer_shapes(names: tuple[str, ...] = NAMES, d: int = 128, c: int = 10, dp: int = 64) -> dict:
    """Shapes of the original PolyMNIST DynamicTransformer (docs of the original; 80 entries for five modalities)."""
    m, n = len(names), 1 + 4 * len(names)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embeddings": (1, n, d),
        "prototypes": (c, dp),
        "modality_embeddings.weight": (m, d),
    }

    def affine(key: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{key}.weight"] = shape
        shapes[f"{key}.bias"] = (shape[0] if bias is None else bias,)

    for i, name in enumerate(names):
        affine(f"m_norms.{i}", d)
        for layer, (width, previous) in zip((0, 2, 4), ((32, 3), (64, 32), (d, 64))):
            affine(f"m_encoders.{name}.network.{layer}", width, previous, 3, 3)
        affine(f"m_encoders.{name}.proj_conv.0", d, d, 1, 1)
    affine("classifier", c, d)
    affine("projection", dp, d)
    for b in range(2):
        affine(f"transformer.{b}.norm1", d)
        shapes[f"transformer.{b}.attn.qkv.weight"] = (3 * d, d)
        affine(f"transformer.{b}.attn.proj", d, d)
        affine(f"transformer.{b}.norm2", d)
        affine(f"transformer.{b}.mlp.fc1", 4 * d, d)
        affine(f"transformer.{b}.mlp.fc2", d, 4 * d)
    return shapes


def original_state(names: tuple[str, ...] = ("0", "1", "2", "3", "4"), **sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = dynamic_transformer_shapes(names, **sizes)
    return collections.OrderedDict((k, torch.randn(*shape, generator=generator)) for k, shape in shapes.items())


def module_of(state: dict[str, Tensor]) -> nn.Module:
    """A module with exactly these entries, all zero."""
    root = nn.Module()
    for key, value in state.items():
        *parents, leaf = key.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module._modules[parent]  # type: ignore[assignment]
        module.register_buffer(leaf, torch.zeros_like(value))
    return root


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


# ------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_original_with_omegaconf_is_read_without_its_objects(tmp_path: Path, zipped: bool) -> None:
    state = original_state(d=16)
    base = torch.arange(12.0)
    state |= {
        "transposed": torch.randn(3, 5).t(),
        "shared_a": base[2:8].view(2, 3),
        "shared_b": base,
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "complex": torch.randn(2, dtype=torch.complex64),
    }
    content: dict[str, Any] = {
        "epoch": 7,
        "state_dict": state,
        "parameter": nn.Parameter(torch.randn(2)),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "scheduler": None,
        "hyper_parameters": OmegaConf.create({"lr": 1e-3, "nested": {"names": ["a", "b"]}}),
        "best_val_score": np.float64(0.75),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "raw": b"\x00\xff",
        "set": {1, 2},
        "default": collections.defaultdict(list, a=[1]),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
    }
    path = tmp_path / "checkpoint_best_acc.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)

    got = read_tensors(path)
    assert got.keys() == content.keys() and equal(got["state_dict"], state)
    assert torch.equal(got["parameter"], content["parameter"]) and not got["parameter"].requires_grad
    assert got["hyper_parameters"] is None and got["scheduler"] is None
    assert got["epoch"] == 7 and got["best_val_score"] == 0.75 and got["raw"] == b"\x00\xff" and got["set"] == {1, 2}
    assert got["optimizer"]["param_groups"] == [{"betas": (0.9, 0.999)}] and got["default"] == {"a": [1]}
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], torch.ones(2))
    assert got["size"] == (1, 2) and got["dtype"] is torch.float16
    np.testing.assert_array_equal(got["array"], content["array"])
    assert got["array"].dtype == np.int32
    assert checkpoint_kind(got) == "reference_dynamic_transformer"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_plain_tensors(tmp_path: Path, zipped: bool) -> None:
    state = original_state(d=8)
    torch.save(state, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    assert equal(read_tensors(tmp_path / "a"), state)


@pytest.mark.parametrize("name", ["a.safetensors", "no_suffix"])
def test_safetensors(tmp_path: Path, name: str) -> None:
    state = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    save_file(state, tmp_path / name)
    assert equal(read_tensors(tmp_path / name), state)


class Calls:
    """Pickles as a call of ``function(*args)``, followed by a state and by items."""

    def __init__(self, function: Any, *args: Any, state: Any = None, items: bool = False) -> None:
        self.call = function, args, state, iter([1] * items), iter([("key", 1)] * items)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_file_executes_nothing(tmp_path: Path, zipped: bool, protocol: int) -> None:
    touched = tmp_path / "touched"
    code = f"open({str(touched)!r}, 'w').close()"
    weights = torch.randn(3)
    content: dict[str, Any] = {
        "state_dict": {"w": weights},
        "hyper_parameters": {
            "system": Calls(os.system, f"touch {touched}"),
            "deep": [({"x": Calls(eval, code)},), Calls(exec, code, state={"a": 1})],
            "imported": Calls(__import__, "os"),
            "partial": Calls(getattr, Calls(__import__, "os"), "system"),
            "state": Calls(collections.OrderedDict, state={"__class__": Calls(eval, code)}),
            "items": Calls(collections.Counter, Calls(eval, code), items=True),
        },
        "after": weights + 1,
    }
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    got = read_tensors(path)
    assert not touched.exists()
    assert torch.equal(got["state_dict"]["w"], weights) and torch.equal(got["after"], weights + 1)
    hyper = got["hyper_parameters"]
    assert hyper["system"] is None and hyper["partial"] is None and hyper["deep"] == [({"x": None},), None]

    # It would bite where objects are allowed: the file names this call and its argument, and the call touches.
    written = path.read_bytes()
    assert b"posix" in written and b"system" in written and f"touch {touched}".encode() in written
    function, arguments = content["hyper_parameters"]["system"].__reduce__()[:2]
    function(*arguments)
    assert touched.exists()


def stream(body: bytes) -> bytes:
    """A checkpoint in the old format whose content is these pickle instructions."""
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join([*(pickle.dumps(part, 2) for part in parts), body, pickle.dumps([], 2)])


INSTRUCTIONS = {
    "REDUCE": b"cos\nsystem\n(Vtouch T\ntR",
    "OBJ": b"(cos\nsystem\nVtouch T\no",
    "INST": b"(Vtouch T\nios\nsystem\n",
    "NEWOBJ": b"cos\nsystem\n(Vtouch T\nt\x81",
    "NEWOBJ_EX": b"cos\nsystem\n(Vtouch T\nt}\x92",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93(Vtouch T\ntR",
    "BUILD": b"cos\nenviron\n}Vb\nVc\nsb",
    "SETITEM": b"cos\nenviron\nVb\nVc\ns",
    "SETITEMS, APPENDS, APPEND, ADDITEMS": b"cos\nenviron\n(Vb\nVc\nu(Vb\neVb\na(Vb\n\x90",
    "dotted name": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\nVa\nVb\ns",
    "slots on a function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}V__defaults__\n(K\x01tstb",
    "call of a storage class": b"ctorch\nUntypedStorage\n(K\x01tR",
}


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_no_instruction_calls_or_changes_anything(tmp_path: Path, instruction: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    environment, defaults = dict(os.environ), _tensor.__defaults__
    Path("evil.pt").write_bytes(stream(b"\x80\x04}Vk\n" + INSTRUCTIONS[instruction] + b"s."))
    got = read_tensors(Path("evil.pt"))
    assert got == {"k": _tensor if instruction == "slots on a function" else None}
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]
    assert dict(os.environ) == environment and _tensor.__defaults__ == defaults


def test_extension_codes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(stream(b"\x80\x02}Vk\n\x82\x01s."))
    with pytest.raises(UserError, match="cut off or damaged"):
        read_tensors(path)


def test_absent_and_foreign_files(tmp_path: Path) -> None:
    for path, hint in ((tmp_path / "absent.ckpt", "run the stage"), (tmp_path, "check the path")):
        with pytest.raises(UserError) as error:
            read_tensors(path)
        assert hint in one_line(error, path)
    for i, data in enumerate((b"", b"hello", b"<!DOCTYPE html>", pickle.dumps({"a": 1}))):
        path = tmp_path / f"{i}.ckpt"
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            read_tensors(path)
        assert "is not a checkpoint" in one_line(error, path)
    module = tmp_path / "module.pt"
    torch.save(nn.Linear(2, 2), module)
    with pytest.raises(UserError) as error:
        read_tensors(module)
    assert "save the state_dict()" in one_line(error, module)


@pytest.mark.parametrize("form", ["zip", "legacy", "omegaconf_zip", "omegaconf_legacy", "safetensors"])
def test_truncated(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.ckpt")
    content: dict[str, Any] = {
        "state_dict": {"w": torch.randn(1000)},
        "h": OmegaConf.create({"a": 1}) if "omega" in form else None,
    }
    if form == "safetensors":
        save_file(content["state_dict"], path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization="legacy" not in form)
    whole = path.read_bytes()
    for share in (0.3, 0.8, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="cut off or damaged") as error:
            read_tensors(path)
        one_line(error, path)


def rezip(path: Path, change: dict[str, Any]) -> None:
    """Rewrite entries of a zip checkpoint; None removes one."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    entries |= {f"{root}/{name}": data for name, data in change.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize("change", [{"data/0": b"1234"}, {"data/0": None}, {"byteorder": b"big"}, {"data.pkl": b"."}])
def test_damaged_archive(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.randn(10), "h": OmegaConf.create({"a": 1})}, path)
    rezip(path, {})
    assert read_tensors(path)["w"].shape == (10,)
    rezip(path, change)
    with pytest.raises(UserError, match="cut off or damaged"):
        read_tensors(path)


def test_reader_keeps_within_the_storage(tmp_path: Path) -> None:
    """A file that asks for more than it holds, or for arrays of objects, is refused, not obeyed."""

    class Storage(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, Reference) else None

    class Reference:
        def __init__(self, *pid: Any) -> None:
            self.pid = pid

    def read(value: Any) -> Any:
        file = io.BytesIO()
        Storage(file, 2).dump(value)
        return _Reader(io.BytesIO(file.getvalue()), lambda _, dtype, numel: torch.arange(numel).to(dtype)).load()

    others: tuple[Any, ...] = (False, collections.OrderedDict())
    rebuild, good = torch._utils._rebuild_tensor_v2, Reference("storage", torch.FloatStorage, "0", "cuda:0", 6)
    view = Reference("storage", torch.FloatStorage, "0", "cpu", 6, ("v", 2, 3))
    assert read(Calls(rebuild, good, 0, (2, 3), (3, 1), *others)).shape == (2, 3)
    assert read(Calls(rebuild, view, 1, (2,), (1,), *others)).tolist() == [3, 4]
    untyped = Reference("storage", torch.UntypedStorage, "0", "cpu", 8)
    third = read(Calls(torch._utils._rebuild_tensor_v3, untyped, 0, (2,), (1,), *others, torch.float32))
    assert third.dtype is torch.float32
    subclass = Calls(torch._tensor._rebuild_from_type_v2, rebuild, nn.Parameter, (good, 0, (6,), (1,), *others), {})
    assert read(subclass).shape == (6,)
    assert read(Calls(torch._tensor._rebuild_from_type_v2, os.system, nn.Parameter, ("true",), {})) is None
    for bad in (
        Calls(rebuild, good, 0, (7,), (1,), *others),
        Calls(rebuild, good, 4, (3,), (1,), *others),
        Calls(rebuild, good, 0, (2,), (-1,), *others),
        Calls(rebuild, view, 0, (5,), (1,), *others),
        Reference("module", nn.Linear, "source", "code"),
        Reference("storage", os.system, "0", "cpu", 1),
        np.array([object], dtype=object),
        np.array([1], dtype=">i4"),
    ):
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            read(bad)


# --------------------------------------------------------------------------------------- recognising, converting


def test_kinds() -> None:
    mopoe = [f"encoders.{i}.shared_encoder.{k}.weight" for i in range(5) for k in (0, 2, 4, 7)]
    mopoe += [f"encoders.{i}.{head}.bias" for i in range(5) for head in ("class_mu", "class_logvar")]
    mopoe += [f"decoders.{i}.decoder.{k}.weight" for i in range(5) for k in (0, 3, 5, 7)]
    one = torch.zeros(1)
    state = original_state(d=8)
    assert checkpoint_kind({"state_dict": state}) == "reference_dynamic_transformer"
    assert checkpoint_kind({"state_dict": {f"module.{k}": v for k, v in state.items()}}).startswith("reference_dyn")
    ours = convert_dynamic_transformer(state, NAMES)
    assert checkpoint_kind({"state_dict": ours, "pytorch-lightning_version": "2.6"}) == "lightning"
    assert checkpoint_kind(dict.fromkeys(mopoe, one)) == "reference_mopoe"
    assert checkpoint_kind({"encoders.mnist.hidden_mu.weight": one, "decoders.mnist.fc3.bias": one}).endswith("mopoe")
    assert checkpoint_kind(gaussian_content()) == "reference_gaussian"
    for unknown in ({}, {"state_dict": ours}, ours, state, {"encoders.0.class_mu.bias": one}, {"prototypes": None}):
        assert checkpoint_kind(unknown) == "unknown"


def test_published_polymnist_keys() -> None:
    """Totals of the published model: 958,858 trainable parameters, 80 entries."""
    state = original_state()
    assert len(state) == 80
    assert sum(v.numel() for k, v in state.items() if k != "prototypes") == 958_858
    for prefix in ("", "module.", "model."):
        ours = convert_dynamic_transformer({prefix + k: v for k, v in state.items()}, NAMES)
        assert ours.keys() == {k.replace("m_encoders.", "encoders.m") for k in state}
        assert all(ours[k.replace("m_encoders.", "encoders.m")] is v for k, v in state.items())


def test_named_encoders_and_projections() -> None:
    keys = ["m_encoders.img.conv1.weight", "m_encoders.tabular.cls_token", "m_projection.img.weight", "cls_token"]
    ours = convert_dynamic_transformer(dict.fromkeys(keys, torch.zeros(1)), ["img", "tabular"])
    assert list(ours) == ["encoders.img.conv1.weight", "encoders.tabular.cls_token", *keys[2:]]


def test_load_strict_loads() -> None:
    ours = convert_dynamic_transformer(original_state(d=8), NAMES)
    module = module_of(ours)
    load_strict(module, ours, Path("a.ckpt"), "DynamicTransformer")
    assert equal(dict(module.state_dict()), ours)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"names": ("0", "1", "2")}, "trained for 3 modalities, the data set has 5:"),
        ({"d": 32}, "width 32, the model has 8:"),
        ({"c": 7}, "7 classes, the data set has 10:"),
        ({"dp": 16}, "prototypes of 16 values, those of the model have 64:"),
        ({"c": 7, "d": 32}, "width 32, the model has 8; 7 classes, the data set has 10:"),
        ({"names": ("0", "1", "2", "3", "4", "5")}, "trained for 6 modalities, the data set has 5:"),
        (
            {"names": ("a", "b", "c", "d", "e")},
            "trained for a + b + c + d + e, the data set has m0 + m1 + m2 + m3 + m4:",
        ),
    ],
)
def test_load_strict_says_what_it_was_trained_for(sizes: dict[str, Any], reason: str) -> None:
    module = module_of(convert_dynamic_transformer(original_state(d=8), NAMES))
    state = convert_dynamic_transformer(original_state(**{"d": 8, **sizes}), NAMES)
    with pytest.raises(UserError) as error:
        load_strict(module, state, Path("runs/a.ckpt"), "DynamicTransformer")
    text = one_line(error, Path("runs/a.ckpt"))
    assert f"does not fit the DynamicTransformer: {reason} give the checkpoint" in text


def test_load_strict_names_what_differs_otherwise() -> None:
    ours = convert_dynamic_transformer(original_state(d=8), NAMES)
    module = module_of(ours)

    def refusal(state: dict[str, Any]) -> str:
        with pytest.raises(UserError) as error:
            load_strict(module, state, Path("a.ckpt"), "model")
        return one_line(error, Path("a.ckpt"))

    fewer = {k: v for k, v in ours.items() if not k.startswith("m_norms.")}
    assert "without m_norms.0.weight, m_norms.0.bias, m_norms.1.weight and 7 more:" in refusal(fewer)
    assert "with unknown extra:" in refusal({**ours, "extra": torch.zeros(1)})
    assert "another shape of classifier.bias (3,), the model has (10,):" in refusal(
        {**ours, "classifier.bias": torch.zeros(3)}
    )
    assert "1 transformer blocks, the model has 2" in refusal({k: v for k, v in ours.items() if "mer.1." not in k})
    assert "22 tokens, the model has 21" in refusal({**ours, "pos_embeddings": torch.zeros(1, 22, 8)})
    assert "without" in refusal({}) and "another shape" in refusal({**ours, "cls_token": None})
    for value in (torch.nan, torch.inf):
        broken = {**ours, "m_norms.2.bias": torch.full((8,), value)}
        assert "NaN or infinite values in m_norms.2.bias" in refusal(broken)
    assert all(not v.any() for v in module.state_dict().values())  # a refused checkpoint changes nothing


# ------------------------------------------------------------------------------------------------------ Gaussian


def subset_rows(m: int) -> list[tuple[bool, ...]]:
    chosen = [set(s) for size in range(1, m + 1) for s in combinations(range(m), size)]
    return [tuple(i not in s for i in range(m)) for s in chosen]


def gaussian_content(m: int = 3, c: int = 4, d: int = 6, scale: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    rows = subset_rows(m)
    prototypes = scale * torch.randn(len(rows), c, d, generator=generator)
    return {
        "prototypes": prototypes,
        "overall_prototypes": prototypes.mean(0),
        "dist_std": torch.rand(len(rows), c, generator=generator) + 0.1,
        "t_dist_params": torch.randn(len(rows), c, 3, generator=generator),
        "id2subset": dict(enumerate(rows)),
        "subset2id": {row: i for i, row in enumerate(rows)},
    }


def test_gaussian_round_trip(tmp_path: Path) -> None:
    content, path = gaussian_content(), tmp_path / "subset_gaussian.pt"
    got = read_reference_gaussian(content, path)
    assert got["subsets"].tolist() == [list(row) for row in subset_rows(3)] and got["subsets"].dtype is torch.bool
    write_reference_gaussian(
        path, got["prototypes"], got["dist_std"], got["subsets"], got["overall_prototypes"], got["student_t"]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["subset_gaussian.pt"]
    raw = torch.load(path, weights_only=True)
    for key, value in content.items():
        assert torch.equal(raw[key], value) if isinstance(value, Tensor) else raw[key] == value
    assert all(type(flag) is bool for row in raw["id2subset"].values() for flag in row)
    again = read_reference_gaussian(read_tensors(path), path)
    assert all(torch.equal(again[key], got[key]) for key in got)  # type: ignore[literal-required]


def test_gaussian_defaults(tmp_path: Path) -> None:
    content, path = gaussian_content(m=2), tmp_path / "g.pt"
    write_reference_gaussian(path, content["prototypes"].double(), content["dist_std"], torch.tensor(subset_rows(2)))
    got = read_reference_gaussian(read_tensors(path), path)
    assert got["student_t"] is None and got["prototypes"].dtype is torch.float32
    torch.testing.assert_close(got["overall_prototypes"], content["overall_prototypes"])
    del content["t_dist_params"], content["subset2id"]
    assert read_reference_gaussian({**content, "dist_std": content["dist_std"].numpy()}, path)["student_t"] is None


def changed(array: Tensor, index: Any, value: float) -> Tensor:
    array = array.clone()
    array[index] = value
    return array


BASE = gaussian_content()
ROWS = subset_rows(3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prototypes": None}, "has no array 'prototypes'"),
        ({"prototypes": torch.zeros(7, 4)}, "'prototypes' has the shape (7, 4) instead of (subsets, classes, values)"),
        ({"dist_std": torch.ones(7, 5)}, "'dist_std' has the shape (7, 5) instead of (7, 4)"),
        ({"overall_prototypes": torch.ones(4, 5)}, "'overall_prototypes' has the shape (4, 5) instead of (4, 6)"),
        ({"overall_prototypes": torch.full((4, 6), torch.nan)}, "'overall_prototypes' is not finite"),
        ({"t_dist_params": torch.ones(7, 4, 2)}, "'t_dist_params' has the shape"),
        ({"id2subset": None}, "does not number the 7 subsets"),
        ({"id2subset": {i + 1: row for i, row in enumerate(ROWS)}}, "does not number the 7 subsets"),
        (
            {"id2subset": {i: (*row, False) for i, row in enumerate(ROWS)}},
            "every subset of 4 modalities once (15, has 7)",
        ),
        ({"id2subset": dict(enumerate([ROWS[1], *ROWS[1:]]))}, "every subset of 3 modalities once (7, has 7)"),
        ({"id2subset": dict(enumerate([(True,) * 3, *ROWS[1:]]))}, "every subset of 3 modalities once"),
        ({"id2subset": dict.fromkeys(range(7))}, "every subset of 0 modalities once"),
        ({"subset2id": {row: 0 for row in ROWS}}, "'subset2id' is not the inverse"),
        ({"dist_std": changed(BASE["dist_std"], (4, 2), 0)}, "class 2 in subset 4 (missing: 1) is 0"),
        ({"dist_std": changed(BASE["dist_std"], (6, 1), torch.nan)}, "class 1 in subset 6 (missing: nothing) is nan"),
        ({"dist_std": changed(BASE["dist_std"], (0, 3), torch.inf)}, "class 3 in subset 0 (missing: 1, 2) is inf"),
        ({"dist_std": changed(BASE["dist_std"], (0, 0), -1)}, "is -1"),
        ({"prototypes": changed(BASE["prototypes"], (1, 3, 0), torch.nan)}, "the prototype of class 3 in subset 1"),
    ],
)
def test_gaussian_refusals(change: dict[str, Any], reason: str) -> None:
    path = Path("gaussian/subset_gaussian.pt")
    with pytest.raises(UserError) as error:
        read_reference_gaussian({**BASE, **change}, path)
    text = one_line(error, path)
    assert reason in text and "stage 'gaussian'" in text


def estimated(metric: str, seed: int, n: int, spread: float, length: float = 1.0) -> tuple[Tensor, Tensor]:
    """Prototypes (1, C, D) and spread (1, C) of made-up features, computed as the original does."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(5, 1, 8, generator=generator) + spread * torch.randn(5, n, 8, generator=generator)
    z = nn.functional.normalize(z, dim=-1) if metric == "cosine_similarity" else length * z
    c = z.mean(1, keepdim=True)
    d = 1 - (z * c).sum(-1) if metric == "cosine_similarity" else (z - c).norm(dim=-1)
    return c[None, :, 0], d.square().mean(1).sqrt()[None]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 3.0])
@pytest.mark.parametrize("n", [1, 2, 200])
def test_cosine_features_are_always_told_to_be_cosine(n: int, spread: float) -> None:
    for seed in range(20):
        assert guess_metric(*estimated("cosine_similarity", seed, n, spread)) == "cosine_similarity"


def test_guess_metric() -> None:
    assert guess_metric(*estimated("squared_euclidean", 0, 100, 0.3)) == "squared_euclidean"
    short = estimated("squared_euclidean", 0, 100, 0.3, length=0.05)  # all prototypes shorter than one
    assert guess_metric(short[0]) is None and guess_metric(*short) == "squared_euclidean"
    wide = estimated("squared_euclidean", 0, 500, 30.0, length=0.05)  # σ larger than cosine features allow
    assert wide[0].norm(dim=-1).max() < 1 and guess_metric(*wide) == "squared_euclidean"
    assert guess_metric(torch.full((1, 1, 2), torch.nan)) is None


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("g.pt", 1.0, "squared_euclidean"),
        ("subset_gaussian_EU.pt", 1.0, "squared_euclidean"),
        ("subset_gaussian_EU.pt", 0.05, "squared_euclidean"),
        ("subset_gaussian.pt", 0.05, "cosine_similarity"),
        ("mine_COS.pt", 0.05, "cosine_similarity"),
    ],
)
def test_metric_of_a_file(name: str, scale: float, expected: str) -> None:
    content = gaussian_content(scale=scale)
    assert reference_gaussian_metric(content, Path(name)) == expected
    assert reference_gaussian_metric(read_reference_gaussian(content, Path(name)), Path(name)) == expected


def test_metric_by_values_and_contradiction() -> None:
    prototypes, dist_std = estimated("cosine_similarity", 0, 100, 0.3)
    assert reference_gaussian_metric({"prototypes": prototypes, "dist_std": dist_std}, Path("g.pt")).startswith("cos")
    with pytest.raises(UserError, match="cannot be told") as error:
        reference_gaussian_metric({"prototypes": prototypes}, Path("g.pt"))
    one_line(error, Path("g.pt"))
    path = Path("runs/subset_gaussian.pt")
    with pytest.raises(UserError, match="rename it to subset_gaussian_EU") as error:
        reference_gaussian_metric(gaussian_content(), path)
    one_line(error, path)


def test_legacy_length_must_agree(tmp_path: Path) -> None:
    """The length before a storage in the old format is checked against the one in the index."""
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.ones(3), "h": OmegaConf.create({})}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<q", 3) + struct.pack("<f", 1), struct.pack("<qf", 2, 1)))
    assert path.read_bytes() != data
    with pytest.raises(UserError, match="cut off or damaged"):
        read_tensors(path)
