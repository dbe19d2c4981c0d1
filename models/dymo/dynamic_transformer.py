"""DynamicTransformer, the backbone of DyMo: Dynamic Modality Selection (ICLR 2026, arXiv 2601.22853).

Every modality becomes a few tokens, a CLS token and two pre-norm transformer blocks fuse the visible ones, a linear
head classifies the CLS token and a linear projection of it is compared with class prototypes. Trained on K random
modality subsets per step (docs/reference/dymo.md §1 and §2).

What we do differently: one row of the modality embedding per modality (the original indexes with ``min(i, 1)``;
``reference_modality_index=true`` restores that, and loading an original checkpoint switches it on); encoders run once
per sample and step, not once per subset; the first block's projections are shared by all subsets of a sample; masked
tokens are dropped from the sequence where that pays; in the last block only the CLS query is computed. All of these
give the same numbers within float32 rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction, classification_loss
from models.dymo.backbone import Partial, Sequences
from models.dymo.original import convert_dynamic_transformer
from models.dymo.prototypes import COSINE, DISTANCE_METRICS, RunningPrototypes, prototype_loss
from models.dymo.recovery_aware import consistency_loss, with_recoveries
from models.imputers.base import Imputer
from models.layers.transformer import is_normal, visible_tokens
from models.tokens import TokenPipeline
from utils.checks import check_number
from utils.noise import hash_seed
from utils.subsets import draw_subsets, enumerate_subsets
from utils.transfer import to_device
from utils.weights import checkpoint_kind, load_strict

log = logging.getLogger(__name__)
VALIDATED = 127  # subsets of a validation, where there are more
CONSISTENCY, VALIDATION = 12, 13  # keep the seeds of their masks apart from the others


def rows_per_call(device: torch.device, tokens: int, width: int) -> int:
    """Rows of one fusion call.

    On a CPU so few that they stay in its caches (there, calls of 2^14 rows take 1.6 times as long). On a GPU a power of
    two, at most 2^14, whose activations take an eighth of the memory that the device has, used or not: the same number
    in every run.

    Args:
        tokens, width: of a row, N and D.
    """
    if device.type != "cuda":
        return 1 << 8
    memory = torch.cuda.get_device_properties(device).total_memory
    return rows_that_fit(memory // 8, tokens, width)


def rows_that_fit(memory: int, tokens: int, width: int) -> int:
    """Return the largest power of two, 2^8 to 2^14, of rows whose float32 activations fit into ``memory`` bytes.

    A token has 16 times its width: x and its copy, queries, keys and values twice, and both sides of the MLP's GELU.
    """
    rows = max(memory // (4 * 16 * tokens * width), 1)
    return min(max(1 << (rows.bit_length() - 1), 1 << 8), 1 << 14)


class DynamicTransformer(TokenPipeline):
    """
    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        projection: width of the feature that is compared with prototypes.
        distance_metric: cosine_similarity (features have unit norm) or squared_euclidean.
        temperature: of the prototype posterior, 0.1.
        subsets_per_step: K; None trains on each row's own mask instead.
        prototype_rate: weight of the prototype loss from epoch ``prototype_start`` (counted from 0) on.
        initialisation: see :func:`models.layers.transformer.is_normal`; ``pytorch`` is what the original's PolyMNIST
            job really ran with.
        recovery_aware: share of the training batches whose inputs are replaced, outside a random subset of each row, by
            recoveries (ours, not the paper's). Needs :meth:`attach_imputer`.
        consistency: weight of :func:`models.dymo.recovery_aware.consistency_loss` (ours). Needs :meth:`attach_imputer`.
        fusion: ``packed`` drops masked tokens, ``masked`` keeps and masks them, ``auto`` packs on the CPU and masks on
            accelerators while training (one large call beats several small ones there).
    """

    several_labels = False  # every sample belongs to the prototype of one class

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        task: str = "multiclass",
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        projection: int = 64,
        distance_metric: str = COSINE,
        temperature: float = 0.1,
        subsets_per_step: int | None = 5,
        prototype_rate: float = 1.0,
        prototype_start: int = 3,
        reference_modality_index: bool = False,
        initialisation: str = "normal",
        recovery_aware: float = 0.0,
        consistency: float = 0.0,
        fusion: str = "auto",
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(modalities, num_classes, task, optimizer, scheduler)
        if distance_metric not in DISTANCE_METRICS:
            raise ValueError(f"distance_metric must be one of {DISTANCE_METRICS}, not {distance_metric!r}")
        self.add_tokens(encoders, width, heads, layers)
        self.classifier = nn.Linear(width, num_classes)
        self.projection = nn.Linear(width, projection)
        self.register_buffer("prototypes", torch.zeros(num_classes, projection))
        self.prototypes: Tensor
        self.distance_metric, self.temperature = distance_metric, temperature
        self.subsets_per_step, self.prototype_rate = subsets_per_step, prototype_rate
        self.prototype_start, self.reference_modality_index = prototype_start, reference_modality_index
        self.recovery_aware, self.consistency, self.fusion = recovery_aware, consistency, fusion
        if is_normal(initialisation):
            self.initialise_normal()
        # Not a sub-module: its weights belong to its own run, not to this checkpoint.
        self._imputer: list[Imputer] = []
        self._running: RunningPrototypes | None = None
        # Positions of each modality's tokens, padded to the longest, and which of them are real.
        places = nn.utils.rnn.pad_sequence([torch.tensor(span) for span in self._token_spans], batch_first=True)
        self.register_buffer("_places", places, persistent=False)
        self.register_buffer("_real", places > 0, persistent=False)
        self._places: Tensor
        self._real: Tensor

    @classmethod
    def check(cls, cfg: DictConfig, node: str) -> Iterator[str]:
        if not isinstance(cfg.model.get("recovery_aware"), bool):
            yield from check_number(cfg, "model.recovery_aware", 0, 1)
        yield from check_number(cfg, "model.consistency", 0)
        subsets = 2 ** len(cfg.dataset.modalities) - 1
        yield from check_number(cfg, f"{node}.module.subsets_per_step", 1, subsets, whole=True)

    @property
    def feature_width(self) -> int:
        return self.projection.out_features

    @property
    def imputer(self) -> Imputer | None:
        return self._imputer[0] if self._imputer else None

    def attach_imputer(self, imputer: Imputer) -> None:
        self._imputer = [imputer]  # not by a property setter: a module would become a sub-module

    def as_backbone(self, metric: str) -> DynamicTransformer:
        return self

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        """Load a checkpoint of ours or of the original repository."""
        if checkpoint_kind(content) != "reference_dynamic_transformer":
            super().load(content, path, name)
            return
        if not self.reference_modality_index:
            self.reference_modality_index = True
            log.info("%s is a checkpoint of the original repository: its modality index min(i, 1) is used", path)
        load_strict(self, convert_dynamic_transformer(content["state_dict"], self.modality_names), path, name)

    # ---- encode, fuse ------------------------------------------------------------------------------------------------

    def encode_again(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Tokens of :meth:`encode` with the tables of ``batch.feature_missing`` encoded under those masks: cells of a
        table attend to each other in its encoder."""
        if not batch.feature_missing:
            return tokens
        cells = self.cells(batch.missing, batch.feature_missing)
        tokens = tokens.clone()
        for i, name in enumerate(self.modality_names):
            if name in cells:
                tokens[:, self.token_columns(i)] = self.encode_one(i, batch.inputs[name], cells[name])
        return tokens

    def predict_each(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, Prediction]:
        tokens = self.encode(batch.inputs)
        return {name: self.fuse(self.encode_again(tokens, masked), masked) for name, masked in scenarios.items()}

    def encode_partial(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> Partial | None:
        """Encode the observed cells of masked tables; None without cell masks."""
        cells = self.cells(missing, feature_missing)
        tables = [(i, name) for i, name in enumerate(self.modality_names) if name in cells]
        if not tables:
            return None
        owner = torch.tensor([i for i, _ in tables for _ in range(self.tokens_per_modality[i])])
        tokens = torch.cat([self.encode_one(i, inputs[name], cells[name]) for i, name in tables], dim=1)
        visible = torch.cat([self.shown(i, cells[name]) for i, name in tables], dim=1)
        return Partial(tokens, visible, to_device(owner, missing.device))

    def prepare(self, tokens: Tensor, partial: Partial | None = None) -> Sequences:
        """Compute what all subsets of a sample share."""
        x = self.with_class_token(tokens if partial is None else torch.cat([tokens, partial.tokens], dim=1))
        return Sequences(x, self.transformer[0].project(x), partial)  # type: ignore[operator]

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Classify tokens (B, P, D), encoded with the batch's cell masks, under its masks; features are (B, D_p)."""
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        tokens = torch.where(visible[:, 1:, None], encoded, 0)
        return Prediction(*self.fuse_prepared(self.prepare(tokens), visible))

    def fuse_prepared(self, sequences: Sequences, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sequences of R rows, ``visible`` (R, 1 + P) bool or None = every token given -> logits, features."""
        x = self._class_token(sequences, visible)
        # The heads are small: in float32 whatever the trainer's precision, or distances and rankings turn coarse.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            z = self.projection(x)
            return self.classifier(x), F.normalize(z, dim=-1) if self.distance_metric == COSINE else z

    def _class_token(self, sequences: Sequences, visible: Tensor | None) -> Tensor:
        """CLS token (R, D) after the last block."""
        x = sequences.x
        for depth, block in enumerate(self.transformer):
            last = depth == len(self.transformer) - 1
            if depth == 0:
                x = block.mix(x, sequences.qkv, visible, first_only=last)  # type: ignore[operator]
            else:
                x = block(x, visible, first_only=last)
        return x[:, 0]

    def fuse_rows(self, sequences: Sequences, rows: Tensor, missing: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
        """Fusion of some rows, each under a mask that leaves the same number of modalities visible; the masked tokens
        are dropped.

        Args:
            sequences: of B samples.
            rows: (R,) samples to take, repeats allowed.
            missing: (R, M), each row with exactly ``n_visible`` False, 0 where there are cells alone. Of masked tables,
                the observed cells stay.

        Returns:
            logits (R, C), features (R, D_p).
        """
        limit = rows_per_call(rows.device, *sequences.x.shape[1:])
        if len(rows) > limit:
            parts = zip(rows.split(limit), missing.split(limit), strict=True)
            pieces = [self.fuse_rows(sequences, *part, n_visible) for part in parts]
            return torch.cat([logits for logits, _ in pieces]), torch.cat([z for _, z in pieces])
        order = missing.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]
        columns, padding = self._columns(order)
        if sequences.partial is not None and n_visible < len(self.modalities):
            partial = sequences.partial
            bank = torch.arange(sequences.x.shape[1] - len(partial.owner), sequences.x.shape[1], device=rows.device)
            shown = partial.visible[rows] & missing[:, partial.owner]
            padding = torch.ones_like(columns, dtype=torch.bool) if padding is None else padding
            columns = torch.cat([columns, bank.expand(len(rows), -1)], dim=1)
            padding = torch.cat([padding, shown], dim=1)
        picked = Sequences(sequences.x[rows[:, None], columns], sequences.qkv[rows[:, None], columns])
        return self.fuse_prepared(picked, padding)

    def fuse_masked(self, sequences: Sequences, missing: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`models.dymo.backbone.Backbone.fuse_masked`."""
        visible = visible_tokens(missing.flatten(0, 1), self.tokens_per_modality)
        if sequences.partial is not None:
            shown = sequences.partial.visible & missing[..., sequences.partial.owner]
            visible = torch.cat([visible, shown.flatten(0, 1)], dim=1)
        x, qkv = (part.repeat(missing.shape[0], 1, 1) for part in (sequences.x, sequences.qkv))
        return self.fuse_prepared(Sequences(x, qkv), visible)

    def _columns(self, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token positions of the modalities (R, n), CLS first: (R, N) and, where lengths differ, which are real."""
        columns = F.pad(self._places[order].flatten(1), (1, 0))
        if len(set(self.tokens_per_modality)) == 1:
            return columns, None
        return columns, F.pad(self._real[order].flatten(1), (1, 0), value=True)

    def fuse_subsets(
        self,
        tokens: Tensor | Sequences,
        subsets: Tensor,
        missing: Tensor | None = None,
        max_rows: int | None = None,
        cells: Mapping[str, Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every sample under each of several subsets, in groups that make one fusion call.

        Args:
            tokens: (B, P, D), or what :meth:`prepare` made of them.
            subsets: (K, M) bool on the CPU, True = missing, the same for all samples.
            missing: (B, M) genuinely missing modalities, hidden under every subset; None = none. A row that has no
                modality of a subset is fused with all that it has.
            max_rows: rows of one call; None = :func:`rows_per_call`.
            cells: hidden cells of partly missing tables, with which the tokens were encoded; a subset without such a
                table hides all of it.

        Yields:
            ids (k,) into ``subsets``, logits (k, B, C), features (k, B, D_p).
        """
        sequences = self.prepare(tokens) if isinstance(tokens, Tensor) else tokens
        b = len(sequences.x)
        per_call = max(1, (max_rows or rows_per_call(sequences.x.device, *sequences.x.shape[1:])) // b)
        is_on_cpu = sequences.x.device.type == "cpu"
        packed = missing is None and (self.fusion == "packed" or (self.fusion == "auto" and is_on_cpu))
        columns = [
            [0, *(t for i, span in enumerate(self._token_spans) if not s[i] for t in span)] for s in subsets.tolist()
        ]
        groups: dict[int, list[int]] = {}
        for k, positions in enumerate(columns):
            groups.setdefault(len(positions) if packed else 0, []).append(k)
        for length, members in groups.items():
            for ids in (members[i : i + per_call] for i in range(0, len(members), per_call)):
                if packed and length == sequences.x.shape[1] and len(ids) == 1:
                    stacked, visible = sequences, None
                elif packed:
                    index = to_device(torch.tensor([columns[k] for k in ids]).flatten(), sequences.x.device)
                    x, qkv = (_stack(t.index_select(1, index), len(ids)) for t in (sequences.x, sequences.qkv))
                    stacked = Sequences(x, qkv)
                    visible = None
                else:
                    hidden = to_device(subsets[ids], sequences.x.device)
                    shown = visible_tokens(hidden, self.tokens_per_modality)[:, None].expand(-1, b, -1)
                    if missing is not None:
                        observed = self.visible(missing, cells)
                        observed_and_shown = shown & observed
                        has_tokens = observed_and_shown[..., 1:].any(-1, keepdim=True)
                        shown = torch.where(has_tokens, observed_and_shown, observed)
                    visible = shown.reshape(-1, shown.shape[-1])
                    stacked = Sequences(sequences.x.repeat(len(ids), 1, 1), sequences.qkv.repeat(len(ids), 1, 1))
                logits, features = self.fuse_prepared(stacked, visible)
                yield torch.tensor(ids), logits.unflatten(0, (len(ids), b)), features.unflatten(0, (len(ids), b))

    def compile_parts(self, backend: str) -> None:
        """The encoders, and the blocks, whose calls differ in size (hence dynamic). Not the heads: a compiled function
        gives an unused output a zero gradient where there should be none, and Adam counts that as a step."""
        self.encode = torch.compile(self.encode, backend=backend)  # type: ignore[method-assign]
        self._class_token = torch.compile(self._class_token, backend=backend, dynamic=True)  # type: ignore[method-assign]

    def forward(self, batch: Batch) -> Prediction:
        cells = self.cells(batch.missing, batch.feature_missing)
        return self.fuse(self.encode(batch.observed(), cells), batch)

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if (patterns := 2 ** len(self.modalities) - 1) > VALIDATED:
            log.info("validation on %d random subsets of the modalities instead of all %d", VALIDATED, patterns)
        last = self.trainer.max_epochs or 0
        if 0 < last <= self.prototype_start and self.prototype_rate:
            log.warning(
                "the prototype loss sets in at epoch %d, and training ends before it, after %d: for a loss on "
                "prototypes set module.prototype_start of the backbone lower",
                self.prototype_start,
                last,
            )

    def on_train_epoch_start(self) -> None:
        self._running = RunningPrototypes(self.num_classes, self.projection.out_features, self.device)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash_seed(self.stream_seed, 1, self.global_step))
        if self.recovery_aware:
            assert self.imputer is not None, "recovery_aware needs an imputer"
            batch = with_recoveries(batch, self.imputer, self.modalities, self.recovery_aware, generator)
        inputs = batch.inputs if batch.complete else self.observed_inputs(batch)
        cells = {} if batch.complete else self.cells(batch.missing, batch.feature_missing)
        sequences = self.prepare(self.encode(inputs, cells))
        if self.subsets_per_step is None:
            visible = self.visible(batch.missing, cells)
            logits, features = self.fuse_prepared(sequences, visible)
            logits, features = logits[None], features[None]
        else:
            subsets = draw_subsets(len(self.modalities), self.subsets_per_step, generator)
            hidden = None if batch.complete else batch.missing
            parts = [part[1:] for part in self.fuse_subsets(sequences, subsets, hidden, cells=cells)]
            logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        losses = self._losses(logits, features, batch.target)
        if self.consistency:
            assert self.imputer is not None, "consistency needs an imputer"
            generator = torch.Generator().manual_seed(hash_seed(self.stream_seed, CONSISTENCY, self.global_step))
            losses["consistency"] = consistency_loss(self, sequences, batch, generator)
            losses["loss"] = losses["loss"] + self.consistency * losses["consistency"]
        assert self._running is not None
        if not batch.is_filler:
            self._running.update(features, batch.target)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def _losses(self, logits: Tensor, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        k = len(logits)
        classification = classification_loss(logits.flatten(0, 1), target.repeat(k), self.task)
        losses = {"loss": classification, "classification": classification}
        if self.current_epoch >= self.prototype_start:
            losses["prototype"] = prototype_loss(
                features, target, self.prototypes, self.distance_metric, self.temperature
            )
            losses["loss"] = classification + self.prototype_rate * losses["prototype"]
        return losses

    def on_validation_start(self) -> None:
        """Set the prototypes of the training epoch before its validation."""
        if self._running is None:
            return
        trainer = self.trainer
        assert trainer.train_dataloader is not None
        # Epochs that are limited to some batches, as those of stage plan, may lack a rare class.
        is_complete = trainer.num_training_batches >= len(trainer.train_dataloader)
        previous = None if is_complete else self.prototypes
        self.prototypes.copy_(self._running.mean(lambda part: trainer.strategy.reduce(part, reduce_op="sum"), previous))
        self._running = None

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Validate on all 2^M - 1 subsets of every sample, pooled; of more than :data:`VALIDATED`, on so many."""
        cells = {} if batch.complete else self.cells(batch.missing, batch.feature_missing)
        tokens = self.encode(batch.inputs if batch.complete else batch.observed(), cells)
        hidden = None if batch.complete else batch.missing
        subsets = self._validated_subsets()
        for _, logits, features in self.fuse_subsets(tokens, subsets, hidden, cells=cells):
            self.log_losses("val", self._losses(logits, features, batch.target), logits.shape[:2].numel())
            self.validation_metrics.update(logits.flatten(0, 1), batch.target.repeat(len(logits)))

    def _validated_subsets(self) -> Tensor:
        m = len(self.modalities)
        if 2**m - 1 <= VALIDATED:
            return enumerate_subsets(m)
        # The same in every epoch, so that epochs can be compared.
        return draw_subsets(m, VALIDATED, torch.Generator().manual_seed(hash_seed(self.stream_seed, VALIDATION)))

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {
            "distance_metric": self.distance_metric,
            "reference_modality_index": self.reference_modality_index,
            "recovery_aware": float(self.recovery_aware),
        }


def _stack(x: Tensor, k: int) -> Tensor:
    """(B, k * n, W), the tokens of k subsets side by side -> (k * B, n, W)."""
    return x.unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)
