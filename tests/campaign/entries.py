"""What the campaign has to try: stages, files of a run, and functions that read files of users.

A stage, a file or a reader that is not named here fails a test by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests.campaign.tiny import TinyRun, contents, plain
from trainers.config.compose import CONFIGS
from trainers.loading import Run
from trainers.predictor import load
from trainers.report.runs import finished_directories, gather, load_sorted, modality_names, stored_rate
from trainers.report.verification import verify_results

# ------------------------------------------------------------------------------------------------------ files of a run


@dataclass(frozen=True)
class Artefact:
    """A kind of file that a run reads.

    Attributes:
        pattern: of the relative path.
        read: everything that depends on it, comparable with ``==``.
        writes: reading can change the run.
    """

    kind: str
    pattern: str
    read: Callable[[TinyRun, Path], object]
    writes: bool = False


def method(tiny: TinyRun, place: Path) -> object:
    """Weights of the method and the Gaussian parameters."""
    run = Run(tiny.config(place, ["test"]))
    model = run.load_model()
    parameters = run.load_parameters(model.as_backbone(str(run.distance_metric)))
    imputer = run.load_imputer()
    tensors = {name: getattr(parameters, name) for name in ("prototypes", "sigma", "overall", "subsets")}
    return plain(model.state_dict()), plain(imputer.state_dict()), plain(tensors)  # type: ignore[attr-defined]


def store(tiny: TinyRun, place: Path) -> object:
    """Arrays of all splits, and what the inputs mean."""
    data = Run(tiny.config(place, ["test"])).data
    data.prepare_data()
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    read = {name: {m: part.read(m).numpy().tobytes() for m in data.modality_names} for name, part in splits.items()}
    names = {name: part.names() for name, part in splits.items()}
    targets = {name: part.read("target").tolist() for name, part in splits.items()}
    missing = {name: part.read("table_missing").tolist() for name, part in splits.items() if part.has("table_missing")}
    return read, names, targets, missing, data.describe_inputs()


def reported(tiny: TinyRun, place: Path) -> object:
    """Results, masks and predictions as the report reads them."""
    runs, _ = gather(finished_directories([str(place / "out" / "Parts" / "*" / "*" / "seed*")]))
    verify_results(runs)
    rates, scores = {}, {}
    for run in runs:
        for name in run.frame["scenario"].unique():
            rates[name] = stored_rate(run, name)
            file = run.predictions(run.model, name)
            scores[name] = {key: value.tobytes() for key, value in load_sorted(file, "logits", "target").items()}
    return runs[0].frame.to_csv(), rates, scores, modality_names(runs)


def again(tiny: TinyRun, place: Path) -> object:
    """What the same command leaves; stages that must run again may."""
    tiny.run(place, "prepare", "impute", "fit", "gaussian", "test")
    return {name: value for name, value in contents(place / "out").items() if name.endswith(("ckpt", "results.csv"))}


def bundle(tiny: TinyRun, place: Path) -> object:
    """Predictions of the folder."""
    return _predictions(tiny, place / "out" / "Parts" / "DyMo_EU" / "default" / "seed0" / "bundle")


def bundle_archive(tiny: TinyRun, place: Path) -> object:
    """Predictions of the ``.zip`` file."""
    return _predictions(tiny, place / "out" / "Parts" / "DyMo_EU" / "default" / "seed0" / "bundle.zip")


def _predictions(tiny: TinyRun, source: Path) -> str:
    frame = pd.read_csv(tiny.csv, dtype=str, keep_default_na=False).head(4)
    return load(source).predict(frame, images=tiny.csv.parent / "photos").to_csv()


TESTED = r"out/Parts/DyMo_EU/default/seed0"
RUN = r"out/Parts/\w+/default/seed0"
ARTEFACTS = (
    Artefact("checkpoint", rf"{RUN.replace('w+', 'w*Transformer_EU')}/checkpoints/best\.ckpt", method),
    Artefact("imputer", rf"{RUN.replace('w+', 'w*TIP')}/checkpoints/best\.ckpt", method),
    Artefact("Gaussian parameters", rf"{RUN}/gaussian_\w+\.safetensors", method),
    Artefact("predictions", rf"{RUN}/predictions/.*\.npz", reported),
    Artefact("masks", rf"{RUN}/masks/.*\.npz", reported),
    Artefact("results.csv", rf"{RUN}/results\.csv", reported),
    Artefact("packed arrays", r"cache/.*\.npy", store),
    Artefact("bundle", rf"{RUN}/bundle/(config\.yaml|data/.*|weights/.*)", bundle),
    Artefact("bundle.zip", rf"{RUN}/bundle\.zip", bundle_archive),
    Artefact("last.ckpt of a finished training", rf"{RUN}/checkpoints/last\.ckpt", again, writes=True),
    Artefact("markers of stages", rf"{RUN}/stages/\w+\.json", again, writes=True),
    Artefact("meta.json of a store", r"cache/.*/meta\.json", store, writes=True),
    Artefact("names beside masks", rf"{RUN}/masks/.*\.json", reported),
    Artefact("bundle.json", rf"{RUN}/bundle/bundle\.json", bundle),
    Artefact("config.yaml, environment.json", rf"{TESTED}/(config\.yaml|environment\.json)", reported),
)
# For people, or written anew by the next stage that needs them.
UNREAD = (
    r"out/predictions\..*",
    rf"{RUN}/(DONE|logs/.*|examples/.*|metrics\.csv|quality\w*\.csv|results_per_class\.csv|selection_validation\.csv)",
    rf"{RUN}/(stages/\.lock|bundle/README\.md)",
    r"out/Parts/(?!DyMo_EU/)\w+/default/seed0/(config\.yaml|environment\.json)",  # of runs without stage test
)

# ------------------------------------------------------------------------------------------------------ data sets

DATASETS = {file.stem: file.read_text() for file in sorted((CONFIGS / "dataset").glob("*.yaml"))}
WITH_DEMO = [name for name, text in DATASETS.items() if "demo_maker" in text]
# Whose files are hostile in other tests.
WITHOUT_DEMO = {
    "Arrays": "readers of modality_parts",
    "ChestXray": "ImageTable",
    "ChestXrayNotes": "ImageText",
    "Digits": "comes with scikit-learn",
    "FromCSV": "readers of modality_parts",
    "ImageTable": "the run of tiny.py",
    "ImageText": "readers of tables, pictures and tokenizers",
    "Infarction": "CAD",
    "PolyMNIST": "readers of PolyMNIST and MNIST",
    "PolyMNIST_hard": "PolyMNIST",
    "SkinLesions": "ImageTable",
    "SmallImageTable": "ImageTable with other encoders",
    "SpokenDigitSeries": "SpokenDigits",
}
