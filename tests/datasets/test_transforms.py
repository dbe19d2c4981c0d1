"""Augmentation of image + table batches: each row against torchvision, distributions, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from datasets.transforms import (
    ColumnPool,
    ImageForm,
    ImageTransform,
    JointAugmentation,
    augment_images,
    blur,
    crop_boxes,
    jitter_colours,
    luminance,
    resample,
    resize,
)


def images(b: int = 6, side: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_row_has_the_colours_that_torchvision_gives_it() -> None:
    x = images()
    factors = torch.tensor(
        [[0.2, 1.8, 1.0, 0.7, 1.3, 0.5], [1.5, 0.3, 0.9, 1.8, 0.2, 1.1], [0.0, 1.7, 0.4, 1.2, 0.8, 2]]
    )
    order = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2], [2, 0, 1], [0, 2, 1]])
    rows = torch.tensor([True, True, True, True, True, False])
    ours = jitter_colours(x, factors, order, rows)
    operations = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation)
    for i in range(6):
        expected = x[i]
        for op in order[i].tolist() if rows[i] else ():
            expected = operations[op](expected, float(factors[op, i]))
        torch.testing.assert_close(ours[i], expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(luminance(x), V.rgb_to_grayscale(x), atol=1e-6, rtol=1e-6)


def test_each_row_is_blurred_as_torchvision_blurs_it() -> None:
    x, sigma = images(), torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 0.01])
    ours = blur(x, sigma, 9)
    for i in range(6):
        expected = V.gaussian_blur(x[i], [9, 9], [float(sigma[i])] * 2)
        torch.testing.assert_close(ours[i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[5], x[5])


def test_each_row_is_cropped_flipped_and_turned_as_by_torchvision() -> None:
    x = images()
    boxes = torch.tensor(
        [[0, 0, 40, 40], [3, 5, 30, 25], [10, 2, 29, 38], [1, 1, 31, 31], [0, 9, 33, 31], [8, 8, 20, 20]]
    )
    flip = torch.tensor([False, True, False, True, False, True])
    ours = resample(x, boxes, 32, flip, torch.zeros(6))
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        expected = V.resized_crop(x[i], top, left, h, w, [32, 32], antialias=False)
        expected = expected.flip(-1) if flip[i] else expected
        torch.testing.assert_close(ours[i], expected, atol=1e-5, rtol=1e-5)
    angles = torch.tensor([45.0, -45.0, 10.0, 0.0, 90.0, -17.5])
    whole = torch.tensor([[0, 0, 40, 40]]).expand(6, 4)
    turned = resample(x, whole, 40, torch.zeros(6, dtype=torch.bool), angles)
    black = resample(x, whole, 40, torch.zeros(6, dtype=torch.bool), angles, "zeros")
    for i, angle in enumerate(angles.tolist()):
        expected = V.rotate(x[i], angle, interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(black[i], expected, atol=2e-4, rtol=1e-3)
        inside = V.rotate(torch.ones(1, 40, 40), angle, interpolation=v2.InterpolationMode.BILINEAR)[0] > 0.999
        torch.testing.assert_close(turned[i][:, inside], expected[:, inside], atol=2e-4, rtol=1e-3)
        # Outside is the mirror image: nothing dark comes in.
        mirrored = V.rotate(V.pad(x[i], [40] * 4, padding_mode="symmetric"), angle, v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(turned[i], mirrored[:, 40:80, 40:80], atol=2e-4, rtol=1e-3)


def test_what_a_turned_image_shows_beyond_its_edge_is_an_option() -> None:
    plain = {"rotation": 45.0, "colour_rate": 0.0, "grey_rate": 0.0, "blur_rate": 0.0, "crop_scale": (1.0, 1.0)}
    for outside, dark in (("reflection", False), ("zeros", True)):
        a = JointAugmentation(rate=1.0, outside=outside, crop_ratio=(1.0, 1.0), **plain)  # type: ignore[arg-type]
        assert (augment_images(torch.ones(8, 3, 24, 24), 24, a, generator(3)) < 0.5).any() == dark
    with pytest.raises(ValueError, match="outside=wrap: must be reflection or zeros"):
        JointAugmentation(outside="wrap")


def test_the_test_transform_is_the_resize_of_torchvision() -> None:
    x = images(2, 64)
    torch.testing.assert_close(resize(x, 24), V.resize(x, [24, 24], antialias=True))
    assert resize(x, 64) is x
    transform = ImageTransform({"img": ImageForm(24)}, JointAugmentation(), {"tab": ColumnPool(torch.rand(5, 3))})
    table = torch.rand(2, 3)
    out = transform({"img": x, "tab": table}, None)
    torch.testing.assert_close(out["img"], V.resize(x, [24, 24], antialias=True))
    assert out["tab"] is table


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    """Means of area, ratio and corner over 4,000 draws, within five standard errors of torchvision's own 4,000."""
    ours = crop_boxes(4000, 50, 50, (0.6, 1.0), (3 / 4, 4 / 3), generator(1)).double()
    torch.manual_seed(2)
    reference = v2.RandomResizedCrop(32, scale=(0.6, 1.0))
    theirs = torch.tensor(
        [
            [p[k] for k in ("top", "left", "height", "width")]
            for p in (reference.make_params([torch.zeros(1, 50, 50)]) for _ in range(4000))
        ]
    ).double()
    top, left, h, w = ours.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 50).all() and (left + w <= 50).all()
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        a, b = measure(ours), measure(theirs)
        assert abs(a.mean() - b.mean()) < 5 * ((a.var() + b.var()) / 4000).sqrt()
    impossible = crop_boxes(3, 10, 100, (1.0, 1.0), (3 / 4, 4 / 3), generator())
    assert impossible.tolist() == [[0, 43, 10, 13]] * 3, "the largest central crop within the ratios"


def test_corruption_replaces_exactly_k_cells_by_observed_training_values() -> None:
    """DVM: 5 of 17 columns, UKBB: 22 of 75 (docs/reference/datasets.md §4.5, §5.2)."""
    assert int(17 * 0.3) == 5 and int(75 * 0.3) == 22
    n, f = 50, 17
    columns = torch.arange(n)[:, None] + 1000 * torch.arange(f)[None] + 0.5
    gaps = torch.zeros(n, f, dtype=torch.bool)
    gaps[10:, 3] = True
    gaps[:, 7] = True
    pool = ColumnPool(columns, gaps)
    table = torch.full((4000, f), -1.0)
    out = pool.corrupt(table, 5, generator())
    changed = out != -1
    assert set(changed.sum(1).tolist()) <= {4, 5} and not changed[:, 7].any()
    assert (changed.sum(1) == 4).float().mean() == pytest.approx(5 / 17, abs=0.04), "column 7 was drawn and kept"
    rates = changed.float().mean(0)[torch.arange(f) != 7]
    assert (rates - 5 / 17).abs().max() < 5 * (5 / 17 * 12 / 17 / 4000) ** 0.5
    for j in range(f):
        values = out[changed[:, j], j]
        observed = set(columns[~gaps[:, j], j].tolist())
        assert set(values.tolist()) == observed if j != 7 else not len(values), "all observed values come up, no other"


def test_rate_keeps_image_and_table_of_a_row_together() -> None:
    x, table = images(400, 16), torch.full((400, 17), -1.0)
    augmentation = JointAugmentation(rate=0.7, crop_scale=(0.5, 0.8))
    transform = ImageTransform({"img": ImageForm(16)}, augmentation, {"tab": ColumnPool(torch.rand(50, 17))})
    out = transform({"img": x, "tab": table, "other": table}, generator())
    image_changed = (out["img"] != x).flatten(1).any(1)
    table_changed = (out["tab"] != table).any(1)
    assert torch.equal(image_changed, table_changed) and out["other"] is table
    assert image_changed.float().mean() == pytest.approx(0.7, abs=5 * (0.21 / 400) ** 0.5)
    assert out["img"].min() >= 0 and out["img"].max() <= 1 + 1e-6
    again = transform({"img": x, "tab": table}, generator())
    assert torch.equal(out["img"], again["img"]) and torch.equal(out["tab"], again["tab"])
    assert not torch.equal(out["img"], transform({"img": x, "tab": table}, generator(1))["img"])
    untouched = ImageTransform({"img": ImageForm(16)}, JointAugmentation(rate=0.0), transform.pools)
    out = untouched({"img": x, "tab": table}, generator())
    assert torch.equal(out["img"], x) and torch.equal(out["tab"], table)


def test_a_share_of_the_rows_is_turned() -> None:
    """UK Biobank: half of them, as albumentations does where nothing is said."""
    still = {"colour_rate": 0.0, "grey_rate": 0.0, "blur_rate": 0.0, "flip_rate": 0.0, "crop_scale": (1.0, 1.0)}
    augmentation = JointAugmentation(rotation=45.0, rotation_rate=0.5, crop_ratio=(1.0, 1.0), **still)
    x = images(400, 16)
    turned = (augment_images(x, 16, augmentation, generator()) - x).flatten(1).abs().amax(1) > 1e-3
    assert turned.float().mean() == pytest.approx(0.5, abs=5 * (0.25 / 400) ** 0.5)


def test_impossible_settings_are_refused() -> None:
    for bad in ({"rate": 1.5}, {"corruption": -0.1}, {"brightness": 2.0}, {"crop_scale": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            JointAugmentation(**bad)  # type: ignore[arg-type]


def test_single_channel_images_are_augmented_too() -> None:
    x = torch.rand(8, 1, 20, 20, generator=generator())
    pools = {"tab": ColumnPool(torch.rand(9, 4))}
    transform = ImageTransform({"img": ImageForm(16)}, JointAugmentation(rate=1.0, rotation=45), pools)
    out = transform({"img": x, "tab": torch.rand(8, 4)}, generator())["img"]
    assert out.shape == (8, 1, 16, 16) and np.isfinite(out.numpy()).all()
