"""Arguments that no class takes are named before anything is built."""

from __future__ import annotations

import re

import pytest

from trainers.config.checks.targets import EXAMPLE, target_of
from trainers.config.compose import CONFIGS, compose_config
from trainers.config.validate import validate
from utils.errors import UserError
from utils.signatures import known_arguments


def test_the_arguments_of_every_configured_class_are_known() -> None:
    """A class that takes any keyword would let a misspelled one pass."""
    texts = [file.read_text() for file in sorted(CONFIGS.rglob("*.yaml"))]
    targets = sorted({target for text in texts for target in re.findall(r"_target_: ([\w.]+)", text)})
    assert len(targets) > 100
    targets.remove(EXAMPLE)  # of a user's metric, which checks its arguments when it is built
    unknown = [t for t in targets if known_arguments(target_of({"_target_": t})) is None]
    assert unknown == [f"pytorch_lightning.loggers.{kind}Logger" for kind in ("TensorBoard", "Wandb")]


def test_misspelled_arguments_are_reported_at_once_with_the_nearest_spelling() -> None:
    problems = {
        "model.backbone.module.wdith": "models.dymo.dynamic_transformer.DynamicTransformer takes no 'wdith'; did you "
        "mean 'width'?",
        "model.selector.threshold_": "models.dymo.method.DyMo takes no 'threshold_'",
        "imputer.module.latnet": "models.imputers.mopoe.MoPoE takes no 'latnet'",
        "dataset.encoders.m0.widht": "models.encoders.convolutional.PolyMNISTEncoder takes no 'widht'",
    }
    cfg = compose_config(*(f"+{key}=1" for key in problems))
    with pytest.raises(UserError) as refused:
        validate(cfg)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(problems)
    for line, (key, text) in zip(sorted(lines), sorted(problems.items()), strict=True):
        assert line.startswith(f"{key}: ") and text in line


@pytest.mark.parametrize(
    ("model", "key", "right"),
    [
        ("M3Care", "graph_layer", "graph_layers"),
        ("ModDrop", "shedule", "scheduler"),
        ("MaskedAttention", "plato", "plateau"),
    ],
)
def test_methods_that_pass_keywords_on_name_those_of_their_base(model: str, key: str, right: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.module\.{key}: \S+ takes no '{key}'; did you mean '{right}'\?$"):
        validate(compose_config(f"model={model}", f"+model.module.{key}=1"))
