"""Float32 on a device equals the CPU, bfloat16 is close, and the host waits for nothing within selection and training.

Every test runs on the simulated device (:mod:`tests.simulated_device`), which takes the way of a GPU through the code,
and with ``-m gpu`` on a real one, which alone shows the rounding and all waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.batch import Batch
from gaussian_parameter_generation.estimate import estimate
from models.baselines.concat import MultimodalConcat
from models.baselines.masks import TrainingMasks
from models.baselines.moddrop import ModDrop
from models.dymo.dynamic_transformer import DynamicTransformer, rows_that_fit
from models.dymo.gaussian import GaussianParameters
from models.dymo.lattice import COMPARATORS
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE, DISTANCE_METRICS, EUCLIDEAN
from models.dymo.selection import Selection, select
from models.encoders.convolutional import PolyMNISTEncoder
from models.encoders.pooled import PooledEncoder
from models.imputers.mopoe import MoPoE
from models.imputers.mopoe_networks import ImageDecoder, ImageEncoder
from tests.networks import CLASSES, class_batch, modalities, polymnist_model, random_masks
from tests.simulated_device import DEVICE, Simulated, SimulatedDevice
from trainers.artefacts import Artefacts
from trainers.config.build import set_float32_precision
from trainers.config.checks.settings import FLOAT32_PRECISIONS, check_trainer_settings
from trainers.config.compose import compose_config
from trainers.prediction import predict, scenario_batches
from utils.transfer import to_device

ROWS = 24
HAS_GPU = torch.cuda.is_available()
# The CPU and a GPU sum in other orders, over at most 1,152 terms in one layer and through seven of them. Another class,
# subset or mask changes a logit by more than a hundredth.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
# Of rewards, which are quotients of logarithms of probabilities near 1.
REWARDS = {"rtol": 1e-3, "atol": 1e-3}
BFLOAT16 = {"rtol": 1e-2, "atol": 1e-2}  # 8 bits of mantissa: 2^-8 per layer


class Device:
    """Where a test runs.

    Args:
        simulated: None = the GPU.
    """

    def __init__(self, simulated: SimulatedDevice | None) -> None:
        self.simulated = simulated
        self.device = torch.device("cuda") if simulated is None else DEVICE

    def move(self, batch: Batch) -> Batch:
        return batch.to(self.device)

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Fail where the host waits for the device."""
        if self.simulated is None:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
            return
        self.simulated.waits.clear()
        yield
        assert not self.simulated.waits


def host(x: Tensor) -> Tensor:
    return x.detach().inner if isinstance(x, Simulated) else x.detach().cpu()


@pytest.fixture(
    params=[
        "simulated",
        pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU")]),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    parts_of_dymo(COSINE), parts_of_dymo(EUCLIDEAN)  # once, on the CPU
    if request.param == "simulated":
        with SimulatedDevice() as simulated:
            yield Device(simulated)
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # convolutions have 10 bits of mantissa otherwise
    yield Device(None)
    torch.backends.cudnn.allow_tf32 = before


def mopoe(latent: int = 8) -> MoPoE:
    torch.manual_seed(0)
    views = modalities(5)
    encoders = {m.name: ImageEncoder(latent=latent, hidden=16, width=4) for m in views}
    return MoPoE(views, encoders, {m.name: ImageDecoder(latent=latent, width=4) for m in views}, latent=latent)


def moddrop() -> ModDrop:
    torch.manual_seed(0)
    views = modalities(5)
    encoders = {m.name: PolyMNISTEncoder(width=32) for m in views}
    return ModDrop(views, CLASSES, encoders, width=32, masks=TrainingMasks("bernoulli"))


def concat() -> MultimodalConcat:
    """A method on one vector per modality."""
    torch.manual_seed(0)
    views = modalities(5)
    encoders = {m.name: PooledEncoder(PolyMNISTEncoder(width=8), 16) for m in views}
    return MultimodalConcat(views, CLASSES, encoders, masks=TrainingMasks("bernoulli"))


@cache
def parts_of_dymo(metric: str) -> tuple[DynamicTransformer, GaussianParameters]:
    model = polymnist_model(width=32, projection=32, distance_metric=metric)
    for p in model.parameters():
        p.data.mul_(2 if p.ndim > 1 else 1)  # features that differ, so that rounding turns no decision
    return model, estimate(model, [class_batch(100, 0.15, seed=2)], progress=False)


def dymo(metric: str, device: torch.device, comparators: Sequence[str] = ()) -> DyMo:
    model, parameters = (deepcopy(part).to(device) for part in parts_of_dymo(metric))
    return DyMo(model, mopoe().move_to(device), parameters, comparators=comparators)


METHODS: dict[str, Callable[[], Any]] = {
    "DynamicTransformer": lambda: polymnist_model(width=32, projection=32),
    "ModDrop": moddrop,
    "Multimodal_CONCAT": concat,
    "MoPoE": mopoe,
}


def ready(method: str, device: torch.device) -> Any:
    """A method in training mode, without a trainer."""
    module = METHODS[method]().to(device).train()
    module.log = module.log_dict = lambda *_, **__: None
    if isinstance(module, DynamicTransformer):
        module.on_train_epoch_start()
    return module


def masks() -> dict[str, Any]:
    return {f"mask{seed}": random_masks(ROWS, 5, seed).numpy() for seed in (0, 1)}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_waits_for_nothing(method: str, device: Device) -> None:
    module = ready(method, device.device)
    optimizer = torch.optim.Adam(module.parameters(), fused=device.simulated is None)
    batch = device.move(class_batch(ROWS, 0.3, seed=3))
    for is_measured in (False, True):  # the first step loads kernels
        with device.no_waiting() if is_measured else nullcontext():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()


def test_selection_with_all_comparators_waits_for_nothing(device: Device) -> None:
    """Where the masks were made on the host, as in stage test."""
    method = dymo(COSINE, device.device, COMPARATORS)
    batch = device.move(class_batch(ROWS, 0.3, seed=3))
    batch.index = to_device(torch.arange(ROWS), device.device, is_remembered=True)
    method.predict_scenarios(batch, scenario_batches(batch, masks(), {}))
    with device.no_waiting():
        method.predict_scenarios(batch, scenario_batches(batch, masks(), {}))


def test_a_batch_of_stage_test_waits_once(device: Device) -> None:
    method = dymo(COSINE, device.device, ("discard",))
    batch = device.move(class_batch(ROWS, 0.3, seed=3))
    batch.index = to_device(torch.arange(ROWS), device.device, is_remembered=True)
    if device.simulated is not None:
        device.simulated.waits.clear()
    outputs = predict(method, [batch], masks(), progress=False)
    assert set(outputs) == {"", "discard"} and outputs[""]["mask0"]["logits"].shape == (ROWS, CLASSES)
    if device.simulated is not None:
        assert device.simulated.waits == ["aten._to_copy.default"]


@pytest.mark.parametrize("metric", DISTANCE_METRICS)
def test_selection_equals_that_of_the_cpu(metric: str, device: Device) -> None:
    selections = []
    batch = class_batch(ROWS, 0.3, seed=3)
    missing = random_masks(ROWS, 5, seed=0)
    for place in (torch.device("cpu"), device.device):
        method = dymo(metric, place)
        inputs = {name: to_device(x, place) for name, x in batch.inputs.items()}
        selections.append(select(method.scorer(), method.backbone.encode(inputs), to_device(missing, place)))
    expected, actual = selections
    assert (expected.accepted >= 0).any() and expected.final_missing.any()
    # Rounding may turn a decision whose reward is next to 0.
    is_decisive = expected.rewards.abs().nan_to_num(nan=1.0).flatten(1).amin(1) > REWARDS["atol"]
    assert is_decisive.sum() > ROWS // 2
    for key in ("logits", "rewards", "final_missing", "accepted"):
        one, other = host(getattr(actual, key)), getattr(expected, key)
        bounds = REWARDS if key == "rewards" else ROUNDING
        torch.testing.assert_close(one[is_decisive], other[is_decisive], equal_nan=True, **bounds)


@pytest.mark.parametrize("is_recoverable", [True, False])
def test_pairs_that_are_not_counted_decide_the_same(is_recoverable: bool) -> None:
    method = dymo(COSINE, torch.device("cpu"))
    tokens, missing = method.backbone.encode(class_batch(60, 0.3, seed=3).inputs), random_masks(60, 5, seed=0)
    unrecoverable = None if is_recoverable else missing & (torch.arange(5) == 2)

    def decide(is_counted: bool) -> Selection:
        options: dict[str, Any] = {"unrecoverable": unrecoverable, "is_path_kept": True, "is_counted": is_counted}
        return select(method.scorer(), tokens, missing, **options)

    expected, actual = decide(True), decide(False)
    assert expected.rewards.isnan().any() and (expected.accepted >= 0).any()
    for one, other in ((actual, expected), (actual.at(0.1), expected.at(0.1))):
        for key in ("logits", "rewards", "final_missing", "accepted"):
            torch.testing.assert_close(getattr(one, key), getattr(other, key), equal_nan=True, **ROUNDING)


@pytest.mark.parametrize("metric", DISTANCE_METRICS)
def test_gaussian_parameters_equal_those_of_the_cpu(metric: str, device: Device) -> None:
    batch = class_batch(40, 0.15, seed=2)
    model = polymnist_model(width=32, projection=32, distance_metric=metric)
    expected = estimate(model, [batch], progress=False)
    actual = estimate(model.to(device.device), [device.move(batch)], progress=False)
    for key in ("prototypes", "sigma", "overall"):
        torch.testing.assert_close(host(getattr(actual, key)), getattr(expected, key), **ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_and_its_gradients_equal_those_of_the_cpu(
    method: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", lambda x: to_device(noise, x.device))  # what MoPoE draws on the device
    losses, gradients = [], []
    for place in (torch.device("cpu"), device.device):
        module = ready(method, place)
        loss = module.training_step(class_batch(ROWS, 0.3, seed=3).to(place), 0)
        loss.backward()
        losses.append(host(loss))
        gradients.append({name: host(p.grad) for name, p in module.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], **ROUNDING)
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-3 * scale + 1e-7, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_in_bfloat16_is_close(method: str) -> None:
    losses = []
    for is_mixed in (False, True):
        module = ready(method, torch.device("cuda"))
        torch.manual_seed(0)
        with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed):
            losses.append(host(module.training_step(class_batch(ROWS, 0.3, seed=3).to("cuda"), 0)))
    torch.testing.assert_close(losses[1], losses[0], **BFLOAT16)


def test_the_precision_of_float32_is_a_setting_of_gpus_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_float32_precision("medium", torch.device("cpu"))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
        for name in FLOAT32_PRECISIONS:
            set_float32_precision(name, torch.device("cuda"))
            assert torch.get_float32_matmul_precision() == name
            assert torch.backends.cudnn.allow_tf32 == (name != "highest")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    (problem,) = check_trainer_settings(compose_config("trainer.float32_precision=tf32"))
    assert "trainer.float32_precision=tf32" in problem
    assert compose_config("trainer=gpu").trainer.float32_precision == "highest"


@pytest.mark.parametrize(
    ("gibibytes", "tokens", "width", "expected"),
    [
        (80, 21, 128, 2**14),  # PolyMNIST: 168 KiB per row, 2.6 GiB of 10
        (24, 67, 512, 2**10),  # 2.1 MiB per row, 1,465 of them in 3 GiB
        (1, 67, 512, 2**8),  # not below
    ],
)
def test_a_fusion_call_takes_an_eighth_of_the_memory(gibibytes: int, tokens: int, width: int, expected: int) -> None:
    assert rows_that_fit(gibibytes * 2**30 // 8, tokens, width) == expected


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        ("1", {}, 0),
        ("-1", {"LOCAL_RANK": "3"}, 3),
        ("4", {"SLURM_LOCALID": "2"}, 2),
        ("[2]", {}, 2),
        ("[1,3]", {"LOCAL_RANK": "1"}, 3),
        ("'1,3'", {"LOCAL_RANK": "1"}, 3),
    ],
)
def test_every_stage_uses_the_gpu_of_its_process(
    devices: str, environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = compose_config("trainer=gpu", f"trainer.devices={devices}")
    assert Artefacts(cfg).device == torch.device("cuda", expected)


@pytest.mark.parametrize("setting", ["trainer.precision=bf16-mixed", "trainer.float32_precision=high"])
def test_what_was_trained_in_another_precision_is_not_taken_for_this(setting: str) -> None:
    plain, other = (Artefacts(compose_config("dataset=Digits", "model=DyMo", *more)) for more in ((), (setting,)))
    assert plain.fit_settings != other.fit_settings and plain.imputer_settings != other.imputer_settings
    assert "float32_precision" not in plain.fit_settings, "older runs did not note it"
    assert not {"float32_precision", "precision"} & plain.imputer_settings.keys()
