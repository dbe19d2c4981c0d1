"""Noise: operators against what they say, scenarios and training with it (docs/reference/udml.md §1.4, §1.17;
docs/reference/datasets.md §12.5).
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from scipy import ndimage, stats
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality
from datasets.missingness import Rows, parse_scenario, parse_scenarios
from datasets.noise import Noise, TrainingNoise
from datasets.noise_operators import OPERATORS, corrupt
from datasets.readers.audio import LogMel
from datasets.scale import Scale
from models.dymo.dynamic_transformer import DynamicTransformer
from models.tokens import TokenPipeline
from tests.makers import calls_of
from tests.tiny_tables import TinyTables
from trainers import run as pipeline
from trainers.config.build import build_noise
from trainers.config.compose import compose_config
from trainers.config.overrides import check_overrides
from trainers.config.validate import validate
from trainers.loading import Run
from trainers.prediction import predict
from utils.errors import UserError
from utils.noise import hash_seed, row_normal_16bit, row_uniform

quick = settings(max_examples=25, deadline=None)
IMAGENET = Scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGE = Modality("image", "image", (3, 24, 20))
PHOTO = Modality("photo", "image", (3, 24, 20), scale=IMAGENET)
CLIP = Modality("visual", "video", (2, 3, 12, 10), scale=IMAGENET)
STFT = Modality("audio", "audio", (17, 40))
MEL = Modality("mel", "audio", (40, 16), scale=LogMel(40, 16).scale)
TABLE = Modality("table", "table", (6,), (3, 2))
SERIES = Modality("series", "series", (30, 2))
TEXT = Modality("text", "text", (4, 5))
ALL = (IMAGE, PHOTO, CLIP, STFT, MEL, TABLE, SERIES)
PAIRS = [
    pytest.param(m, operator, id=f"{operator}-{m.name}")
    for m in ALL
    for operator, it in OPERATORS.items()
    if m.kind in it.kinds
]


def content(m: Modality, n: int, seed: int = 0) -> Tensor:
    """(n, *shape) as the models of a data set get it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *m.shape, generator=generator)
    if m.kind == "table":
        codes = [torch.randint(k, (n, 1), generator=generator) for k in m.cardinalities]
        return torch.cat([*codes, 4 * x[:, len(codes) :] - 2], dim=1)
    if m.kind == "series":
        return 4 * x - 2
    return m.scale.write(10 * x - 12 if m.kind == "audio" else x)


def noisy(m: Modality, operator: str, level: int | list[int], x: Tensor, seed: int = 0) -> Tensor:
    levels = torch.full((len(x),), level) if isinstance(level, int) else torch.tensor(level)
    return corrupt(x, m, operator, levels, torch.arange(len(x)), seed)


def key(m: Modality, operator: str, seed: int = 0) -> int:
    """What the first draws of an operator are keyed by, besides the row."""
    return hash_seed(hash_seed(seed, zlib.crc32(m.name.encode()), zlib.crc32(operator.encode())), 0)


# ---------------------------------------------------------------------------------------------------- random numbers


def test_normal_noise_is_normal_and_independent() -> None:
    z = row_normal_16bit(torch.arange(200), 1001, 7)
    assert z.shape == (200, 1001) and z.dtype == torch.float32
    values = z.flatten().double()
    assert abs(values.mean()) < 0.005 and abs(values.std() - 1) < 0.005
    assert stats.kstest(values.numpy(), "norm").statistic < 0.004
    for a, b in ((z[:, :-1], z[:, 1:]), (z[:, :-4], z[:, 4:]), (z[:-1], z[1:])):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.01
    assert torch.equal(row_normal_16bit(torch.tensor([17]), 1001, 7)[0], z[17])
    assert not torch.equal(row_normal_16bit(torch.tensor([17]), 1001, 8)[0], z[17])


# ------------------------------------------------------------------------------------------ every operator on its kinds


@pytest.mark.parametrize(("m", "operator"), PAIRS)
def test_level_1_is_the_input_and_rows_do_not_depend_on_their_batch(m: Modality, operator: str) -> None:
    """Invariant 10: bit-identical at level 1, no global random state is changed."""
    x = content(m, 12)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(noisy(m, operator, 1, x), x)
    levels = [1, 5, 6, 5, 8, 11, 1, 4, 6, 10, 9, 7]
    together = noisy(m, operator, levels, x)
    for row, level in enumerate(levels):
        one = slice(row, row + 1)
        alone = corrupt(x[one], m, operator, torch.tensor([level]), torch.tensor([row]), 0)
        assert torch.allclose(alone[0], together[row], rtol=0, atol=2e-6)
        assert torch.equal(together[row], x[row]) == (level == 1)
    if operator != "temporal_blur":  # which draws nothing
        same = x[:1].expand_as(x)
        assert not torch.equal(noisy(m, operator, 8, same), noisy(m, operator, 8, same, seed=1))
        assert len({tuple(row.flatten().tolist()) for row in noisy(m, operator, 8, same)}) > 5
    after = np.random.get_state()[1], torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    assert np.array_equal(before[0], after[0]) and torch.equal(before[1], after[1])


def clipped_deviation(sigma: float, half: float) -> float:
    """Standard deviation of N(0, sigma^2) that is limited to [-half, half], by its integral."""
    inside = stats.norm.expect(lambda v: v**2, scale=sigma, lb=-half, ub=half)
    return math.sqrt(inside + 2 * half**2 * stats.norm.sf(half / sigma))


@pytest.mark.parametrize("m", [IMAGE, PHOTO, CLIP], ids=lambda m: m.name)
@pytest.mark.parametrize("level", [2, 4, 6, 8, 10])
def test_gaussian_on_images_has_a_deviation_of_the_squared_level(m: Modality, level: int) -> None:
    """Invariant 10, in grey levels: within 2 % of level^2 (limited to [0, 255]), one plane for three channels."""
    x = m.scale.write(torch.full((150, *m.shape), 0.5))
    grey = m.scale.read(noisy(m, "gaussian", level, x)) * 255
    assert grey.min() >= -1e-3 and grey.max() <= 255.001
    expected = clipped_deviation(level**2, 127.5)
    assert level > 5 or abs(expected / level**2 - 1) < 1e-5
    assert abs(float(grey.std()) / expected - 1) < 0.02
    assert abs(float(grey.mean()) - 127.5) < 0.02 * level**2
    assert torch.allclose(grey, grey[..., :1, :, :].expand_as(grey), rtol=0, atol=1e-3)
    if m.kind == "video":  # frames have their own noise
        frames = grey[:, :, 0].flatten(2) - 127.5
        assert abs(float((frames[:, 0] * frames[:, 1]).mean()) / level**4) < 0.05


@pytest.mark.parametrize("m", [STFT, MEL], ids=lambda m: m.name)
@pytest.mark.parametrize("level", [2, 5, 10])
def test_gaussian_on_spectrograms_has_a_deviation_of_the_level(m: Modality, level: int) -> None:
    """Invariant 10, on the natural logarithm, whatever the front end divides by."""
    x = content(m, 100)
    added = m.scale.read(noisy(m, "gaussian", level, x)) - m.scale.read(x)
    assert abs(float(added.std()) / level - 1) < 0.02 and abs(float(added.mean())) < 0.02 * level


@pytest.mark.parametrize("m", ALL, ids=lambda m: m.name)
def test_gaussian_level_11_leaves_nothing_of_the_input(m: Modality) -> None:
    """Invariant 10: two contents of the same rows become one; what is left has the reference's distribution."""
    x = content(m, 60)
    absent = noisy(m, "gaussian", 11, x)
    assert torch.allclose(absent, noisy(m, "gaussian", 11, content(m, 60, 1)), rtol=0, atol=1e-5)
    assert abs(np.corrcoef(absent.flatten(), x.flatten())[0, 1]) < 0.1 or m.kind == "table"
    if m.kind in ("table", "series"):
        assert abs(float(absent[:, 2:].std()) / (11 / 4) - 1) < 0.15
        return
    meaning = m.scale.read(absent) * (255 if m.kind != "audio" else 1)
    low, sigma = (-255.0, 11 * 25.5) if m.kind == "audio" else (0.0, 121 * 25.5)
    for edge in (low, 255.0):
        share = float(((meaning - edge).abs() < 1e-2).float().mean())
        assert share == pytest.approx(stats.norm.sf(255 / sigma) if m.kind == "audio" else 0.5, abs=0.06)


def test_gaussian_on_tables_redraws_categories_and_shakes_numbers() -> None:
    x = torch.zeros(4000, 6)
    for level in (2, 6, 10):
        y = noisy(TABLE, "gaussian", level, x)
        assert abs(float(y[:, 2:].std()) / (level / 4) - 1) < 0.02
        for column, k in enumerate(TABLE.cardinalities):
            assert set(y[:, column].tolist()) == set(range(k))
            changed = float((y[:, column] != 0).float().mean())
            assert changed == pytest.approx((level - 1) / 10 * (k - 1) / k, abs=0.03)
    # Numbers that are no z-scores: noise in their own deviations.
    scaled = replace(TABLE, scale=Scale((-3.0, -1.0, 0.0, 2.0), (10.0, 5.0, 1.0, 2.0)))
    y = noisy(scaled, "gaussian", 6, x)[:, 2:]
    torch.testing.assert_close(y.std(0) * torch.tensor([10.0, 5.0, 1.0, 2.0]), torch.full((4,), 1.5), rtol=0.03, atol=0)
    vector = Modality("fourier", "table", (5,))
    assert noisy(vector, "gaussian", 4, torch.zeros(3000, 5)).std() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("m", [IMAGE, PHOTO, CLIP], ids=lambda m: m.name)
def test_salt_and_pepper(m: Modality) -> None:
    x = m.scale.write(torch.full((60, *m.shape), 0.5))
    for level, density in ((2, 0.05), (3, 0.1), (5, 0.2), (11, 0.5)):
        y = m.scale.read(noisy(m, "salt_and_pepper", level, x))
        assert torch.allclose(y, y[..., :1, :, :].expand_as(y), atol=1e-6)
        for value, share in ((0, density / 2), (1, density / 2), (0.5, 1 - density)):
            assert float(((y - value).abs() < 1e-5).float().mean()) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("m", [PHOTO, CLIP], ids=lambda m: m.name)
def test_motion_blur_against_sampling_along_a_line(m: Modality) -> None:
    """SciPy's bilinear interpolation at the points of a line, whose direction is that of the row."""
    x = content(m, 10)
    levels = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    y = noisy(m, "motion_blur", levels, x)
    angles = row_uniform(torch.arange(10), 1, key(m, "motion_blur"))[:, 0] * math.pi
    rows, columns = np.mgrid[: m.shape[-2], : m.shape[-1]]
    for row, level in enumerate(levels):
        steps = np.arange(level) - (level - 1) / 2
        for plane, blurred in zip(x[row].flatten(0, -3).numpy(), y[row].flatten(0, -3).numpy()):
            along = [
                ndimage.map_coordinates(
                    plane,
                    [rows + t * math.sin(angles[row]), columns + t * math.cos(angles[row])],
                    order=1,
                    mode="nearest",
                )
                for t in steps
            ]
            assert np.allclose(np.mean(along, 0), blurred, atol=1e-4)


@pytest.mark.parametrize("m", [STFT, MEL], ids=lambda m: m.name)
def test_temporal_blur_against_a_convolution(m: Modality) -> None:
    x = content(m, 10)
    levels = list(range(2, 12))
    y = noisy(m, "temporal_blur", levels, x)
    for row, level in enumerate(levels):
        window = np.full(level, 1 / level)
        expected = ndimage.convolve1d(x[row].double().numpy(), window, axis=m.scale.time, mode="nearest")
        assert np.allclose(expected, y[row], atol=1e-5)


@pytest.mark.parametrize("m", [STFT, MEL], ids=lambda m: m.name)
def test_time_mask_is_one_block_of_frames(m: Modality) -> None:
    x = content(m, 200)
    for level, share in ((3, 0.1), (7, 0.3), (11, 0.5)):
        meaning = m.scale.read(noisy(m, "time_mask", level, x)).movedim(1 + m.scale.time, 1).flatten(2)
        hidden = (meaning.abs() < 1e-5).all(2)
        assert torch.equal(hidden, (meaning.abs() < 1e-5).any(2))
        assert (hidden.sum(1) == round(share * 40)).all()
        assert (hidden.int().diff(dim=1).abs().sum(1) <= 2).all()
        starts = hidden.int().argmax(1)
        assert starts.min() == 0 and starts.max() == 40 - round(share * 40)


@pytest.mark.parametrize("m", [IMAGE, PHOTO, CLIP, STFT], ids=lambda m: m.name)
def test_occlusion_is_a_rectangle_of_a_share_of_each_side(m: Modality) -> None:
    x = content(m, 40) + (0 if m.kind == "audio" else 0.01)
    height, width = m.shape[-2:]
    for level, share in ((3, 0.1), (7, 0.3), (11, 0.5)):
        y = noisy(m, "occlusion", level, x)
        hidden = (y != x).reshape(40, -1, height, width)
        assert torch.equal(hidden.all(1), hidden.any(1))  # in all channels and frames
        assert (hidden[:, 0].any(2).sum(1) == round(share * height)).all()
        assert (hidden[:, 0].any(1).sum(1) == round(share * width)).all()
        assert (hidden[:, 0].sum((1, 2)) == round(share * height) * round(share * width)).all()
        assert m.scale.read(y)[y != x].abs().max() < 1e-6


def test_noise_of_a_higher_level_is_the_same_pattern_louder() -> None:
    """So that a curve over the levels is one of the level alone."""
    x = torch.full((3, *IMAGE.shape), 0.5)
    two, four = (noisy(IMAGE, "gaussian", level, x) - x for level in (2, 4))
    assert torch.allclose(4 * two, four, atol=1e-5)
    small, large = (noisy(IMAGE, "salt_and_pepper", level, x) != x for level in (4, 9))
    assert (small <= large).all() and small.sum() < large.sum()


def test_a_scale_is_read_and_written() -> None:
    x = torch.rand(2, 2, 3, 5, 4)
    assert torch.allclose(IMAGENET.write(IMAGENET.read(x)), x, atol=1e-6)
    assert torch.allclose(IMAGENET.read(x)[:, :, 1], x[:, :, 1] * 0.224 + 0.456, atol=1e-6)
    front = LogMel(24, 12)
    wave = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    x = torch.from_numpy(front.prepare(wave))
    assert torch.allclose(front.scale.read(x), x * 2 * 4.5689974 - 4.2677393) and front.scale.time == 0


# ------------------------------------------------------------------------------------------------- levels in training


@quick
@given(st.integers(1, 400), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_exactly_the_clean_share_is_clean(n: int, m: int, seed: int, share: float) -> None:
    """Invariant 11. Levels from 2 on, so that no row is clean by chance."""
    levels = TrainingNoise(clean_share=share, levels=range(2, 12)).levels(n, [True] * m, seed)
    assert levels.shape == (n, m) and levels.min() >= 1 and levels.max() <= 11
    assert int((levels == 1).all(1).sum()) == int((levels == 1).any(1).sum()) == math.floor(n * share)


def test_levels_have_the_distribution_of_udml() -> None:
    """P(1) = 0.545, of the others 0.0455 each, both clean 0.504, mean 3.5 (docs/reference/udml.md §1.4); modalities
    independent.
    """
    noise = TrainingNoise()
    levels = noise.levels(200_000, [True, True], 0)
    shares = torch.bincount(levels[:, 0], minlength=12)[1:] / len(levels)
    assert torch.allclose(shares, torch.tensor([0.5 + 0.5 / 11, *[0.5 / 11] * 10]), atol=0.003)
    assert float((levels == 1).all(1).float().mean()) == pytest.approx(0.504, abs=0.003)
    assert float(levels.float().mean()) == pytest.approx(3.5, abs=0.02)
    present = levels[(levels > 1).any(1)].double()
    assert abs(np.corrcoef(present.T)[0, 1]) < 0.03
    assert torch.equal(noise.levels(500, [True, True], 0, 0), noise.levels(500, [True, True], 0, 9))
    assert not torch.equal(noise.levels(500, [True, True], 0), noise.levels(500, [True, True], 1))
    redrawn = TrainingNoise(redraw=True)
    assert not torch.equal(redrawn.levels(500, [True], 0, 0), redrawn.levels(500, [True], 0, 1))
    late = TrainingNoise(start_epoch=50)
    assert (late.levels(500, [True, True], 0, 49) == 1).all() and (late.levels(500, [True, True], 0, 50) > 1).any()
    assert (noise.levels(500, [True, False], 0)[:, 1] == 1).all()


KINDS = {m.name: m.kind for m in (IMAGE, TEXT, STFT)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": "gausian"}, r"unknown noise 'gausian'; did you mean 'gaussian'\?"),
        ({"levels": [2, 12]}, "noise level '12' is no whole number from 1"),
        ({"levels": [True]}, "noise level 'True'"),
        ({"levels": []}, "levels is empty"),
        ({"clean_share": 1.5}, r"clean_share=1.5 is outside \[0, 1\]"),
        ({"start_epoch": -1}, "start_epoch=-1: must be 0 or more"),
        ({"modalities": ["img"]}, "there is no 'img', only image, text, audio"),
        ({"modalities": ["text"]}, "modality 'text' is text; leave that modality out"),
        ({"operator": "time_mask", "modalities": ["image"]}, "image takes gaussian, salt_and_pepper"),
    ],
)
def test_training_noise_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingNoise(**arguments).hits(KINDS)


def test_training_noise_hits_what_it_is_for() -> None:
    assert TrainingNoise().hits(KINDS) == [True, False, True]
    assert TrainingNoise("time_mask").hits(KINDS) == [False, False, True]
    assert TrainingNoise(modalities=["audio"]).hits(KINDS) == [False, False, True]
    with pytest.raises(UserError, match="is for audio, series, the data set has text"):
        TrainingNoise("time_mask").hits({"t": "text"})


@pytest.fixture
def tiny(tmp_path: Path) -> MultimodalDataModule:
    data = TinyTables(str(tmp_path / "store"), batch_size=16)
    data.prepare()
    return data


def test_training_batches_carry_their_levels(tiny: MultimodalDataModule) -> None:
    """Half the rows as they are, the others with the noise of their level; the same in any order of rows and for any
    number of processes, which is what a resumed run needs; another pattern each epoch."""
    noise = TrainingNoise(start_epoch=1)
    whole = tiny.rows("train", np.arange(96))
    levels = noise.levels(96, [True, True], tiny.seed, 1)

    def of(epoch: int, **arguments: Any) -> list[Batch]:
        loader = tiny.loader("train", train=True, noise=noise, **arguments)
        loader.set_epoch(epoch)
        return list(loader)

    seen = {}
    for batch in of(1):
        assert batch.noise_level is not None and batch.noise_level.dtype == torch.float32
        assert torch.equal(batch.noise_level.long(), levels[batch.index])
        for column, name in enumerate(("img", "tabular")):
            clean = levels[batch.index, column] == 1
            same = (batch.inputs[name] == whole.inputs[name][batch.index]).flatten(1).all(1)
            assert torch.equal(same, clean)
        seen |= {int(i): x for i, x in zip(batch.index, batch.inputs["img"])}
    assert (levels == 1).all(1).sum() >= 48 and len(seen) == 96
    again = [b for rank in range(2) for b in of(1, rank=rank, world_size=2, batch_size=7)]
    for batch in again:
        for i, x in zip(batch.index, batch.inputs["img"]):
            assert torch.equal(x, seen[int(i)])
    for batch in of(0):
        assert (batch.noise_level == 1).all() and torch.equal(batch.inputs["img"], whole.inputs["img"][batch.index])
    later = {int(i): x for batch in of(2) for i, x in zip(batch.index, batch.inputs["img"])}
    assert all(torch.equal(later[i], seen[i]) == (levels[i, 0] == 1) for i in seen)
    assert next(iter(tiny.loader("train", train=True))).noise_level is None


# ---------------------------------------------------------------------------------------------------------- scenarios


@pytest.mark.parametrize(
    ("spec", "name", "columns"),
    [
        ("noise_gaussian_4_audio", "noise_gaussian_4_audio", [2]),
        ("noise_salt_and_pepper_11_all", "noise_salt_and_pepper_11_all", [0, 1, 2]),
        ("noise_gaussian_2_1", "noise_gaussian_2_1", [1]),
        ("noise_gaussian_2_02", "noise_gaussian_2_02", [0, 2]),
        ("noise_gaussian_2_image-2", "noise_gaussian_2_image-2", [0, 2]),
        ("noise_gaussian_2_all+random_0.60", "noise_gaussian_2_all+random_0.6", [0, 1, 2]),
        ("noise_gaussian_2_all+none", "noise_gaussian_2_all", [0, 1, 2]),
        ({"kind": "noise", "level": 3}, "noise_gaussian_3_all", [0, 1, 2]),
        (
            {"kind": "noise", "operator": "occlusion", "level": 3, "modalities": ["audio", 0], "missing": "whole_1"},
            "noise_occlusion_3_audio-0+whole_1",
            [0, 2],
        ),
    ],
)
def test_a_scenario_from_its_name_or_mapping(spec: Any, name: str, columns: list[int]) -> None:
    scenario = parse_scenario(spec)
    assert scenario.name == name and parse_scenario(name) == scenario and scenario.noise is not None
    assert scenario.noise.columns(list(KINDS)) == columns
    pattern = name.partition("+")[2]
    assert scenario.kind == (pattern.partition("_")[0] or "none")
    other = parse_scenario(pattern or "none").generate(Rows(50, len(KINDS), 3))
    assert np.array_equal(scenario.generate(Rows(50, len(KINDS), 3)), other)
    assert "+" not in scenario.slug


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noise_gaussian_12_all", "noise level '12' is no whole number from 1"),
        ("noise_gaussian_0_all", "noise level '0'"),
        ("noise_gaussian_2.5_all", "noise level '2.5'"),
        ("noise_gaussian_-1_all", "noise level '-1'"),
        ("noise_gausian_2_all", r"unknown noise 'gausian'; did you mean 'gaussian'\?"),
        ("noise_blur_2_all", "unknown noise 'blur'"),
        ("noise_gaussian_2", "write noise_<operator>_<level>_<modality"),
        ("noise_gaussian_2_tactile", "there is no modality 'tactile', the data set has 0 image, 1 text, 2 audio"),
        ("noise_gaussian_2_7", "there is no modality '7'"),
        ("noise_gaussian_2_all+randum_0.6", "unknown missing scenario 'randum_0.6'"),
        ("noise_gaussian_2_all+noise_gaussian_3_all", "one noise at a time"),
        ({"kind": "noise", "level": 2, "loud": 1}, "unknown key 'loud' for kind noise"),
        ({"kind": "noise"}, "noise level 'None'|write noise_"),
    ],
)
def test_a_bad_scenario_is_one_line(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_scenarios([spec], 3, list(KINDS))
    assert "\n" not in str(error.value)


def test_an_operator_must_fit_the_kind(tiny: MultimodalDataModule) -> None:
    assert Noise("gaussian", 4, "image-audio").levels(KINDS) == (4, 1, 4)
    with pytest.raises(UserError, match=r"noise 'gaussian' is for .* modality 'text' is text; leave that modality out"):
        Noise("gaussian", 4).levels(KINDS)
    with pytest.raises(
        UserError, match="noise 'time_mask' is for audio, series, and modality 'image' is image; image takes"
    ):
        Noise("time_mask", 4, "image").levels(KINDS)
    with pytest.raises(UserError, match="modality 'tabular' is table"):
        tiny.corruption("test", parse_scenario("noise_occlusion_4_all"))


def test_a_split_has_its_own_noise_which_no_mask_changes(tiny: MultimodalDataModule) -> None:
    alone, masked = (tiny.corruption("test", parse_scenario(f"noise_gaussian_4_img{p}")) for p in ("", "+random_0.5"))
    assert alone == masked and alone is not None and alone.levels == (4, 1)
    assert tiny.corruption("val", parse_scenario("noise_gaussian_4_img")) != alone
    batch = tiny.rows("test", np.arange(24))
    loaded = next(iter(tiny.loader("test", parse_scenario("noise_gaussian_4_img+random_0.5"), batch_size=24)))
    assert torch.equal(loaded.inputs["img"], alone(batch).inputs["img"]) and loaded.missing.any(1).all()
    assert torch.equal(loaded.inputs["tabular"], batch.inputs["tabular"])
    assert loaded.noise_level is not None and loaded.noise_level.unique(dim=0).tolist() == [[4.0, 1.0]]


# ------------------------------------------------------------------------------------------------------ whole runs


SMALL = [
    *("model.backbone.training.batch_size=30", "model.backbone.training.max_epochs=1", "imputer=Mean"),
    "stages=[prepare,impute,fit,gaussian,test]",
    "model.comparators=[discard]",
    "model.validation=[whole_0]",
]
SCENARIOS = ["none", "noise_gaussian_1_all", "noise_gaussian_6_m0", "noise_gaussian_11_all+random_0.6", "random_0.6"]


def test_dymo_and_a_baseline_under_noise(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage test of DyMo, and of its backbone, which encodes once: level 1 is clean, each noise is encoded once,
    predictions are those of corrupted rows one by one, and masks say what was done."""
    masked = f"missing.test=[{','.join(SCENARIOS)}]"
    cfg = composed("model=DyMo", *SMALL, masked, "model.noise={levels: [2, 3]}", "missing.val=noise_gaussian_3_all")
    levels: dict[str, list[Tensor]] = {"training": [], "validation": []}
    for step, seen in levels.items():
        original = getattr(DynamicTransformer, f"{step}_step")

        def recording(self, batch, batch_index, original=original, seen=seen):  # type: ignore[no-untyped-def]
            seen.append(batch.noise_level)
            return original(self, batch, batch_index)

        monkeypatch.setattr(DynamicTransformer, f"{step}_step", recording)
    pipeline.run(cfg)
    context = Run(cfg)
    trained = torch.cat(levels["training"])
    assert trained.shape == (60, 5) and (trained.eq(1).all(1).sum(), trained.max()) == (30, 3)
    assert (torch.cat(levels["validation"]) == 3).all()
    frame = pd.read_csv(context.directory / "results.csv")
    assert set(frame.scenario) == set(SCENARIOS)

    folder = context.directory.path
    stems = {name: parse_scenario(name).slug for name in SCENARIOS}
    logits = {name: np.load(folder / f"predictions/{stem}.npz")["logits"] for name, stem in stems.items()}
    assert np.array_equal(logits["none"], logits["noise_gaussian_1_all"])
    assert not np.allclose(logits["none"], logits["noise_gaussian_6_m0"])
    pair, random = (np.load(folder / f"masks/{stems[name]}.npz") for name in SCENARIOS[3:])
    assert np.array_equal(pair["missing"], random["missing"]) and "noise_level" not in random
    assert (pair["noise_level"] == 11).all() and pair["noise_level"].shape == (60, 5)
    about = json.loads((folder / f"masks/{stems['noise_gaussian_6_m0']}.json").read_text())
    assert about["noise"]["operator"] == "gaussian" and about["noise"]["levels"] == {"m0": 6} | dict.fromkeys(
        ("m1", "m2", "m3", "m4"), 1
    )
    hashes = {json.loads((folder / f"masks/{stem}.json").read_text())["sha256_16"] for stem in stems.values()}
    assert len(hashes) == len(stems)
    dymo = context.load_method()
    data = context.data
    for name in SCENARIOS[2:4]:
        corruption = data.corruption("test", parse_scenario(name))
        mask = data.mask("test", parse_scenario(name))
        for row in (0, 17):
            batch = data.rows("test", np.array([row])).replace(missing=torch.from_numpy(mask[[row]]))
            assert corruption is not None
            assert np.allclose(dymo(corruption(batch)).logits.numpy(), logits[name][[row]], atol=1e-4)
    encoded: list[int] = []
    once = TokenPipeline.encode
    monkeypatch.setattr(TokenPipeline, "encode", lambda self, *a: encoded.append(1) or once(self, *a))  # type: ignore[func-returns-value]
    scenarios = [parse_scenario(name) for name in SCENARIOS]
    masks = {s.name: data.mask("test", s) for s in scenarios}
    noise = {s.name: data.corruption("test", s) for s in scenarios}
    predict(dymo.backbone, data.loader("test"), masks, noise=noise, progress=False)
    assert len(encoded) == 4  # none with random_0.6, and each noise


def test_noise_in_the_settings_of_a_run(composed) -> None:
    """A run from before there was noise is still valid; another noise is another run."""
    plain, noised = (
        Run(composed("model=QMF", *more)).fit_settings["model"] for more in ((), ("model.noise={start_epoch: 3}",))
    )
    assert "noise" not in plain and noised["noise"] == {"start_epoch": 3}
    assert Run(composed("model=DyMo", "model.noise={}")).fit_settings["model"]["noise"] == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["missing.test=[noise_gaussian_12_all]"], "noise level '12'"),
        (["missing.test=[noise_gaussian_4_m9]"], "there is no modality 'm9', the data set has 0 m0"),
        (["missing.train=noise_gaussian_4_all"], r"missing.train=noise_gaussian_4_all: .* is model.noise"),
        (["model.validation=[noise_gaussian_4_all]"], "model.validation: noise_gaussian_4_all has noise"),
        (["model.noise={start: 5}"], "model.noise.start: there is no such key, known are operator"),
        (["model.noise={levels: [0]}"], "model.noise.levels: noise level '0'"),
    ],
)
def test_bad_noise_is_one_line_before_any_work(composed, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        validate(composed("model=DyMo", "stages=[fit,test]", *overrides))
    assert "\n" not in str(error.value)


def test_noise_of_another_kind_is_refused_before_data_are_packed(composed, tmp_path: Path) -> None:
    cfg = composed(
        *(
            "model=QMF",
            f"paths.cache={tmp_path / 'none'}",
            "model.use_imputer=false",
            "model.noise={operator: time_mask}",
        ),
        "missing.test=[noise_temporal_blur_3_m1]",
    )
    with pytest.raises(UserError) as error:
        pipeline.run(cfg)
    first, second = str(error.value).splitlines()
    assert "'time_mask' is for audio" in first and "'temporal_blur' is for audio, and modality 'm1' is image" in second
    assert not (tmp_path / "none").exists()


def configure(*overrides: str) -> DictConfig:
    return compose_config(*overrides)


def test_what_a_method_is_built_on_is_trained_with_the_same_noise() -> None:
    cfg = configure("dataset=Digits", "model=DynMM", "model.noise={levels:[3]}")
    parts = Run(cfg).prerequisites
    assert len(parts) == 6
    for part in parts.values():
        noise = build_noise(part.trainable)
        assert noise is not None and noise.chosen == [3]
    clean = Run(configure("dataset=Digits", "model=DynMM")).prerequisites
    assert all(build_noise(part.trainable) is None for part in clean.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same() -> None:
    rows, levels = torch.arange(11), torch.arange(1, 12)
    for m, operator in (pair.values for pair in PAIRS):
        x = content(m, 11)
        local = corrupt(x, m, operator, levels, rows, 0)
        present = corrupt(x.cuda(), m, operator, levels.cuda(), rows.cuda(), 0).cpu()
        assert torch.allclose(local, present, rtol=0, atol=1e-5 if operator.endswith("_blur") else 0), (
            m.name,
            operator,
        )


def test_the_script_of_level_curves_asks_for_what_it_says(tmp_path: Path) -> None:
    """With ``python`` replaced by an echo: every command is understood, and all evaluate the same scenarios."""
    arguments = ["SpokenDigits", "where=audio,all", "levels=4,11", "models=QMF,MAP", "paths.output=here", "seed=0,1"]
    calls = [call[1:] for call in calls_of(tmp_path, "noise_levels.sh", *arguments)]
    assert [c[0] == "--multirun" for c in calls] == [True, True, False]
    assert all("model=DyMo,QMF,MAP" in call for call in calls[:2])
    for call in calls:
        check_overrides([argument for argument in call if argument != "--multirun"])
    tested = {next(a for a in call if a.startswith("missing.test=")) for call in calls[:2]}
    (names,) = (t.removeprefix("missing.test=[").rstrip("]").split(",") for t in tested)
    assert names == ["none", "random_0.4"] + [
        f"noise_gaussian_{level}_{place}{pattern}"
        for place in ("audio", "all")
        for level in (4, 11)
        for pattern in ("", "+random_0.4")
    ]
    assert [("model.noise={operator:gaussian,start_epoch:0}" in call) for call in calls[:2]] == [False, True]
    assert (
        "report.include=['here/SpokenDigits/*/noise_levels/seed*','here/SpokenDigits/*/noise_levels_trained/seed*']"
        in calls[2]
    )
    assert ["model.noise=null" in call for call in calls[:2]] == [True, False], "UDML has noise by itself"
