"""Splits and folds of rows: stratified, grouped, seeded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError


def draw_split(
    n: int,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    fractions: Sequence[float],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Row numbers of disjoint parts, each sorted.

    Args:
        labels: (N,) to keep the class shares in every part; a group counts with its commonest label. None = do not.
        groups: (N,), rows of one value stay together; the fractions are then of groups. None = every row is its own.
        fractions: of the parts; they add up to 1.

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
    wanted = [f for f in fractions if f > 0]
    rest, parts = np.arange(len(units)), []
    remaining = 1.0
    for fraction in wanted[:-1]:
        size = round(len(rest) * fraction / remaining)
        remaining -= fraction
        strata = None if unit_labels is None else unit_labels[rest]
        try:
            part, rest = train_test_split(
                rest, train_size=size, test_size=len(rest) - size, stratify=strata, random_state=seed
            )
        except ValueError as error:
            counts = np.bincount(unit_labels) if unit_labels is not None else np.zeros(1, dtype=np.int64)
            rare = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
            what = f"class {class_names[rare] if class_names else rare} has {counts[rare]}"
            raise UserError(
                f"cannot divide {len(units)} {'rows' if groups is None else 'groups'} into {len(wanted)} parts with "
                f"the class shares of the whole ({what}; {str(error).splitlines()[0]}): give more rows, leave the "
                "class out, or set dataset.stratify=false"
            ) from None
        parts.append(part)
    chosen = iter([*parts, rest])
    return [np.flatnonzero(np.isin(member, next(chosen))) if f > 0 else np.zeros(0, dtype=np.int64) for f in fractions]


def draw_folds(
    target: np.ndarray, groups: np.ndarray | None, folds: int, validation: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Train, validation and test rows of each fold of a stratified cross-validation; every row is tested once.

    One label: scikit-learn's stratified folds (with groups: its stratified group folds), inside each the same split for
    validation. Several labels: iterative stratification (Sechidis et al., 2011) of the positives, of groups by
    whether any of their rows has the label; an unlabelled cell counts as not positive. (The vision-tabular release
    counts its unlabelled cells, -100, as positives in the stratification, so that its folds differ from ours where
    labels have gaps.)

    Args:
        target: (N,) classes, or (N, C) labels with 1 for a positive.
        groups: (N,), rows of one value stay together; None = every row is its own.
        folds: their number.
        validation: share of the rows (or groups) outside the fold.
        seed: of all draws.

    Returns:
        (train, validation, test) row numbers of each fold, each sorted.

    Raises:
        UserError: fewer rows or groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

    n = len(target)
    units, member = np.unique(groups, return_inverse=True) if groups is not None else (np.arange(n), np.arange(n))
    if len(units) < 2 * folds:
        raise UserError(
            f"{len(units)} {'rows' if groups is None else 'groups'} cannot be divided into {folds} folds: lower "
            "dataset.folds"
        )
    found = []
    if target.ndim == 2:
        # The sequence of its draws is part of the result: this version's is the one that results were made with.
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit

        positive = np.zeros((len(units), target.shape[1]), dtype=np.int64)
        np.maximum.at(positive, member, (target == 1).astype(np.int64))
        outer = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
        for rest, test in outer.split(positive, positive):
            inner = MultilabelStratifiedShuffleSplit(1, test_size=validation, random_state=seed)
            train, val = next(inner.split(positive[rest], positive[rest]))
            found.append((rest[train], rest[val], test))
        return [tuple(np.flatnonzero(np.isin(member, part)) for part in parts) for parts in found]  # type: ignore[misc]
    every = np.arange(n)
    with warnings.catch_warnings():
        # A class rarer than that is in some folds only; whether training has it is checked when the rows are packed.
        warnings.filterwarnings("ignore", message="The least populated class")
        if groups is None:
            for rest, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(every, target):
                try:
                    train, val = train_test_split(rest, test_size=validation, stratify=target[rest], random_state=seed)
                except ValueError as error:
                    raise UserError(
                        f"no stratified validation split of {len(rest)} rows ({str(error).splitlines()[0]}): leave the "
                        "rarest class out, or set dataset.stratify=false"
                    ) from None
                found.append((np.sort(train), np.sort(val), test))
            return found
        for rest, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(every, target, groups):
            parts = max(2, round(1 / validation))
            inner_folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
            train, val = next(inner_folds.split(rest, target[rest], groups[rest]))
            found.append((rest[train], rest[val], test))
    return found


def stratified_split(labels: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Row numbers of disjoint parts with the class shares of the whole, each part sorted.

    Args:
        labels: (N,).
        sizes: rows of each part; they add up to N.

    Raises:
        UserError: a part is smaller than the number of classes, or a class has fewer rows than there are parts.
    """
    from sklearn.model_selection import train_test_split

    rest, parts = np.arange(len(labels)), []
    for size in sizes[:-1]:
        try:
            part, rest = train_test_split(
                rest, train_size=size, test_size=len(rest) - size, stratify=labels[rest], random_state=seed
            )
        except ValueError as error:
            raise UserError(
                f"cannot divide {len(labels)} items into parts of {' and '.join(map(str, sizes))} by class: {error}; "
                "give more items of each class"
            ) from None
        parts.append(np.sort(part))
    return [*parts, np.sort(rest)]
