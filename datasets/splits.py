"""Splits and folds of rows: stratified, grouped, seeded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError, first_line


def draw_split(
    n: int,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    fractions: Sequence[float],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Draw disjoint parts of N rows.

    Args:
        labels: (N,), for equal class shares in every part; a group counts with its most common label. None = do not
            stratify.
        groups: (N,), rows of one value stay together; the fractions are then of groups. None = no groups.
        fractions: of the parts; they add up to 1.

    Returns:
        Sorted row numbers of every part.

    Raises:
        UserError: a class is too rare to be in every part.
    """
    from sklearn.model_selection import train_test_split

    if groups is None:
        member = units = np.arange(n)
    else:
        units, member = np.unique(groups, return_inverse=True)
    unit_labels = None
    if labels is not None:
        table = np.zeros((len(units), int(labels.max()) + 1), dtype=np.int64)
        np.add.at(table, (member, labels), 1)
        unit_labels = table.argmax(1)
    positive = [f for f in fractions if f > 0]
    left, parts = np.arange(len(units)), []
    remaining = 1.0
    for fraction in positive[:-1]:
        size = round(len(left) * fraction / remaining)
        remaining -= fraction
        strata = None if unit_labels is None else unit_labels[left]
        try:
            part, left = train_test_split(
                left, train_size=size, test_size=len(left) - size, stratify=strata, random_state=seed
            )
        except ValueError as error:
            counts = np.bincount(unit_labels) if unit_labels is not None else np.zeros(1, dtype=np.int64)
            rare = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
            rarest = f"class {class_names[rare] if class_names else rare} has {counts[rare]}"
            raise UserError(
                f"cannot divide {len(units)} {'rows' if groups is None else 'groups'} into {len(positive)} parts with "
                f"the class shares of all rows ({rarest}; {first_line(error)}): give more rows, leave the "
                "class out, or set dataset.stratify=false"
            ) from None
        parts.append(part)
    chosen = iter([*parts, left])
    return [np.flatnonzero(np.isin(member, next(chosen))) if f > 0 else np.zeros(0, dtype=np.int64) for f in fractions]


Fold = tuple[np.ndarray, np.ndarray, np.ndarray]  # sorted training, validation and test rows


def draw_folds(target: np.ndarray, groups: np.ndarray | None, folds: int, validation: float, seed: int) -> list[Fold]:
    """Divide rows into the folds of a stratified cross-validation; every row is tested once.

    One label: scikit-learn's stratified folds (with groups: its stratified group folds), with a validation split of the
    same kind inside every fold. Multi-label: iterative stratification (Sechidis et al., 2011) of the positives, of
    groups by whether any of their rows has the label; an unlabelled cell counts as not positive. (The vision-tabular
    release counts its unlabelled cells, -100, as positives in the stratification, so that its folds differ from ours
    where labels have gaps.)

    Args:
        target: (N,) classes, or (N, C) labels with 1 for a positive.
        groups: (N,), rows of one value stay together; None = no groups.
        folds: number of folds.
        validation: share of the rows (or groups) outside the fold.
        seed: of all draws.

    Raises:
        UserError: fewer rows or groups than folds.
    """
    n_units = len(target) if groups is None else len(np.unique(groups))
    if n_units < 2 * folds:
        raise UserError(
            f"{n_units} {'rows' if groups is None else 'groups'} cannot be divided into {folds} folds: lower "
            "dataset.folds"
        )
    if target.ndim == 2:
        return _multilabel_folds(target == 1, groups, folds, validation, seed)
    with warnings.catch_warnings():
        # A class with fewer rows is absent from some folds; packing checks that training has it.
        warnings.filterwarnings("ignore", message="The least populated class")
        if groups is None:
            return _class_folds(target, folds, validation, seed)
        return _grouped_folds(target, groups, folds, validation, seed)


def _multilabel_folds(
    is_positive: np.ndarray, groups: np.ndarray | None, folds: int, validation: float, seed: int
) -> list[Fold]:
    # The sequence of draws is part of the result: results were made with that of this version.
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit

    n = len(is_positive)
    units, member = np.unique(groups, return_inverse=True) if groups is not None else (np.arange(n), np.arange(n))
    positive = np.zeros((len(units), is_positive.shape[1]), dtype=np.int64)
    np.maximum.at(positive, member, is_positive.astype(np.int64))

    def rows_of(part: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(member, part))

    result = []
    outer = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    for others, test in outer.split(positive, positive):
        inner = MultilabelStratifiedShuffleSplit(1, test_size=validation, random_state=seed)
        train, val = next(inner.split(positive[others], positive[others]))
        result.append((rows_of(others[train]), rows_of(others[val]), rows_of(test)))
    return result


def _class_folds(target: np.ndarray, folds: int, validation: float, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedKFold, train_test_split

    result = []
    outer = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for others, test in outer.split(np.arange(len(target)), target):
        try:
            train, val = train_test_split(others, test_size=validation, stratify=target[others], random_state=seed)
        except ValueError as error:
            raise UserError(
                f"no stratified validation split of {len(others)} rows ({first_line(error)}): leave the "
                "rarest class out, or set dataset.stratify=false"
            ) from None
        result.append((np.sort(train), np.sort(val), test))
    return result


def _grouped_folds(target: np.ndarray, groups: np.ndarray, folds: int, validation: float, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedGroupKFold

    result = []
    outer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for others, test in outer.split(np.arange(len(target)), target, groups):
        inner = StratifiedGroupKFold(max(2, round(1 / validation)), shuffle=True, random_state=seed)
        train, val = next(inner.split(others, target[others], groups[others]))
        result.append((others[train], others[val], test))
    return result


def stratified_split(labels: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draw disjoint parts with the class shares of all rows.

    Args:
        labels: (N,).
        sizes: rows per part; they add up to N.

    Returns:
        Sorted row numbers of every part.

    Raises:
        UserError: a part has fewer rows than there are classes, or a class fewer rows than there are parts.
    """
    from sklearn.model_selection import train_test_split

    left, parts = np.arange(len(labels)), []
    for size in sizes[:-1]:
        try:
            part, left = train_test_split(
                left, train_size=size, test_size=len(left) - size, stratify=labels[left], random_state=seed
            )
        except ValueError as error:
            raise UserError(
                f"cannot divide {len(labels)} items into parts of {' and '.join(map(str, sizes))} by class: {error}; "
                "give more items of each class"
            ) from None
        parts.append(np.sort(part))
    return [*parts, np.sort(left)]
