"""CMPT: robust multimodal classification with cross-modal proxy tokens (arXiv 2501.17823, TMLR).

Each modality has a frozen transformer with adapters of rank 1 in its attention, and one proxy token for every other
modality k. The final states P_{m->k} of the proxies are trained to equal the class state C_k on the samples with both
modalities (Eq. 4). A missing modality is replaced by its proxy (Eq. 5), a linear layer classifies by the sum (Eq. 6),
and

    L = L_task + 0.2 * L_align   (Eq. 7).

Ours, where the paper is not specific (docs/reference/cmpt.md §2.4 to §2.11): the alignment is the sum of the two errors
(``alignment.form=printed`` is the printed fraction) without detached targets; modality dropout is applied in the gate,
so that the alignment uses all samples; for more than two modalities, a missing one is replaced by the mean of its
proxies in the observed ones, and the alignment is the sum over the ordered pairs of observed modalities, divided by
M - 1, which is Eq. 4 for two. ``proxy=null`` is the same model without proxies, where missing modalities are excluded
from the sum: the first control of the paper with ``masks.kind: none``, else the second.

The outputs of the frozen networks cannot be cached across epochs: the adapters are inside them, and even without
adapters (``adapter.kind=none``), proxies pass through all blocks. ``checkpointing`` trades time for memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import Baseline
from models.cmpt.backbone import ProxyBackbone
from models.cmpt.count import count, describe
from models.encoders.adapters import Adapter
from models.encoders.pretrained import PretrainedEncoder
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proxy:
    """Settings of the proxy tokens.

    Attributes:
        init: ``normal`` (standard deviation ``std``) or ``class``, a copy of the frozen class token.
        attention: ``full``, or ``read_only``: no other token attends to a proxy, so that the class state without
            adapters is the pretrained one.
        position: ``learned`` adds a learned vector to each proxy; ``none``.
    """

    init: str = "normal"
    std: float = 0.02
    attention: str = "full"
    position: str = "none"

    def __post_init__(self) -> None:
        for key, options in (
            ("init", ("normal", "class")),
            ("attention", ("full", "read_only")),
            ("position", ("none", "learned")),
        ):
            if getattr(self, key) not in options:
                raise ValueError(f"proxy.{key}={getattr(self, key)}: must be {' or '.join(options)}")


@dataclass(frozen=True)
class Alignment:
    """Settings of the alignment loss.

    Attributes:
        weight: lambda; 0 = without.
        form: ``sum``, or ``printed``: the sum divided by MSE(P_1, C_1), for two modalities.
        detach_target: do not train the class states to equal the proxies.
    """

    weight: float = 0.2
    form: str = "sum"
    detach_target: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.form not in ("sum", "printed"):
            raise ValueError(f"alignment: weight must be at least 0, and form sum or printed, not {self}")


class CMPT(Baseline):
    """Sum of class states and cross-modal proxies.

    Args:
        encoders: modality name -> :class:`models.encoders.pretrained.PretrainedEncoder`.
        adapter: settings of the adapters in every encoder.
        targets: modality name -> ``Adapter.targets`` that override those of ``adapter``.
        proxy: settings of the proxies; None = no proxies.
        alignment: settings of the alignment loss.
        masks: modality dropout of complete rows; incomplete rows are not masked further.
        drop_at: where modalities are dropped: ``gate``, or ``input``, which also excludes them from encoding and
            alignment.
        gate: average of several proxies of a missing modality: ``mean``, or ``confidence``, weighted by the softmax of
            learned scores.
        width: common width to which encoders are mapped; None = the maximum.
        head_bias: whether the linear layer has a bias.
        checkpointing: see :class:`models.encoders.pretrained.PretrainedEncoder`.
        prerequisites: ``unimodal_<modality>``, a trained :class:`models.baselines.unimodal.Unimodal` with the same
            encoder; None = the encoders as they are.
        others: see :class:`models.baselines.base.Baseline`; ``reference`` has no effect.

    Raises:
        UserError: an encoder does not fit its modality, or lacks a target.
    """

    transformers_only: ClassVar[bool] = True
    has_attention_maps: ClassVar[bool] = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        adapter: Adapter | None = None,
        targets: Mapping[str, str] | None = None,
        proxy: Proxy | None = None,
        alignment: Alignment | None = None,
        drop_at: str = "gate",
        gate: str = "mean",
        width: int | None = None,
        head_bias: bool = True,
        checkpointing: bool = False,
        prerequisites: Mapping[str, IncompleteClassifier] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.adapter, self.proxy, self.alignment = adapter or Adapter(), proxy, alignment or Alignment()
        m, names = len(modalities), self.modality_names
        if drop_at not in ("gate", "input") or gate not in ("mean", "confidence"):
            raise ValueError(f"drop_at must be gate or input (is {drop_at}), and gate mean or confidence (is {gate})")
        if self.alignment.form == "printed" and m != 2:
            raise ValueError(f"alignment.form=printed: requires two modalities, not {m}: set alignment.form=sum")
        if unknown := sorted(set(targets or {}) - set(names)):
            raise ValueError(f"targets names '{unknown[0]}', the modalities are {', '.join(names)}")
        self.drop_at = drop_at
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        for modality in modalities:
            self._prepare_encoder(modality, (targets or {}).get(modality.name), checkpointing, prerequisites)
        widths = [self.encoder(i).hidden for i in range(m)]
        self.width = width or max(widths)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(hidden, self.width) for name, hidden in zip(names, widths) if hidden != self.width}
        )
        self.proxies = nn.ParameterList([self._first_proxies(i) for i in range(m)] if proxy else [])
        has_positions = proxy is not None and proxy.position == "learned"
        self.positions = nn.ParameterList([torch.zeros_like(p) for p in self.proxies] if has_positions else [])
        has_confidence = proxy is not None and m > 2 and gate == "confidence"
        self.confidence = nn.Linear(self.width, 1) if has_confidence else None
        self.classifier = nn.Linear(self.width, num_classes, bias=head_bias)

    @classmethod
    def check(cls, cfg: DictConfig, node: str) -> Iterator[str]:
        if not cfg.model.get("select"):
            return
        if cfg.model.get("use_imputer"):
            yield "model.select=true: selects proxies, not recoveries of an imputer: set model.use_imputer=false"
        if cfg.model.module.get("proxy") is None:
            yield "model.select=true: requires proxies, and model.module.proxy=null has none: remove one of them"

    def _prepare_encoder(
        self,
        modality: Modality,
        targets: str | None,
        checkpointing: bool,
        prerequisites: Mapping[str, IncompleteClassifier] | None,
    ) -> None:
        """Check the encoder of a modality, load its weights, freeze and adapt it."""
        name, encoder = modality.name, self.encoders[modality.name]
        if not isinstance(encoder, PretrainedEncoder):
            raise UserError(
                f"CMPT requires transformers, but the encoder of '{name}' is a {type(encoder).__name__}: specify "
                "a models.encoders.pretrained.PretrainedEncoder in dataset.encoders or model.encoders"
            )
        encoder.check_modality(modality)
        if prerequisites:
            trained: Any = prerequisites[f"unimodal_{name}"]
            encoder.network.load_state_dict(trained.encoders[name].network.state_dict())
            encoder.pretrained = True
        encoder.checkpointing = encoder.checkpointing or checkpointing
        encoder.adapt(self.adapter if targets is None else replace(self.adapter, targets=targets))

    def as_backbone(self, metric: str) -> ProxyBackbone:
        return ProxyBackbone(self, metric)

    def encoder(self, i: int) -> PretrainedEncoder:
        """Encoder of modality ``i``."""
        return self.encoders[self.modality_names[i]]  # type: ignore[return-value]

    def _first_proxies(self, i: int) -> nn.Parameter:
        """Initial proxies (M - 1, D_i) of modality ``i``."""
        assert self.proxy is not None
        encoder, k = self.encoder(i), len(self.modalities) - 1
        if self.proxy.init == "class":
            return nn.Parameter(encoder.class_input().expand(k, -1).clone())
        return nn.Parameter(self.proxy.std * torch.randn(k, encoder.hidden))

    # ---- encode, fuse ------------------------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> states (B, M, M, D).

        Entry (m, k) is the proxy of modality k in the encoder of m, or zero without proxies; (m, m) is the class state.
        """
        return torch.stack([self.encode_one(i, inputs[name]) for i, name in enumerate(self.modality_names)], dim=1)

    def encode_one(self, i: int, x: Tensor) -> Tensor:
        """Modality ``i`` (B, ...) -> its row (B, M, D) of :meth:`encode`."""
        name = self.modality_names[i]
        proxies = self._proxy_tokens(i)
        summary, others = self.encoder(i).states(x, proxies, self._has_read_only_proxies)
        if proxies is None:
            others = summary.new_zeros(len(summary), len(self.modalities) - 1, summary.shape[-1])
        row = torch.cat([others[:, :i], summary[:, None], others[:, i:]], dim=1)
        if name not in self.projections:
            return row
        mapped = self.projections[name](row)
        if proxies is not None:
            return mapped
        is_class_state = torch.arange(len(self.modalities), device=x.device) == i
        return torch.where(is_class_state[:, None], mapped, 0)

    def _proxy_tokens(self, i: int) -> Tensor | None:
        """Proxies (M - 1, D_i) in the encoder of modality ``i``."""
        if self.proxy is None:
            return None
        return self.proxies[i] + self.positions[i] if len(self.positions) else self.proxies[i]

    @property
    def _has_read_only_proxies(self) -> bool:
        return self.proxy is not None and self.proxy.attention == "read_only"

    def attention_maps(self, modality: int, x: Tensor) -> dict[str, Tensor]:
        maps = self.attention(modality, x)
        others = [name for i, name in enumerate(self.modality_names) if i != modality and self.proxy is not None]
        names = [*(f"proxy of {name}" for name in others), "class token"]
        return {name: maps[:, k] for k, name in enumerate(names[: maps.shape[1]])}

    def attention(self, i: int, x: Tensor) -> Tensor:
        """Modality ``i`` (B, ...) -> attention maps (B, M, rows, columns) of the proxies, in the order of the other
        modalities, and the class token; see :meth:`models.encoders.pretrained.PretrainedEncoder.attention`."""
        return self.encoder(i).attention(x, self._proxy_tokens(i), self._has_read_only_proxies)

    def complete(self, states: Tensor, missing: Tensor) -> Tensor:
        """Class states of observed modalities, and a proxy for each missing one (Eq. 5).

        Args:
            states: (B, M, M, D) of :meth:`encode`.
            missing: (B, M) bool.

        Returns:
            (B, M, D): C_k, or the mean (by confidence) of P_{m->k} over the observed m; zeros without proxies.
        """
        class_states = states.diagonal(dim1=1, dim2=2).transpose(1, 2)
        if self.proxy is None:
            return torch.where(missing[..., None], 0, class_states)
        eye = torch.eye(missing.shape[1], dtype=torch.bool, device=missing.device)
        source = ~missing[:, :, None] & ~eye
        values = torch.where(source[..., None], states, 0)
        if self.confidence is None:
            shares = source / source.sum(1, keepdim=True).clamp(min=1)
        else:
            scores = self.confidence(values)[..., 0]
            scores = scores.masked_fill(~source, torch.finfo(scores.dtype).min).softmax(1)
            shares = torch.where(source, scores, 0)
        return torch.where(missing[..., None], (shares[..., None].to(values.dtype) * values).sum(1), class_states)

    def classify(self, vectors: Tensor, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classify by the sum of the modalities (Eqs. 3 and 6).

        Args:
            vectors: (B, M, D) of :meth:`complete`.
            missing: (B, M) bool, modalities excluded from the sum, such as rejected proxies; None = none.

        Returns:
            logits (B, C), features (B, D).
        """
        if missing is not None:
            vectors = torch.where(missing[..., None], 0, vectors)
        features = vectors.sum(1)
        return self.classifier(features), features

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        return Prediction(*self.classify(self.complete(encoded, self.absent(batch))))

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        log.info("CMPT: %s", describe(count(self)))
        random = [name for i, name in enumerate(self.modality_names) if not self.encoder(i).pretrained]
        if random:
            log.warning(
                "the frozen encoders of %s have random weights: specify weights, or train them first "
                "(prerequisites={unimodal: each_modality})",
                ", ".join(random),
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        absent = self.absent(batch)
        drawn = self.masks.draw(absent, self.mask_generator(batch_index))[0]
        is_incomplete = absent.any(1, keepdim=True)
        dropped = self.hide_more(batch, torch.where(is_incomplete, absent, drawn))
        encoder_batch = dropped if self.drop_at == "input" else batch
        states = self.encode_batch(encoder_batch)
        losses = super().loss(self.fuse(states, dropped), dropped)
        if self.proxy is not None and self.alignment.weight:
            losses["classification"] = losses["loss"]
            losses["alignment"] = alignment_loss(states, self.absent(encoder_batch), self.alignment)
            losses["loss"] = losses["classification"] + self.alignment.weight * losses["alignment"]
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def configure_optimizers(self) -> Any:
        """Build the optimiser, and a scheduler that is stepped after every step."""
        assert self._optimizer is not None, "this model was built without an optimiser"
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        assert self.trainer.max_epochs
        steps = max(1, round(self.trainer.estimated_stepping_batches / self.trainer.max_epochs))
        scheduler = self._scheduler(optimizer, steps_per_epoch=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def before_prediction(self) -> None:
        """Merge the adapters into the networks."""
        for i in range(len(self.modalities)):
            self.encoder(i).merge()

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {
            "adapter": vars(self.adapter),
            "proxy": vars(self.proxy) if self.proxy else None,
        }


def alignment_loss(states: Tensor, missing: Tensor, alignment: Alignment) -> Tensor:
    """Alignment loss (Eq. 4) in float32.

    MSE(P_{m->k}, C_k), summed over the ordered pairs of different observed modalities of a sample, divided by M - 1,
    and averaged over the samples with a pair; 0 without any.

    Args:
        states: (B, M, M, D), see :meth:`CMPT.encode`.
        missing: (B, M) bool.
    """
    m = missing.shape[1]
    with torch.autocast(states.device.type, enabled=False):
        states = states.float()
        observed = ~missing
        pairs = observed[:, :, None] & observed[:, None, :] & ~torch.eye(m, dtype=torch.bool, device=missing.device)
        # Overwrite before any arithmetic: missing content could be NaN, whose gradient a later mask would not stop.
        class_states = torch.where(pairs.any(1)[..., None], states.diagonal(dim1=1, dim2=2).transpose(1, 2), 0)
        targets = class_states.detach() if alignment.detach_target else class_states
        proxies = torch.where(pairs[..., None], states, 0)
        errors = torch.where(pairs, (proxies - targets[:, None]).square().mean(-1), 0).sum((1, 2)) / (m - 1)
        has_pair = pairs.any((1, 2))
        if alignment.form == "printed":
            errors = errors / (proxies[:, 0, 1] - class_states[:, 0]).square().mean(-1).clamp(min=1e-8)
        return torch.where(has_pair, errors, 0).sum() / has_pair.sum().clamp(min=1)
