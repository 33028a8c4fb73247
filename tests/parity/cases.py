"""A case of the golden folder: inputs as tensors, and what they must give."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmetric.losses import ClassLoss, CrossBatchMemory, PairLoss

_SHARED = Path(os.environ.get("DEEPMETRIC_SHARED", Path(__file__).parents[3] / "shared"))
FOLDER = Path(os.environ.get("GOLDEN_DIR", _SHARED / "golden"))


class Case:
    """One file. ``case["margin"]`` is the parameter of that name; the tensors are float64 leaves."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.system, self.variant, self.scenario = (
            fields[name] for name in ("system", "variant", "scenario")
        )
        self.parameters = {entry["peer_name"]: entry["value"] for entry in fields["parameters"]}
        self.embeddings = self._leaf("embeddings")
        self.labels = torch.tensor(fields["labels"])
        self.ref_embeddings = self._leaf("ref_embeddings")
        self.ref_labels = torch.tensor(fields["ref_labels"]) if "ref_labels" in fields else None
        self.beta = self._leaf("beta")
        self.proxies = self._leaf("proxies")
        self.self_in_ref = torch.tensor(fields["self_in_ref"]) if "self_in_ref" in fields else None
        self.as_given = False  # whether our loss took the rows without normalising them

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.parameters.get(name, default)

    def called(self, name: str) -> dict[str, float]:
        """The keyword arguments inside a parameter's text: "Loss(margin=0.2), all" -> {"margin": 0.2}."""
        return {key: float(value) for key, value in re.findall(r"(\w+)=([-+.\deE]+)", self.parameters[name])}

    def apply(self, loss: nn.Module) -> Tensor:
        """Our loss of this case's batch, against its reference set if it has one."""
        self.as_given = not getattr(loss, "normalize", True)
        if self.ref_embeddings is None:
            return loss(self.embeddings, self.labels)
        return loss(self.embeddings, self.labels, self.ref_embeddings, self.ref_labels, self.self_in_ref)

    def with_proxies(self, loss: ClassLoss) -> Tensor:
        """Our loss, built without classes, of this case's batch with this case's proxies."""
        assert self.proxies is not None
        assert self.embeddings is not None
        loss.set_classes(len(self.proxies) // loss.centers, self.embeddings.shape[1])
        del loss.proxies
        loss.proxies = self.proxies  # type: ignore[assignment]  # the leaf itself
        return self.apply(loss)

    def through_memory(self, loss: PairLoss) -> Tensor:
        """The loss after the recorded batches went through our memory, which must hold what the peer's held."""
        assert self.ref_embeddings is not None
        assert self.ref_labels is not None
        memory = CrossBatchMemory(
            loss, self.embeddings.shape[1], self["memory_size"], batch_weight=0.0
        ).double()
        losses = [
            memory(
                torch.tensor(batch["embeddings"], dtype=torch.float64), torch.tensor(batch["labels"])
            ).item()
            for batch in self.fields["previous_batches"]
        ]
        if "previous_losses" in self.fields:
            wanted = torch.tensor(self.fields["previous_losses"], dtype=torch.float64)
            torch.testing.assert_close(
                torch.tensor(losses, dtype=torch.float64), wanted, rtol=1e-9, atol=1e-11
            )
        value = memory(self.embeddings, self.labels)
        assert torch.equal(memory.embeddings, self.ref_embeddings)
        assert torch.equal(memory.labels, self.ref_labels)
        return value

    @property
    def expected(self) -> dict[str, Any]:
        """The peer's numbers; where the peer fails or errs, the suggested convention's."""
        return self.fields if self.fields["status"] == "ok" else self.fields["suggested"]

    def tolerance(self, of: str) -> dict[str, float]:
        """rtol and atol for the "loss" or the "gradients", as the case has them."""
        text = self.fields["tolerance"][of]
        return {name: float(value) for name, value in re.findall(r"([ra]tol) ([-+.\de]+)", text)}

    def expected_gradient(self, name: str) -> Tensor | None:
        """The gradient for "embeddings", "ref", "beta" or "proxies" that our loss must give, None if none is recorded.

        Where the peer takes unit rows as given and ours divides by the norm, the tangential part is left.
        """
        field = f"grad_{name}"
        if self.expected.get(field) is None:
            return None
        gradient = torch.tensor(self.expected[field], dtype=torch.float64)
        if name in ("beta", "proxies") or self.as_given or self.fields["normalization"].startswith("inside"):
            return gradient
        if f"{field}_tangent" in self.expected:
            return torch.tensor(self.expected[f"{field}_tangent"], dtype=torch.float64)
        rows = self.embeddings if name == "embeddings" else self.ref_embeddings
        assert rows is not None
        rows = rows.detach()
        return gradient - (gradient * rows).sum(1, keepdim=True) * rows

    def _leaf(self, name: str) -> Tensor | None:
        if self.fields.get(name) is None:
            return None
        return torch.tensor(self.fields[name], dtype=torch.float64, requires_grad=True)


def names() -> list[str]:
    """Case ids "system/variant/scenario" of the folder; empty when there is none."""
    return [path.stem.replace("__", "/") for path in sorted(FOLDER.glob("*__*.json"))]


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name.replace('/', '__')}.json").read_text(encoding="utf8"))
