"""Contiguous parts of a table, series, image, sound or clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.base import MultimodalDataModule
from datasets.batch import Modality, unobserved
from datasets.missingness import Rows, mask_hash, parse_scenario
from datasets.missingness.content import normal_scores
from datasets.missingness.segments import Segments
from datasets.scale import Scale
from tests.datasets.missingness.all_kinds import all_kinds, is_binomial
from utils.errors import UserError


@pytest.mark.parametrize("shape", [(20,), (20, 3)])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.32, 1.0])
def test_a_row_misses_one_piece_of_the_named_length_anywhere(shape: tuple[int, ...], rate: float) -> None:
    n = 3000
    modality = Modality("x", "table" if len(shape) == 1 else "series", shape)
    mask = Segments(rate, 1).generate(Rows(n, 20, 5, modality=modality))
    assert mask.shape == (n, *shape)
    steps = mask.reshape(n, 20, -1)
    assert (steps == steps[:, :, :1]).all()  # all channels
    steps = steps[:, :, 0]
    length = round(20 * rate)
    assert (steps.sum(1) == length).all()
    edges = np.abs(np.diff(np.pad(steps, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1)
    assert (edges == (2 if length else 0)).all()  # one piece
    if 0 < length < 20:
        starts = np.bincount(steps.argmax(1), minlength=20)
        positions = 20 - length + 1
        assert not starts[positions:].any()
        assert all(is_binomial(int(count), n, 1 / positions) for count in starts[:positions])


def test_tables_are_marked_and_their_cells_known(tmp_path: Path) -> None:
    data = all_kinds(tmp_path, 200)
    scenario = parse_scenario("segments_1_0.5")
    missing, cells = data.masks("test", scenario)
    assert list(cells) == ["lab"] and (cells["lab"].sum(1) == 2).all()
    assert missing[:, 1].all() and not np.delete(missing, 1, 1).any()
    assert scenario.realised_rate(missing, cells) == 0.5 and scenario.name == "segments_1_0.5"
    assert mask_hash(cells["lab"]) == "2994ae90458bcc5f"  # recorded when the scenario was added
    batch = next(iter(data.loader("train", scenario, train=True, batch_size=32)))
    shown = batch.observed()["lab"]
    assert not shown[batch.feature_missing["lab"]].any() and (batch.feature_missing["lab"].sum(1) == 2).all()


class WithSeries(MultimodalDataModule):
    name = "WithSeries"
    modalities = [Modality("photo", "image", (1, 2, 2)), Modality("heart", "series", (10, 3))]
    class_names = ["a", "b"]

    def fill(self, n: int = 60, gaps: np.ndarray | None = None) -> WithSeries:
        rng = np.random.default_rng(3)
        splits = {}
        for split in ("train", "val", "test"):
            series = rng.normal(size=(n, 10, 3)).astype(np.float32)
            arrays = {"photo": rng.integers(0, 256, (n, 1, 2, 2)).astype(np.uint8), "heart": series}
            if gaps is not None:
                series[gaps] = np.nan
                arrays["heart_missing"] = gaps
            splits[split] = arrays | {"target": rng.integers(0, 2, n)}
        self.store.write(splits, {})
        return self


def test_series_lose_time_steps_on_top_of_what_the_source_lacks(tmp_path: Path) -> None:
    gaps = np.zeros((60, 10, 3), dtype=bool)
    gaps[::2, :, 1] = True
    data = WithSeries(str(tmp_path)).fill(gaps=gaps)
    missing, cells = data.masks("train", parse_scenario("segments_1_0.4"))
    pieces = cells["heart"][1::2]
    assert (pieces == pieces[:, :, :1]).all() and (pieces[:, :, 0].sum(1) == 4).all()
    assert (cells["heart"] >= gaps).all() and missing[:, 1].all() and not missing[:, 0].any()
    for batch in data.loader("train", parse_scenario("segments_1_0.4"), train=True, batch_size=16):
        shown = batch.observed()["heart"]
        assert shown.isfinite().all() and not shown[batch.feature_missing["heart"]].any()
    # Chances depend on the mean of the observed cells, whatever the others hold.
    series = data.split("test").read("heart").numpy()
    means = normal_scores(np.nanmean(series.reshape(60, -1).astype(float), axis=1))
    np.testing.assert_allclose(data._content("test", data.source_gaps("test")).scores(1), means)


IMAGE = Modality("photo", "image", (3, 20, 30))
SOUND = Modality("sound", "audio", (40, 8), scale=Scale(time=0))
SOUND_OF_CHANNELS = Modality("sound", "audio", (1, 8, 40))
CLIP = Modality("clip", "video", (4, 3, 5, 5))


@pytest.mark.parametrize(
    ("modality", "shape", "length", "steps"),
    [(SOUND, (40, 1), 10, 40), (SOUND_OF_CHANNELS, (1, 1, 40), 10, 40), (CLIP, (4, 1, 1, 1), 1, 4)],
)
def test_sounds_and_clips_miss_a_piece_of_time(
    modality: Modality, shape: tuple[int, ...], length: int, steps: int
) -> None:
    mask = Segments(0.25, 1).generate(Rows(500, modality.shape[0], 5, modality=modality))
    assert mask.shape == (500, *shape) and np.broadcast_shapes(mask.shape[1:], modality.shape) == modality.shape
    hidden = mask.reshape(500, steps)
    # The same positions as those of a series of this length.
    series = Modality("x", "series", (steps, 1))
    assert np.array_equal(hidden, Segments(0.25, 1).generate(Rows(500, steps, 5, modality=series))[:, :, 0])
    assert (hidden.sum(1) == length).all() and mask.mean() == 0.25


@pytest.mark.parametrize(("rate", "sides"), [(0.0, (0, 0)), (0.3, (11, 16)), (0.25, (10, 15)), (1.0, (20, 30))])
def test_images_miss_a_block_of_the_rate_anywhere(rate: float, sides: tuple[int, int]) -> None:
    n = 4000
    mask = Segments(rate, 0).generate(Rows(n, 3, 5, modality=IMAGE))
    assert mask.shape == (n, 1, 20, 30)
    rows, columns = mask[:, 0].any(2), mask[:, 0].any(1)
    assert np.array_equal(mask[:, 0], rows[:, :, None] & columns[:, None, :])  # a rectangle ...
    for hidden, length, side in ((rows, sides[0], 20), (columns, sides[1], 30)):
        assert (hidden.sum(1) == length).all()
        edges = np.abs(np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1)
        assert (edges == (2 if length else 0)).all()  # ... in one piece ...
        if 0 < length < side:  # ... at any position
            starts = np.bincount(hidden.argmax(1), minlength=side)[: side - length + 1]
            assert all(is_binomial(int(count), n, 1 / len(starts)) for count in starts)
    assert mask.mean() == pytest.approx(rate, abs=0.01)  # 11 * 16 / 600 = 0.293


@pytest.mark.parametrize(("column", "rate"), [(0, 0.5), (4, 0.5), (5, 0.5)])
def test_parts_of_images_sounds_and_clips_are_hidden_in_batches(tmp_path: Path, column: int, rate: float) -> None:
    data = all_kinds(tmp_path, 60)
    scenario, name = parse_scenario(f"segments_{column}_{rate}"), data.modality_names[column]
    missing, cells = data.masks("train", scenario)
    assert list(cells) == [name] and missing[:, column].all() and not np.delete(missing, column, 1).any()
    assert data.realised_rate(scenario, missing, cells) == rate
    whole = data.loader("train").gather(torch.arange(60)).inputs[name]
    batch = data.loader("train", scenario).gather(torch.arange(60))
    hidden = torch.from_numpy(cells[name]).expand_as(whole)
    torch.testing.assert_close(batch.observed()[name], whole.masked_fill(hidden, 0), atol=0, rtol=0)
    assert not unobserved(batch, data.modality_names).any() and hidden.float().mean() == rate


@pytest.mark.parametrize("column", [2, 3])
def test_kinds_that_cannot_be_partly_missing_are_refused_by_name(tmp_path: Path, column: int) -> None:
    data = all_kinds(tmp_path, 30)
    modality = data.modalities[column]
    with pytest.raises(UserError, match=rf"hides parts of '{modality.name}', of kind text: texts differ .* padding"):
        data.masks("test", parse_scenario(f"segments_{column}_0.5"))


def test_impossible_segments_are_refused() -> None:
    for spec, message in (("segments_x_0.5", "'x' is no number"), ("segments_0_1.5", "outside"), ("segments_0", "''")):
        with pytest.raises(UserError, match=message):
            parse_scenario(spec)
    with pytest.raises(UserError, match="there is no modality 9"):
        parse_scenario("segments_9_0.5").check(3)
