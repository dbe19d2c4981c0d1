"""Run directories: rates, names, folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.trainers.report.runs import write_run
from trainers.report.runs import FinishedRun, gather, load_arrays, load_sorted
from utils.errors import UserError


def test_old_results_take_the_rate_from_masks_then_predictions_then_the_name(tmp_path, caplog):
    run = write_run(tmp_path, "M3Care", 0)
    ((actual,), _) = gather([run])
    rates = actual.frame.groupby("scenario")["missing_rate"].first()
    arrays = np.load(run / "predictions" / "random_0.4.npz")
    assert rates["random_0.4"] == pytest.approx(arrays["missing"].mean())
    (run / "masks").mkdir()
    np.savez(run / "masks" / "random_0.4.npz", missing=np.eye(3, dtype=bool))
    (run / "predictions" / "random_0.2.npz").unlink()
    (run / "predictions" / "whole_2.npz").unlink()
    ((actual,), _) = gather([run])
    rates = actual.frame.groupby("scenario")["missing_rate"].first()
    assert rates["random_0.4"] == pytest.approx(1 / 3) and rates["random_0.2"] == 0.2 and np.isnan(rates["whole_2"])
    assert "no mask of 'random_0.2'" in caplog.text


def test_names_are_told_apart_and_the_same_rows_refused(tmp_path):
    runs = [write_run(tmp_path / "a", "DyMo", 0, name=name) for name in ("default", "small")]
    actual, _ = gather(runs)
    assert [run.model for run in actual] == ["DyMo [default]", "DyMo [small]"]
    assert set(actual[1].frame["model"]) == {"DyMo [small]" + c for c in ("", "/discard", "/oracle_subset")}
    assert all(run.predictions(m, "none").is_file() for run in actual for m in run.frame["model"])
    copy = write_run(tmp_path / "b", "DyMo", 0, name="small")
    with pytest.raises(UserError, match="both hold PolyMNIST, DyMo"):
        gather([runs[1], copy])


def test_runs_with_and_without_a_fold_have_no_common_mean(tmp_path):
    whole, of_fold = (write_run(tmp_path / str(seed), "DyMo", seed) for seed in (0, 1))
    frame = pd.read_csv(of_fold / "results.csv")
    frame.assign(fold=1).to_csv(of_fold / "results.csv", index=False)
    with pytest.raises(UserError, match=r"PolyMNIST, DyMo: .*seed1 is of a fold and .*seed0 is not") as error:
        gather([whole, of_fold])
    assert "\n" not in str(error.value)
    assert len(gather([of_fold])[0]) == 1


DEEP = ("[" * 200_000, '{"a":' * 100_000, "- " * 50_000, "a: " + "[[], " * 500 + "1" + "]" * 500)


@pytest.mark.parametrize("text", ["a: \x00", "- 1", "a: [", *DEEP], ids=lambda text: text[:6])
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    """LibYAML ends the process where the text is nested too deeply."""
    (run,), _ = gather([write_run(tmp_path, "M3Care", 0)])
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged \(.+\): delete it and run stages=\[test\] again"):
        _ = FinishedRun(run.path, run.frame).config


def test_predictions_without_an_array_or_with_other_rows_are_one_line(tmp_path):
    file = tmp_path / "none.npz"
    np.savez(file, index=np.arange(3), logits=np.zeros((5, 2)))
    with pytest.raises(UserError, match=r"none\.npz is damaged \('logits' has another number of rows\): delete it"):
        load_sorted(file, "logits")
    np.savez(file, logits=np.zeros((5, 2)))
    with pytest.raises(UserError, match=r"none\.npz is damaged \(no 'index' in it\)"):
        load_sorted(file, "logits")
    arrays = load_arrays(file)
    assert "target" not in arrays and arrays.get("target") is None
    with pytest.raises(UserError, match=r"no 'target' in it"):
        arrays["target"]
