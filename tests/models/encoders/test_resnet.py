"""The ResNet encoder: size, tokens, and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from datasets.batch import Modality
from models.dymo.dynamic_transformer import DynamicTransformer
from models.encoders.resnet import ResNetEncoder
from tests.tolerances import assert_close_sums
from trainers.config.validate import validate
from utils.errors import UserError


def test_size_and_tokens_of_the_published_encoder() -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder()
        theirs = torchvision.models.resnet50()
        assert encoder(torch.empty(2, 3, 128, 128)).shape == (2, 16, 2048)
        assert encoder(torch.empty(1, 3, 96, 96)).shape[1] == ResNetEncoder(image_size=96).tokens == 9
        assert encoder(torch.empty(1, 3, 70, 70)).shape[1] == ResNetEncoder(image_size=70).tokens == 9
    assert (encoder.tokens, encoder.width) == (16, 2048)
    assert sum(p.numel() for p in encoder.parameters()) == 23_508_032
    assert list(encoder.state_dict()) == [k for k in theirs.state_dict() if not k.startswith("fc.")]
    assert len(encoder.state_dict()) == 318


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A ResNet-18 whose batch norms have seen something."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    network.train()(torch.rand(4, 3, 64, 64))
    return network.eval()


def same(encoder: ResNetEncoder, network: nn.Module) -> bool:
    state = network.state_dict()
    return all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


LAYOUTS = {
    "torchvision": lambda state: state,
    "without fc": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "TIP": lambda state: {
        "epoch": 499,
        "state_dict": {f"encoder_imaging.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        | {"encoder_tabular.cls_token": torch.zeros(1, 1, 4)},
    },
    "DyMo": lambda state: {
        "state_dict": {f"m_encoders.img.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        | {"prototypes": torch.zeros(2, 3)}
    },
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "safetensors"])
def test_weights_of_a_file(network: nn.Module, tmp_path: Path, layout: str) -> None:
    path = tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pth")
    if layout == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(LAYOUTS[layout](network.state_dict()), path)
    encoder = ResNetEncoder("resnet18", str(path), image_size=64).eval()
    assert same(encoder, network)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = nn.Sequential(*list(network.children())[:-2])(x)  # (2, 512, 2, 2)
        tokens = encoder(x)
    assert tokens.shape == (2, encoder.tokens, encoder.width) == (2, 4, 512)
    for token, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert_close_sums(tokens[:, token], features[:, :, row, column])
    # The backbone's own start leaves them alone.
    views = [Modality("img", "image", (3, 64, 64))]
    DynamicTransformer(views, 2, {"img": encoder}, width=8, heads=2, projection=4)
    assert same(encoder, network)


def test_imagenet_weights_come_from_the_cache(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a download would have left them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    file = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    assert same(ResNetEncoder("resnet18", "imagenet"), network)


def test_imagenet_weights_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"ImageNet weights of resnet18 cannot be downloaded .*weights=none"):
        ResNetEncoder("resnet18", "imagenet")


def test_weights_of_another_network_are_refused(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth does not fit the resnet34"):
        ResNetEncoder("resnet34", str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="there is no checkpoint"):
        ResNetEncoder("resnet18", str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match="must be one of resnet18"):
        ResNetEncoder("resnet9000")


def test_spectrograms_and_clips(network: nn.Module) -> None:
    """A spectrogram is an image of one channel; the tokens of a clip are the mean of those of its frames."""
    torch.manual_seed(0)
    heard = ResNetEncoder("resnet18", image_size=[70, 40], channels=1).eval()
    sound = torch.rand(2, 70, 40)
    with torch.no_grad():
        tokens = heard(sound)
        assert tokens.shape == (2, heard.tokens, 512) and heard.tokens == 3 * 2
        assert torch.equal(tokens, heard(sound[:, None]))
    # UDML's trunk, docs/reference/udml.md §1.3: 11,697,600 less its two heads of 263,680.
    assert sum(p.numel() for p in heard.parameters()) == 11_170_240
    seen = ResNetEncoder("resnet18", image_size=32).eval()
    clip = torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        expected = (seen(clip[:, 0]) + seen(clip[:, 1]) + seen(clip[:, 2])) / 3
        assert_close_sums(seen(clip), expected)
    with pytest.raises(ValueError, match="weights=imagenet are for 3 channels, not 1"):
        ResNetEncoder("resnet18", "imagenet", channels=1)


@pytest.mark.parametrize("key", ["dataset.encoders.img", "dataset.encoders.tabular", "imputer.image_encoder"])
def test_absent_initial_weights_are_refused_before_any_work(composed, key: str) -> None:
    """Not only when the model is built, after the imputer was trained."""
    options = ["dataset=DVM", "imputer=TIP"]
    validate(composed(*options, tiny=False))
    with pytest.raises(UserError, match=rf"^{key}\.weights: there is no file absent\.pt: give one, or none$"):
        validate(composed(*options, f"{key}.weights=absent.pt", tiny=False))
