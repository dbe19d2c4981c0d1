"""CMPT: robust multimodal classification with cross-modal proxy tokens (arXiv 2501.17823, TMLR).

Each modality has a frozen transformer with adapters of rank 1 in its attention. Beside its class token stand proxies,
one for every other modality k, whose final states P_{m->k} are trained to equal that modality's class state C_k on the
samples that have both (Eq. 4). A modality that is missing is replaced by its proxy (Eq. 5), the sum of all goes through
one linear layer (Eq. 6), and

    L = L_task + 0.2 * L_align   (Eq. 7).

Ours, where the paper leaves it open (docs/reference/cmpt.md §2.4 to §2.11): the alignment is the plain sum of the two
errors (the printed fraction is ``alignment.form=printed``), its targets are not detached; modality dropout hides in the
gate, so that the alignment sees every sample; for more than two modalities, K_k of a missing one is the mean of its
proxies in those that are there, and the alignment sums over the ordered pairs that a sample has, divided by M - 1,
which is Eq. 4 for two. ``proxy=null`` is the same model without proxies: what is missing is left out of the sum; with
``masks.kind: none`` besides, the paper's first control, else its second.

Nothing of the frozen networks can be kept from one epoch to the next: the adapters are inside them, and even without
adapters (``adapter.kind=none``) the proxies go through all their blocks. ``checkpointing`` trades time for memory.
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
    """
    Attributes:
        init: ``normal`` (deviation ``std``) or ``class``, a copy of the frozen class token.
        attention: ``full``: a token like others; ``read_only``: no other token attends to it, so that without adapters
            the class state is the pretrained one.
        position: ``learned`` adds a vector of its own to each.
    """

    init: str = "normal"
    std: float = 0.02
    attention: str = "full"
    position: str = "none"

    def __post_init__(self) -> None:
        for key, known in (
            ("init", ("normal", "class")),
            ("attention", ("full", "read_only")),
            ("position", ("none", "learned")),
        ):
            if getattr(self, key) not in known:
                raise ValueError(f"proxy.{key}={getattr(self, key)}: must be {' or '.join(known)}")


@dataclass(frozen=True)
class Alignment:
    """
    Attributes:
        weight: lambda; 0 trains without.
        form: ``sum``, or ``printed``: the sum divided by MSE(P_1, C_1), for two modalities.
        detach_target: train the proxies towards the class states only, not these towards the proxies.
    """

    weight: float = 0.2
    form: str = "sum"
    detach_target: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.form not in ("sum", "printed"):
            raise ValueError(f"alignment: weight must not be negative, and form be sum or printed, not {self}")


class CMPT(Baseline):
    """
    Args:
        encoders: modality name -> :class:`models.encoders.pretrained.PretrainedEncoder`.
        adapter: inside every encoder.
        targets: modality name -> ``Adapter.targets`` where they differ from those of ``adapter``.
        proxy: None = no proxies.
        alignment: of the proxies.
        masks: modality dropout of rows that have everything; others keep the mask that they have.
        drop_at: ``gate``, or ``input``: what is dropped does not reach its encoder either, nor the alignment.
        gate: what stands for a missing modality of which there are several proxies: their ``mean``, or by
            ``confidence``, a softmax over a learned score of each.
        width: to which encoders of different widths are mapped; None = the greatest.
        head_bias: of the linear layer.
        checkpointing: see :class:`models.encoders.pretrained.PretrainedEncoder`.
        prerequisites: ``unimodal_<modality>``, a trained :class:`models.baselines.unimodal.Unimodal` with the same
            encoder; None = the encoders as they are.
        others: see :class:`models.baselines.base.Baseline`; ``reference`` changes nothing.

    Raises:
        UserError: an encoder does not fit its modality, or a target is not in it.
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
            raise ValueError(f"drop_at must be gate or input (it is {drop_at}), gate mean or confidence (it is {gate})")
        if self.alignment.form == "printed" and m != 2:
            raise ValueError(f"alignment.form=printed: is for two modalities, there are {m}; use sum")
        if unknown := sorted(set(targets or {}) - set(names)):
            raise ValueError(f"targets names '{unknown[0]}', the modalities are {', '.join(names)}")
        self.drop_at = drop_at
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        for modality in modalities:
            self._take(modality, (targets or {}).get(modality.name), checkpointing, prerequisites)
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
            yield "model.select=true: proxies, not recoveries of an imputer: set model.use_imputer=false"
        if cfg.model.module.get("proxy") is None:
            yield "model.select=true: there are no proxies (model.module.proxy=null): leave one of them out"

    def _take(
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
                f"CMPT puts tokens into transformers, and the encoder of '{name}' is a {type(encoder).__name__}: give "
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
        """Inputs (B, ...) per modality -> (B, M, M, D): in place (m, k) the proxy of modality k in the encoder of m,
        in (m, m) the class state of m. Without proxies the places off the diagonal are zero."""
        return torch.stack([self.encode_one(i, inputs[name]) for i, name in enumerate(self.modality_names)], dim=1)

    def encode_one(self, i: int, x: Tensor) -> Tensor:
        """Modality ``i`` (B, ...) -> (B, M, D), its row of :meth:`encode`."""
        name = self.modality_names[i]
        proxies, read_only = self._tokens(i)
        summary, others = self.encoder(i).states(x, proxies, read_only)
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

    def _tokens(self, i: int) -> tuple[Tensor | None, bool]:
        """The proxies (M - 1, D_i) that go into the encoder of modality ``i``, and whether others do not see them."""
        if self.proxy is None:
            return None, False
        proxies = self.proxies[i] + self.positions[i] if len(self.positions) else self.proxies[i]
        return proxies, self.proxy.attention == "read_only"

    def attention_maps(self, modality: int, x: Tensor) -> dict[str, Tensor]:
        maps = self.attention(modality, x)
        others = [name for i, name in enumerate(self.modality_names) if i != modality and self.proxy is not None]
        names = [*(f"proxy of {name}" for name in others), "class token"]
        return {name: maps[:, k] for k, name in enumerate(names[: maps.shape[1]])}

    def attention(self, i: int, x: Tensor) -> Tensor:
        """See :meth:`models.encoders.pretrained.PretrainedEncoder.attention`: modality ``i`` (B, ...) -> (B, M, rows,
        columns), the proxies in the order of the other modalities, then the class token."""
        return self.encoder(i).attention(x, *self._tokens(i))

    def complete(self, states: Tensor, missing: Tensor) -> Tensor:
        """Class states of observed modalities, and a proxy for each missing one (Eq. 5).

        Args:
            states: (B, M, M, D) of :meth:`encode`.
            missing: (B, M) bool.

        Returns:
            (B, M, D): C_k, or the mean (by confidence) of P_{m->k} over the m that are there; zeros without proxies.
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
        """The sum of the modalities through the linear layer (Eqs. 3 and 6).

        Args:
            vectors: (B, M, D) of :meth:`complete`.
            missing: (B, M) bool, modalities that are left out of the sum, so that a selection can refuse a proxy; None
                = none.

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
                "the frozen encoders of %s have random weights: give them weights, or train them first (prerequisites: "
                "{unimodal: each_modality})",
                ", ".join(random),
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        drawn = self.masks.draw(batch.missing, self.mask_generator(batch_index))[0]
        incomplete = batch.missing.any(1, keepdim=True)
        dropped = self.hide_more(batch, torch.where(incomplete, batch.missing, drawn))
        seen = dropped if self.drop_at == "input" else batch
        states = self.encode_batch(seen)
        losses = super().loss(self.fuse(states, dropped), dropped)
        if self.proxy is not None and self.alignment.weight:
            losses["classification"] = losses["loss"]
            losses["alignment"] = alignment_loss(states, self.absent(seen), self.alignment)
            losses["loss"] = losses["classification"] + self.alignment.weight * losses["alignment"]
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    def configure_optimizers(self) -> Any:
        """A scheduler that takes ``steps_per_epoch`` is stepped every step."""
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
    """Eq. 4: the squared errors MSE(P_{m->k}, C_k), means over the coordinates, summed over the ordered pairs of
    different modalities that a sample has, divided by M - 1; the mean over the samples that have a pair, 0 where none
    does. In float32 whatever the trainer's precision.

    Args:
        states: (B, M, M, D), see :meth:`CMPT.encode`.
        missing: (B, M) bool.
    """
    m = missing.shape[1]
    with torch.autocast(states.device.type, enabled=False):
        states = states.float()
        observed = ~missing
        pairs = observed[:, :, None] & observed[:, None, :] & ~torch.eye(m, dtype=torch.bool, device=missing.device)
        # Before any arithmetic: the error of missing content could be NaN, whose gradient no mask would stop.
        class_states = torch.where(pairs.any(1)[..., None], states.diagonal(dim1=1, dim2=2).transpose(1, 2), 0)
        targets = class_states.detach() if alignment.detach_target else class_states
        proxies = torch.where(pairs[..., None], states, 0)
        errors = torch.where(pairs, (proxies - targets[:, None]).square().mean(-1), 0).sum((1, 2)) / (m - 1)
        rows = pairs.any((1, 2))
        if alignment.form == "printed":
            errors = errors / (proxies[:, 0, 1] - class_states[:, 0]).square().mean(-1).clamp(min=1e-8)
        return torch.where(rows, errors, 0).sum() / rows.sum().clamp(min=1)
