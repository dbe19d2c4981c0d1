"""Importance-weighted marginalisation: posterior draws weighted by how much a critic takes them for real
(docs/reference/rules.md §5)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Prediction
from models.dymo.rule import Candidates, Examples, Rule, RuleSettings
from utils.checksums import verify_artefact
from utils.errors import UserError
from utils.files import replacing
from utils.noise import hash_seed, row_uniform

BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 3e-3, 1e-3
HELD_OUT = 0.1  # of the training rows, for the choice of the epoch
SEED = 2012


class Network(nn.Module):
    """Logit of "real", given the fused feature of everything, that of what is observed, and the mask.

    Args:
        features: D_p of the backbone.
        modalities: M.
        width: of the two hidden layers.

    Before training its logit is 0: all draws have the same weight, 1.
    """

    def __init__(self, features: int, modalities: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * features))
        self.register_buffer("scale", torch.ones(2 * features))
        self.mean: Tensor
        self.scale: Tensor
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = nn.Linear(2 * features + modalities, width)
        self.layers = nn.Sequential(first, nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, features: Tensor, observed: Tensor, missing: Tensor) -> Tensor:
        """(..., D_p), (..., D_p), (..., M) bool -> (...)."""
        x = (torch.cat([features, observed], -1) - self.mean) / self.scale
        return self.layers(torch.cat([x, missing.to(x.dtype)], -1))[..., 0]


def train_network(examples: Examples, width: int, epochs: int, seed: int) -> tuple[Network, dict[str, float]]:
    """Train on real against recovered rows; the global random state stays as it is.

    Returns:
        the network of the epoch with the smallest loss on held-out rows, epoch 0 (no training) included; and the loss,
        log 2 for a network that cannot tell them apart, with the epoch and the number of rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(SEED, seed))
        network = Network(examples.real.shape[1], examples.missing.shape[1], width)
        is_held_out = row_uniform(examples.index, 1, hash_seed(SEED, seed, 1))[:, 0] <= HELD_OUT
        train, held_out = examples[~is_held_out], examples[is_held_out]
        pairs = torch.cat([torch.cat([x, train.observed], 1) for x in (train.real, train.recovered)])
        if len(pairs):
            network.mean.copy_(pairs.mean(0))
            network.scale.copy_(pairs.std(0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, lowest, chosen = _copy(network), math.log(2), 0
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(len(train)).split(BATCH):
                optimizer.zero_grad()
                loss(network, train[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                value = float(loss(network, held_out)) if len(held_out) else math.inf
            if value < lowest:
                best, lowest, chosen = _copy(network), value, epoch
        network.load_state_dict(best)
    return network.eval(), {"loss": lowest, "epoch": chosen, "rows": len(train)}


def loss(network: Network, examples: Examples) -> Tensor:
    """Mean cross-entropy of real against recovered rows, equally many."""
    real = network(examples.real, examples.observed, examples.missing)
    recovered = network(examples.recovered, examples.observed, examples.missing)
    return (F.softplus(-real).mean() + F.softplus(recovered).mean()) / 2


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


class Critic(Rule):
    """Mean over the draws, weighted by D / (1 - D) of the critic, mixed with discarding by 1 - mean weight."""

    name = "critic"
    needs_draws = True
    needs_features = True
    needs_validation = False

    def __init__(self, settings: RuleSettings) -> None:
        super().__init__(settings)
        self.network: Network | None = None
        self.about: dict[str, Any] = {}

    @property
    def is_ready(self) -> bool:
        return self.network is not None

    def learn(self, examples: Examples, seed: int) -> None:
        s = self.settings
        self.network, self.about = train_network(examples, s.critic_width, s.critic_epochs, seed)

    def predict(self, candidates: Candidates) -> Prediction:
        assert self.network is not None and candidates.recovered is not None
        recovered, observed = candidates.recovered, candidates.observed
        assert observed is not None
        network = self.network.to(recovered.features.device)
        shape = recovered.features.shape[:2]
        ratios = network(
            recovered.features, observed.expand(*shape, -1), candidates.missing.expand(*shape, -1)
        )  # log of D / (1 - D), (S, B)
        discard = candidates.empty_logits()
        for lattice in candidates.lattices:
            discard[lattice.rows] = lattice.logits[:, 0]
        mixed = mix(recovered.logits, ratios, discard)
        nothing = candidates.nothing_recovered
        return Prediction(torch.where(nothing[:, None], discard, mixed))

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write ``.safetensors`` with what was measured, and ``about``, in the header."""
        assert self.network is not None
        tensors = {k: v.contiguous().cpu() for k, v in self.network.state_dict().items()}
        content = safetensors.torch.save(tensors, {"about": json.dumps(self.about | dict(about))})
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def load(self, path: Path, features: int, modalities: int) -> dict[str, Any]:
        """Read a file of :meth:`save`.

        Args:
            features: D_p of the backbone.
            modalities: M.

        Returns:
            what its header says.

        Raises:
            UserError: the file was damaged, or holds no critic for such a backbone.
        """
        verify_artefact(path)
        network = Network(features, modalities, self.settings.critic_width)
        try:
            with safetensors.safe_open(path, "pt") as file:
                self.about = json.loads((file.metadata() or {})["about"])
                network.load_state_dict({k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118 (not a mapping)
        except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{path} holds no critic of {features} features and {modalities} modalities ({reason}): delete it, and "
                "stage 'test' trains it again"
            ) from None
        if not all(value.isfinite().all() for value in network.state_dict().values()):
            raise UserError(f"{path} holds values that are not finite: delete it, and stage 'test' trains it again")
        self.network = network.eval()
        return self.about


def mix(logits: Tensor, ratios: Tensor, discard: Tensor) -> Tensor:
    """Log-probabilities (B, C) of the weighted mean over S draws, mixed with discarding by 1 - mean weight, at least 0.

    Args:
        logits: (S, B, C) of the draws.
        ratios: (S, B) logarithms of their weights.
        discard: (B, C).
    """
    log_mean = ratios.logsumexp(0) - math.log(len(ratios))
    share = log_mean.clamp(max=0)  # log of the mean weight, (B,)
    draws = (ratios.log_softmax(0)[..., None] + logits.log_softmax(-1)).logsumexp(0)
    left = torch.log(-torch.expm1(share))
    return torch.logaddexp(share[:, None] + draws, left[:, None] + discard.log_softmax(-1))
