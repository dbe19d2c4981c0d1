"""Files of the original DyMo and MoPoE repositories, from the command line to the predictions.

The expected predictions come from a forward pass written here from docs/reference/dymo.md §1: the original's keys
and modality index min(i, 1), every token attended to under an additive -1e9, images read straight from the PNG files;
and from the selection of ``slow_twin``, one sample and one candidate at a time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from omegaconf.base import ContainerMetadata, Metadata
from PIL import Image
from torch import Tensor

from tests import slow_twin
from tests.makers import make_original_checkpoint, random_original_state
from trainers import run as pipeline
from trainers.config.build import build_selection
from trainers.loading import Run
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COSINE, EUCLIDEAN = slow_twin.COSINE, slow_twin.EUCLIDEAN
VIEWS = [f"m{i}" for i in range(5)]


SCENARIOS = {"none": "none", "random_0.8": "random_0.8", "file:M.csv": "file_M"}
N = 20


@dataclass
class Originals:
    """A folder D with test images only, and files A, G, M as the original repository writes them."""

    folder: Path
    root: Path
    checkpoint: Path
    gaussian: dict[str, Path]
    masks: Path
    state: dict[str, Tensor]
    images: dict[str, Tensor]
    target: list[int]
    parameters: dict[str, tuple[Tensor, Tensor, Tensor]]

    def overrides(self, metric: str, output: Path, **changes: object) -> list[str]:
        """The command of issue 2 with the paths of these files."""
        values: dict[str, object] = {
            "model": "DyMo",
            "dataset": "PolyMNIST",
            "dataset.root": self.root,
            "model.transformer_checkpoint": self.checkpoint,
            "model.gaussian": self.gaussian[metric],
            "imputer": "Zero",
            "stages": "[test]",
            "missing.test": f"[none,random_0.8,file:{self.masks}]",
            "paths.output": output,
            "paths.cache": self.folder / "cache",
        }
        return [f"{key}={value}" for key, value in (values | changes).items()]


def write_images(folder: Path, names: list[str], seed: int) -> None:
    """Coarse pictures of any brightness down to black, half class pattern and half chance: recoveries by zeros are then
    no strangers to the network, and some are accepted."""
    patterns = np.random.default_rng(0).integers(0, 256, size=(5, 10, 4, 4, 3))
    rng = np.random.default_rng(seed)
    for view, by_class in zip(VIEWS, patterns):
        (folder / view).mkdir(parents=True)
        for name in names:
            coarse = (by_class[int(name.split(".")[1])] + rng.integers(0, 256, size=(4, 4, 3))) / 2 * rng.random()
            Image.fromarray(coarse.astype(np.uint8).repeat(7, 0).repeat(7, 1)).save(folder / view / f"{name}.png")


def read_images(folder: Path, names: list[str]) -> dict[str, Tensor]:
    """view -> (N, 3, 28, 28) in [0, 1]."""
    views = {}
    for view in VIEWS:
        pictures = [np.asarray(Image.open(folder / view / f"{name}.png"), dtype=np.float32) for name in names]
        views[view] = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    return views


def original_tokens(state: dict[str, Tensor], i: int, x: Tensor) -> Tensor:
    """Modality i (B, 3, 28, 28) -> (B, 4, 128)."""
    for layer in (0, 2, 4):
        prefix = f"m_encoders.{i}.network.{layer}"
        x = torch.relu(F.conv2d(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"], stride=2, padding=1))
    prefix = f"m_encoders.{i}.proj_conv.0"
    x = F.max_pool2d(F.conv2d(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"]), 2)
    return torch.stack([x[:, :, row, column] for row in range(2) for column in range(2)], dim=1)


def original_forward(state: dict[str, Tensor], tokens: list[Tensor], missing: slow_twin.Mask) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and projections (B, P) of all rows under one mask."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    parts, bias = [state["cls_token"].expand(len(tokens[0]), -1, -1)], [0.0]
    for i, (x, absent) in enumerate(zip(tokens, missing)):
        parts.append(
            norm(f"m_norms.{i}", x) * (0.0 if absent else 1.0) + state["modality_embeddings.weight"][min(i, 1)]
        )
        bias += [-1e9 if absent else 0.0] * x.shape[1]
    x = torch.cat(parts, dim=1) + state["pos_embeddings"]
    for b in range(2):
        fused = linear(f"transformer.{b}.attn.qkv", norm(f"transformer.{b}.norm1", x))
        q, k, v = fused.view(*fused.shape[:2], 3, 4, 32).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(32) + torch.tensor(bias), dim=-1)
        x = x + linear(f"transformer.{b}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"transformer.{b}.mlp.fc1", norm(f"transformer.{b}.norm2", x)))
        x = x + linear(f"transformer.{b}.mlp.fc2", hidden)
    return linear("classifier", x[:, 0]), linear("projection", x[:, 0])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    folder = tmp_path_factory.mktemp("originals")
    root = folder / "D"
    names = [f"{i}.{digit}" for digit in range(10) for i in (2, 10)]  # as text 10 would come before 2
    write_images(root / "test", names, seed=1)
    state = random_original_state(seed=1)
    checkpoint = make_original_checkpoint(folder / "A.ckpt", state)
    # Features of a training split under every subset.
    train_names = [f"{i}.{digit}" for digit in range(10) for i in range(6)]
    write_images(folder / "train", train_names, seed=2)
    train = read_images(folder / "train", train_names)
    labels = [int(name.split(".")[1]) for name in train_names]
    tokens = [original_tokens(state, i, train[view]) for i, view in enumerate(VIEWS)]
    masks = slow_twin.subsets(5)
    raw = torch.stack([original_forward(state, tokens, mask)[1] for mask in masks])
    parameters, files = {}, {}
    for metric, features in ((COSINE, F.normalize(raw, dim=-1)), (EUCLIDEAN, raw)):
        prototypes, overall, sigma = slow_twin.gaussian_parameters(features, labels, 10, metric)
        parameters[metric] = prototypes.float(), overall.float(), sigma.float()
        files[metric] = folder / f"G_{len(files)}.pt"  # a name that does not tell
        torch.save(
            {
                "prototypes": prototypes.float(),
                "overall_prototypes": overall.float(),
                "dist_std": sigma.float(),
                "t_dist_params": torch.full((31, 10, 3), torch.nan),
                "id2subset": dict(enumerate(masks)),
                "subset2id": {mask: i for i, mask in enumerate(masks)},
            },
            files[metric],
        )
    rng = np.random.default_rng(5)
    file_mask = rng.random((N, 5)) < 0.6
    file_mask[np.arange(N), rng.integers(5, size=N)] = False
    (folder / "M.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in file_mask.tolist()))
    return Originals(
        folder,
        root,
        checkpoint,
        files,
        folder / "M.csv",
        state,
        read_images(root / "test", names),
        [int(name.split(".")[1]) for name in names],
        parameters,
    )


def expected_mask(originals: Originals, scenario: str) -> np.ndarray:
    if scenario == "none":
        return np.zeros((N, 5), dtype=bool)
    if scenario == "file:M.csv":
        return pd.read_csv(originals.masks, header=None).to_numpy(dtype=bool)
    ranks = np.random.default_rng(2027).random((N, 5)).argsort(1).argsort(1)
    return ranks < 4


def acceptance_command(originals: Originals, metric: str, output: Path) -> str:
    """What the command of issue 2 prints."""
    command = [sys.executable, "run.py", *originals.overrides(metric, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("metric", [COSINE, EUCLIDEAN])
def test_acceptance_command(originals: Originals, composed, tmp_path: Path, caplog, metric: str) -> None:
    output = tmp_path / "O"
    if metric == COSINE:
        printed = acceptance_command(originals, metric, output)
    else:  # the same without the ten seconds that a process takes to start
        caplog.set_level("INFO")
        pipeline.run(composed(*originals.overrides(metric, output), tiny=False))
        printed = caplog.text
    assert f"distance metric of {originals.gaussian[metric]}: {metric}" in printed
    assert f"{originals.checkpoint} is a checkpoint of the original repository: its modality index min(i, 1)" in printed
    (run,) = output.glob("PolyMNIST/*/default/seed0")
    assert run.parent.parent.name == {COSINE: "DyMo", EUCLIDEAN: "DyMo_EU"}[metric] and (run / "DONE").exists()
    assert {f.stem for f in (run / "predictions").glob("*.npz")} == set(SCENARIOS.values())

    judge = slow_twin.Judge(
        *originals.parameters[metric],
        metric=metric,
        calibration="log_ratio" if metric == COSINE else "ratio",
        tail="float32",  # which an original checkpoint brings
    )
    compared = accepted = rejected = 0
    for scenario, slug in SCENARIOS.items():
        got = np.load(run / "predictions" / f"{slug}.npz")
        missing = expected_mask(originals, scenario)
        assert got["index"].tolist() == list(range(N)) and got["target"].tolist() == originals.target
        assert np.array_equal(got["missing"], missing)
        completed = [
            torch.where(torch.from_numpy(missing[:, i]).view(-1, 1, 1, 1), 0, originals.images[view])
            for i, view in enumerate(VIEWS)
        ]
        tokens = [original_tokens(originals.state, i, x) for i, x in enumerate(completed)]
        outputs = {mask: original_forward(originals.state, tokens, mask) for mask in slow_twin.subsets(5)}
        if metric == COSINE:
            outputs = {mask: (logits, F.normalize(z, dim=-1)) for mask, (logits, z) in outputs.items()}
        for row in range(N):

            def evaluate(mask: slow_twin.Mask, outputs: Any = outputs, row: int = row) -> tuple[Tensor, Tensor]:
                logits, z = outputs[mask]
                return logits[row], z[row]

            final, order, history, logits = slow_twin.greedy(evaluate, tuple(missing[row].tolist()), judge)
            if any(abs(value) < 1e-4 for rewards in history for value in rewards.values()):
                continue  # as good as a tie: float32 rounding decides
            compared += 1
            accepted += len(order)
            rejected += sum(final)
            assert got["final_missing"][row].tolist() == list(final), (scenario, row)
            assert [int(u) for u in got["accepted"][row] if u >= 0] == order
            assert got["iterations"][row] == len(history)
            np.testing.assert_allclose(got["logits"][row], logits, atol=1e-4, rtol=1e-4)
            for step, rewards in enumerate(history):
                evaluated = {u: value for u, value in enumerate(got["rewards"][row, step]) if not np.isnan(value)}
                assert evaluated == pytest.approx(rewards, abs=1e-4)
    assert compared > 2.5 * N and accepted >= 5 and rejected >= 20, (compared, accepted, rejected)

    results = pd.read_csv(run / "results.csv").query("metric == 'accuracy'").set_index(["model", "scenario"])["value"]
    for scenario, slug in SCENARIOS.items():
        got = np.load(run / "predictions" / f"{slug}.npz")
        share = np.mean(got["logits"].argmax(1) == got["target"])
        assert results[run.parent.parent.name, scenario] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("asked", "used"), [("auto", "float32"), ("robust", "robust"), ("float32", "float32")])
def test_an_original_checkpoint_brings_the_tail_of_the_original(
    originals: Originals, composed, tmp_path: Path, caplog, asked: str, used: str
) -> None:
    caplog.set_level("INFO")
    overrides = originals.overrides(COSINE, tmp_path / "O", **{"model.selection.tail": asked, "missing.test": "[none]"})
    pipeline.run(composed(*overrides, tiny=False))
    lines = [r.getMessage() for r in caplog.records]
    messages = f"{originals.checkpoint} is a checkpoint of the original repository: its tail=float32 is used"
    assert any(line.startswith(messages) for line in lines) is (asked == "auto")
    (marker,) = (tmp_path / "O").glob("PolyMNIST/DyMo/default/seed0/stages/test.json")
    assert json.loads(marker.read_text())["settings"]["model"]["selection"]["tail"] == used
    assert any(line.startswith(f"{originals.checkpoint} does not say what its inputs mean") for line in lines)


def test_a_checkpoint_of_ours_keeps_the_robust_tail(composed) -> None:
    context = Run(composed("model=DyMo"))
    assert context.tail == "robust" and build_selection(context.cfg, context.tail).tail == "robust"
    # Settings of older runs hold the word robust, which the default stands for: they stay valid.
    assert context.cfg.model.selection.tail == "auto"


def test_the_checkpoint_holds_nothing_but_the_published_entries(originals: Originals) -> None:
    """80 entries (docs/reference/dymo.md §1.5), so the runs above needed none of our own, and its hyper-parameters need
    executing.
    """
    allowed = [ContainerMetadata, Metadata, DictConfig, ListConfig, AnyNode, defaultdict, dict, list, int, Any]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(originals.checkpoint, weights_only=True)
    assert list(content) == ["epoch", "state_dict", "optimizer", "scheduler", "hyper_parameters", "best_val_score"]
    assert len(content["state_dict"]) == 80 and OmegaConf.is_config(content["hyper_parameters"])
    trained = {k: v for k, v in content["state_dict"].items() if k != "prototypes"}
    assert sum(v.numel() for v in trained.values()) == 958_858
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(originals.checkpoint, weights_only=True)


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(originals: Originals, composed, tmp_path: Path, metric: str = COSINE, **changes: object) -> str:
    """The message of a run that must fail before it writes anything."""
    overrides = originals.overrides(metric, tmp_path / "O", **changes)
    with pytest.raises(UserError) as error:
        pipeline.run(composed(*overrides, tiny=False))
    assert not (tmp_path / "O").exists(), "a refused run leaves nothing"
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("metric", [EUCLIDEAN, COSINE])
def test_another_metric_than_that_of_the_gaussian_file_is_an_error(
    originals: Originals, composed, tmp_path: Path, metric: str
) -> None:
    other = EUCLIDEAN if metric == COSINE else COSINE
    message = refused(originals, composed, tmp_path, metric, distance_metric=other)
    assert str(originals.gaussian[metric]) in message and metric in message and f"distance_metric={other}" in message


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"modalities": 3}, "trained for 3 modalities, the data set has 5"),
        ({"width": 64}, "width 64, the model has 128"),
        ({"classes": 7}, "7 classes, the data set has 10"),
        ({"projection": 32}, "prototypes of 32 values, those of the model have 64"),
        ({"layers": 3}, "3 transformer blocks, the model has 2"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(
    originals: Originals, composed, tmp_path: Path, sizes: dict[str, int], reason: str
) -> None:
    other = make_original_checkpoint(tmp_path / "B.ckpt", random_original_state(**sizes))
    message = refused(originals, composed, tmp_path, **{"model.transformer_checkpoint": other})
    assert message.startswith(f"{other} does not fit the DynamicTransformer") and reason in message


def test_files_in_the_wrong_place_are_refused_by_name(originals: Originals, composed, tmp_path: Path) -> None:
    swapped = refused(originals, composed, tmp_path, **{"model.transformer_checkpoint": originals.gaussian[COSINE]})
    assert f"{originals.gaussian[COSINE]} is a reference gaussian file: give a trained DynamicTransformer" in swapped
    swapped = refused(originals, composed, tmp_path, **{"model.gaussian": originals.checkpoint})
    assert str(originals.checkpoint) in swapped
    text = refused(originals, composed, tmp_path, **{"model.transformer_checkpoint": originals.masks})
    assert text.startswith(f"{originals.masks} is not a checkpoint")
    absent = refused(originals, composed, tmp_path, **{"model.gaussian": tmp_path / "none.pt"})
    assert absent == f"model.gaussian: there is no file {tmp_path / 'none.pt'}"


# -------------------------------------------------------------------------------------------------------------- MoPoE


def original_mopoe(latent: int = 16) -> dict[str, Tensor]:
    """``mm_vae`` of the original MoPoE: the bare state of its encoders and decoders, named by modality
    (docs/reference/dymo.md §5.1).
    """
    generator = torch.Generator().manual_seed(3)
    state = {}

    def layer(name: str, *shape: int, bias: int) -> None:
        fan_in = shape[1] * int(np.prod(shape[2:]))
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) * fan_in**-0.5
        state[f"{name}.bias"] = torch.randn(bias, generator=generator) * 0.1

    for view in VIEWS:
        shared = f"encoders.{view}.shared_encoder"
        for index, (out, into) in zip((0, 2, 4), ((32, 3), (64, 32), (128, 64))):
            layer(f"{shared}.{index}", out, into, 3, 3, bias=out)
        layer(f"{shared}.7", latent, 2048, bias=latent)
        for head in ("class_mu", "class_logvar"):
            layer(f"encoders.{view}.{head}", latent, latent, bias=latent)
        layer(f"decoders.{view}.decoder.0", 2048, latent, bias=2048)
        for index, (into, out) in zip((3, 5, 7), ((128, 64), (64, 32), (32, 3))):
            layer(f"decoders.{view}.decoder.{index}", into, out, 3, 3, bias=out)
    return state


def test_an_original_mopoe_recovers_what_its_formulas_say(originals: Originals, composed, tmp_path: Path) -> None:
    from trainers.config.validate import validate
    from trainers.loading import Run

    state = original_mopoe()
    torch.save(state, tmp_path / "mm_vae")
    changes = {"imputer": "MoPoE", "imputer.checkpoint": tmp_path / "mm_vae", "imputer.latent": 16}
    overrides = [*originals.overrides(COSINE, tmp_path / "O", **changes), "+imputer.encoder.hidden=16"]
    cfg = composed(*overrides, tiny=False)
    validate(cfg)
    context = Run(cfg)
    context.data.prepare()
    imputer = context.load_imputer()

    missing = torch.tensor([[False, True, False, True, False]] * 3)
    inputs = {view: images[:3] for view, images in originals.images.items()}
    recovered = imputer.impute(inputs, missing)

    def encode(view: str, x: Tensor) -> tuple[Tensor, Tensor]:
        for i in (0, 2, 4):
            prefix = f"encoders.{view}.shared_encoder.{i}"
            x = torch.relu(F.conv2d(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"], stride=2, padding=1))
        prefix = f"encoders.{view}.shared_encoder.7"
        h = torch.relu(F.linear(x.flatten(1), state[f"{prefix}.weight"], state[f"{prefix}.bias"]))
        heads = (f"encoders.{view}.{head}" for head in ("class_mu", "class_logvar"))
        mu, logvar = (F.linear(h, state[f"{head}.weight"], state[f"{head}.bias"]) for head in heads)
        return mu, logvar

    def decode(view: str, z: Tensor) -> Tensor:
        prefix = f"decoders.{view}.decoder"
        x = torch.relu(F.linear(z, state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"])).view(-1, 128, 4, 4)
        for i, padding in ((3, 0), (5, 1), (7, 1)):
            weight, bias = state[f"{prefix}.{i}.weight"], state[f"{prefix}.{i}.bias"]
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=padding)
            x = torch.relu(x) if i < 7 else x
        return x

    experts = [encode(view, inputs[view]) for view in ("m0", "m2", "m4")]
    mean, _ = slow_twin.product_of_experts([e[0] for e in experts], [e[1] for e in experts], prior=False)
    for view in VIEWS:
        expected = decode(view, mean) if view in ("m1", "m3") else inputs[view]
        torch.testing.assert_close(recovered[view], expected, atol=1e-5, rtol=1e-5)

    pipeline.run(composed(*overrides, tiny=False))
    (run,) = (tmp_path / "O").glob("PolyMNIST/DyMo/default/seed0")
    assert (run / "DONE").exists()


def test_a_mopoe_of_another_latent_or_set_is_refused(originals: Originals, composed, tmp_path: Path) -> None:
    torch.save(original_mopoe(), tmp_path / "mm_vae")
    changes = {"imputer": "MoPoE", "imputer.checkpoint": tmp_path / "mm_vae"}
    message = refused(originals, composed, tmp_path, **changes)  # latent 512
    assert message.startswith(f"{tmp_path / 'mm_vae'} does not fit the MoPoE") and "another shape of" in message
    state = {key: value for key, value in original_mopoe().items() if ".m4." not in key}
    torch.save(state, tmp_path / "mm_vae")
    message = refused(originals, composed, tmp_path, **changes)
    assert "trained for 4 modalities, the data set has 5" in message
