"""Another recovery method per modality; ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.imputers.base import Imputer, LearningStage, recover_possible, row_numbers


class Chain(Imputer):
    """Recover each modality by its part, from what is observed. A modality without a part stays missing.

    Args:
        modalities: of the data set.
        parts: modality name -> imputer. Modalities may share one.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights", "parts")
    leaves_unrecoverable: ClassVar[bool] = True

    def __init__(self, modalities: Sequence[Modality], parts: Mapping[str, Imputer]) -> None:
        self.modalities = list(modalities)
        self.parts = {m.name: parts[m.name] for m in modalities if m.name in parts}

    @property
    def labels(self) -> dict[str, Imputer]:
        """The different parts by the name of their first modality."""
        names: dict[int, str] = {}
        for name, part in self.parts.items():
            names.setdefault(id(part), name)
        return {name: self.parts[name] for name in names.values()}

    @property
    def kinds_read(self) -> tuple[str, ...] | None:
        kinds = [part.kinds_read for part in self.parts.values()]
        return None if None in kinds else tuple({kind for some in kinds for kind in some or ()})

    def networks(self) -> list[nn.Module]:
        return [network for part in self.labels.values() for network in part.networks()]

    def replace_part(self, label: str, part: Imputer) -> None:
        """Use another imputer in place of the part with this label."""
        old = self.parts[label]
        self.parts = {name: part if current is old else current for name, current in self.parts.items()}

    def learn(self, stage: LearningStage) -> None:
        stage.assemble(self)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of all parts, ``<label>.<key>``."""
        return self._of_parts(lambda part: part.state_dict())  # type: ignore[attr-defined]

    def recovery_state(self) -> dict[str, Tensor]:
        return self._of_parts(lambda part: part.recovery_state())

    def _of_parts(self, entries: Callable[[Imputer], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """``entries`` of all parts, ``<label>.<key>``."""
        return {
            f"{label}.{key}": value
            for label, part in self.labels.items()
            if "weights" in part.needs
            for key, value in entries(part).items()
        }

    def architecture(self) -> dict[str, Any]:
        """Plain values that identify the weights."""
        modalities = [[m.name, m.kind, list(m.shape)] for m in self.modalities]
        parts: dict[str, Any] = {label: getattr(part, "architecture", dict)() for label, part in self.labels.items()}
        return {"method": "Chain", "modalities": modalities, "parts": parts}

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        architectures = (content.get("architecture") or {}).get("parts")
        if architectures is None or set(architectures) != set(self.labels):
            trained = "no parts of a chain" if architectures is None else f"parts for {', '.join(architectures)}"
            raise ValueError(f"holds {trained}, not for {', '.join(self.labels)}")
        for label, part in self.labels.items():
            if "weights" in part.needs:
                start = f"{label}."
                state = {k.removeprefix(start): v for k, v in content["state_dict"].items() if k.startswith(start)}
                part.load({"state_dict": state, "architecture": architectures[label]}, path, f"{name} for {label}")

    def move_to(self, device: torch.device) -> Self:
        for label, part in self.labels.items():
            self.replace_part(label, part.move_to(device))
        return self

    def recoverable(self, modalities: Sequence[Modality]) -> list[str]:
        return [name for name, part in self.parts.items() if name in part.recoverable(modalities)]

    def unrecoverable(self, modalities: Sequence[Modality], missing: Tensor) -> Tensor | None:
        masks = {id(part): part.unrecoverable(modalities, missing) for part in self.labels.values()}
        if len(self.parts) == len(modalities) and all(mask is None for mask in masks.values()):
            return None
        columns = []
        for i, m in enumerate(modalities):
            mask = masks[id(self.parts[m.name])] if m.name in self.parts else missing
            columns.append(torch.zeros_like(missing[:, i]) if mask is None else mask[:, i])
        return torch.stack(columns, 1)

    @property
    def has_draws(self) -> bool:
        return any(part.has_draws for part in self.labels.values())

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.labels.values():
                if part.has_draws:
                    stack.enter_context(part.drawing(number))
            yield

    def draw_for_seed(self, seed: int) -> None:
        for part in self.labels.values():
            part.draw_for_seed(seed)

    def why_not_exported(self) -> str | None:
        return next((why for part in self.parts.values() if (why := part.why_not_exported())), None)

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return self._complete(inputs, missing, row_numbers(missing, index), feature_missing or {}, is_fixed=False)

    def impute_fixed(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        index = torch.zeros_like(missing[:, 0], dtype=torch.long)
        return self._complete(inputs, missing, index, feature_missing, is_fixed=True)

    def _complete(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor,
        feature_missing: Mapping[str, Tensor],
        is_fixed: bool,
    ) -> dict[str, Tensor]:
        batch = Batch(dict(inputs), missing, index, index, dict(feature_missing))  # no labels are read
        completed = dict(inputs)
        for part in self.labels.values():
            recovered, _ = recover_possible(part, self.modalities, batch, is_fixed)
            completed |= {name: x for name, x in recovered.items() if self.parts.get(name) is part}
        return completed
