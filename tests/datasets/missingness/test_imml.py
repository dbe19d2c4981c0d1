"""Missing rates against those of ``imml.ampute.Amputer`` 0.6.0 (MCAR, mutually exclusive, MNAR; it has no MAR).

imml is no dependency of the tests, as it needs cvxpy and control: its counts are stored, and are made again where it is
installed. It takes the fraction p of rows that are incomplete; the marginal rates follow.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from datasets.missingness import Rows, parse_scenario
from tests.datasets.missingness.all_kinds import AllKinds, all_kinds, is_binomial

N = 3000
# (mechanism, M, p) -> rows without each modality, of 3000, with random_state=0
GOLDEN = {
    ("mcar", 3, 0.6): [920, 883, 899],
    ("mem", 3, 0.6): [1200, 1200, 1200],
    ("mnar", 3, 0.6): [866, 934, 934],
    ("mcar", 4, 0.3): [412, 431, 451, 459],
    ("mem", 4, 0.3): [675, 675, 675, 675],
    ("mnar", 4, 0.3): [327, 614, 613, 286],
}


def expected_rate(mechanism: str, m: int, p: float) -> float:
    """Missing rate over all (row, modality) pairs: p times the share that an incomplete row lacks.

    An incomplete row of ``mem`` keeps one modality. Of ``mcar`` it is M fair coins, one of which is turned if all are
    equal, and of ``mnar`` 1 to M - 1 modalities are missing, all equally likely: half on average.
    """
    return p * ((m - 1) / m if mechanism == "mem" else 0.5)


@pytest.mark.parametrize(("mechanism", "m", "p"), GOLDEN)
def test_the_stored_counts_are_those_of_imml(mechanism: str, m: int, p: float) -> None:
    ampute = pytest.importorskip("imml.ampute")
    content = [pd.DataFrame(np.random.default_rng(j).random((N, 2))) for j in range(m)]
    amputed = ampute.Amputer(p=p, mechanism=mechanism, random_state=0).fit_transform(content)
    assert [int(x.isna().all(axis=1).sum()) for x in amputed] == GOLDEN[mechanism, m, p]


@pytest.mark.parametrize(("mechanism", "m", "p"), GOLDEN)
def test_marginal_rates_agree_with_those_of_imml(mechanism: str, m: int, p: float) -> None:
    rate = expected_rate(mechanism, m, p)
    counts = GOLDEN[mechanism, m, p]
    # Incomplete rows are exactly p N, and their number of missing modalities varies less than independent coins.
    assert is_binomial(sum(counts), N * m, rate)
    if mechanism == "mem":  # each incomplete row keeps one modality
        others = "_".join(f"{''.join(str(k) for k in range(m) if k != j)}-{p / m!r}" for j in range(m))
        ours = parse_scenario(f"patterns_none-{1 - p!r}_{others}").generate(Rows(N, m, 0))
        assert (ours.sum(1)[ours.any(1)] == m - 1).all()
    else:
        ours = parse_scenario({"kind": "rates", "rates": [rate] * m}).generate(Rows(N, m, 0))
    for j in range(m):
        assert is_binomial(int(ours[:, j].sum()), N, rate)
        assert mechanism == "mnar" or is_binomial(counts[j], N, rate)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AllKinds:
    return all_kinds(tmp_path_factory.mktemp("kinds"), N)


@pytest.mark.parametrize("name", ["mnar_content", "mnar_class", "mar_0"])
def test_logistic_mechanisms_have_the_same_marginal_rates(data: AllKinds, name: str) -> None:
    """MNAR of imml hides sets of modalities that have nothing to do with their content: only rates compare."""
    rate = expected_rate("mnar", 6, 0.6)
    mask = data.mask("test", parse_scenario(f"{name}_{rate}"))
    observed = mask[:, 1:] if name == "mar_0" else mask
    # Modalities of a row depend on each other, so the bound is over rows (Hoeffding).
    assert abs(observed.mean() - rate) < np.sqrt(np.log(2e6) / (2 * N))
