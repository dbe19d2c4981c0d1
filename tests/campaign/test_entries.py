"""A new stage, reader or decoding function without an entry in the campaign fails here by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.entries import DATASETS, WITH_DEMO, WITHOUT_DEMO
from tests.campaign.loaders import LOADERS
from tests.campaign.tally import STORED, read, table
from tests.campaign.tiny import ORDER
from trainers.run import STAGES

ROOT = Path(__file__).parents[2]
# Calls that hand a file to a library.
DECODERS = {
    "np.load", "torch.load", "pd.read_csv", "Image.open", "safe_open", "safetensors.safe_open", "load_file",
    "zipfile.ZipFile", "yaml.safe_load", "OmegaConf.load", "soundfile.SoundFile", "av.open", "loadmat", "csv.reader",
    "AutoTokenizer.from_pretrained", "BertTokenizer", "json.loads", "pickle.load", "pickle.loads", "np.fromfile",
    "np.genfromtxt", "np.loadtxt", "pd.read_parquet", "pd.read_excel", "pd.read_json", "json.load", "yaml.load",
    "zlib.decompressobj", "gzip.open", "tarfile.open",
}  # fmt: skip
# Functions that read no files of strangers: files that this project wrote in the same run or store (test_damage tries
# those that a later stage uses), values in memory, and files of this repository.
TRUSTED = {
    "datasets.clips.pack",
    "datasets.mimic._make_tables",
    "datasets.missingness.table.stored_ranking",
    "datasets.modality_parts.files.pack",
    "datasets.polymnist_export.write_masks",
    "datasets.readers.images.decode_rows",
    "datasets.spoken_digits._decode",
    "datasets.storage._check_seal",
    "datasets.storage._finish",
    "datasets.storage.meta",
    "models.dymo.critic.load",
    "trainers.fit.merge_metrics",
    "trainers.impute._quality",
    "trainers.predict.interrupted",
    "trainers.predict.report_scores",
    "trainers.published.validation_of",
    "trainers.report.directions.directions",
    "trainers.report.figures._model_jobs",
    "trainers.report.recoveries.read_quality",
    "trainers.report.runs._masked_modalities",
    "trainers.report.runs.config",
    "trainers.report.runs.environment",
    "trainers.report.store.evidence_of",
    "trainers.sweep_jobs._read",
    "trainers.sweep_jobs.sweep",
    "trainers.udml_curves.read_curves",
    "utils.checksums._files",
    "utils.run_directory._read",
    "utils.run_directory.add_to_environment",
    "datasets.description.describe_inputs",
    "datasets.inspection.dialect._records",
    "trainers.bundle.archive",
    "trainers.estimator._composed",
    "trainers.estimator.predictor",
    "trainers.report.store.npz",
    "utils.checksums.digest",
    "utils.run_directory._plain",
    "trainers.cmpt_tables.__init__",
    "trainers.config.compose._blocks",
    "trainers.config.help._options",
    "trainers.config.imputers.fitting_imputers",
    "trainers.report.docs_blocks.provenance",
    "trainers.report.docs_sources._file",
    "trainers.report.evidence.read_manifest",
    "utils.weights.safetensors_content",
}


def decoding_functions() -> Iterator[str]:
    """``module.function`` of every function that calls a decoder."""
    for package in ("datasets", "models", "gaussian_parameter_generation", "trainers", "utils"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if module.startswith("datasets.demo."):  # makers of demo data
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef):
                    calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                    if calls & DECODERS:
                        yield f"{module}.{node.name}"


def test_every_function_that_decodes_a_file_has_an_entry() -> None:
    functions = set(decoding_functions())
    covered = {name for loader in LOADERS.values() for name in loader.covers}
    assert sorted(functions - covered - TRUSTED) == [], "add it to tests/campaign/loaders.py"
    assert sorted((covered | TRUSTED) - functions) == [], "no such function"


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "datasets" / "readers").glob("[!_]*.py")))
def test_every_module_of_readers_has_an_entry(module: str) -> None:
    functions = [name for loader in LOADERS.values() for name in (*loader.covers, f"{loader.read.__module__}.read")]
    covered = {name.split(".")[2] for name in functions if name.startswith("datasets.readers.")}
    without_files = {"spellings", "csv_rows", "csv_table"}  # cells of tables that csv_files reads
    assert (module in covered) != (module in without_files)


def test_every_data_set_has_an_entry() -> None:
    assert sorted([*WITH_DEMO, *WITHOUT_DEMO]) == sorted(DATASETS)


def test_every_stage_has_an_entry() -> None:
    assert sorted(ORDER) == sorted(STAGES)


def test_the_page_shows_the_stored_campaign() -> None:
    """``python -m tests.campaign.tally`` prints the table; the stored campaign tried every file event and reader."""
    rows = read(STORED)
    assert "\n".join(table(rows)) in (ROOT / "docs" / "reliability.md").read_text()
    assert {str(row["place"]) for row in rows if row["kind"] == "hostile file, in a reader"} == set(LOADERS)
    assert sum(int(row["losses"]) for row in rows) == 0
