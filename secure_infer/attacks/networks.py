"""Targets made of a torch network or of any function: the forms that need nothing but torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from secure_infer.attacks.base import Access, Answer, Bounds, Target
from secure_infer.errors import InvalidInput, Problem

_IN_CACHE = 1 << 18
"""Most values that go through a network at once on a CPU, so that what its layers keep of them stays in the cache."""


class NetworkTarget(Target):
    """A torch network in evaluation mode.

    Args:
        net: From images `(n, *shape)` to logits `(n, classes)`.
        shape: Shape of one input.
        name: What it is, for tables.
        access: What it lets an adversary see.
        bounds: Of its inputs.
        budget: Queries that it answers; None for no limit.
        backward: A differentiable stand-in that gives the gradients while `net` gives the values (backward pass
            differentiable approximation, Athalye et al. 2018); None if `net` has gradients of its own, as those of
            straight-through estimators.

    Raises:
        InvalidInput: It does not take such inputs, or the outputs, or those of the stand-in, are no finite logits, one
            row an image.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, ...],
        *,
        name: str = "network",
        access: Access = Access.WHITE_BOX,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        budget: int | None = None,
        backward: nn.Module | None = None,
    ) -> None:
        self._net, self._backward = net.eval(), None if backward is None else backward.eval()
        classes = _classes(net, shape, bounds)
        if backward is not None and (found := _classes(backward, shape, bounds)) != classes:
            raise InvalidInput(
                "The stand-in for gradients does not fit.",
                [Problem("backward", f"{found} classes, the model has {classes}.", "give one with the same classes.")],
            )
        super().__init__(name, access, shape, classes, bounds, budget)

    def _answer(self, x: Tensor) -> Answer:
        return answer(_forward(self._net, x), self.access)

    def _logits(self, x: Tensor) -> Tensor:
        if self._backward is None:
            return _forward(self._net, x)
        soft, hard = _forward(self._backward, x), _forward(self._net, x.detach())
        return soft + (hard - soft).detach()


class FunctionTarget(Target):
    """Anything that maps images to logits (or, with LABEL access, to classes): no gradients.

    Args:
        function: From images `(n, *shape)` to logits `(n, classes)`, or to classes `(n,)` under LABEL access.
        shape: Shape of one input.
        classes: Number of classes.
        name: What it is, for tables.
        access: LABEL, PROBABILITIES or LOGITS.
        bounds: Of its inputs.
        budget: Queries that it answers; None for no limit.

    Raises:
        InvalidInput: White-box access; when asked, answers of another form.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        classes: int,
        *,
        name: str = "function",
        access: Access = Access.LOGITS,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        budget: int | None = None,
    ) -> None:
        if access is Access.WHITE_BOX:
            raise InvalidInput(
                "A function gives no gradients.",
                [Problem("access", "WHITE_BOX.", "give a NetworkTarget, or LOGITS access or less.")],
            )
        self._function = function
        super().__init__(name, access, shape, classes, bounds, budget)

    def _answer(self, x: Tensor) -> Answer:
        found = self._function(x)
        if self.access is Access.LABEL and found.shape == (len(x),) and not found.is_floating_point():
            return Answer(found)
        if found.shape != (len(x), self.classes):
            raise InvalidInput(
                f"The function {self.name} gives no answers.",
                [
                    Problem(
                        "function",
                        f"{found.dtype} of shape {tuple(found.shape)}.",
                        f"return logits ({len(x)}, {self.classes}), or whole classes ({len(x)},) under LABEL access.",
                    )
                ],
            )
        return answer(found, self.access)


def answer(logits: Tensor, access: Access) -> Answer:
    """What a model with these logits tells an adversary of that access."""
    labels = logits.argmax(1)
    if access is Access.LABEL:
        return Answer(labels)
    return Answer(labels, logits.log_softmax(1) if access is Access.PROBABILITIES else logits)


def _forward(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of a batch; on a CPU, part by part."""
    count = min(math.ceil(x.numel() / _IN_CACHE), len(x)) if x.device.type == "cpu" else 1
    logits: Tensor = net(x) if count < 2 else torch.cat([net(part) for part in x.tensor_split(count)])
    return logits


def _classes(net: nn.Module, shape: tuple[int, ...], bounds: Bounds) -> int:
    first = next(net.parameters(), torch.empty(0))
    probe = torch.full((2, *shape), (bounds.low + bounds.high) / 2, device=first.device)
    try:
        with torch.no_grad():
            logits = net(probe)
    except (RuntimeError, ValueError, IndexError) as error:
        what = f"It refuses inputs of shape {tuple(probe.shape)} ({str(error).splitlines()[0]})."
        problem = Problem("model", what, "give a network for such inputs, or inputs for this network.")
        raise InvalidInput("The model does not take such inputs.", [problem]) from error
    good = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == 2 and logits.shape[1] >= 2
    if not good or not bool(logits.isfinite().all()):
        raise InvalidInput(
            "The model's outputs are not logits.",
            [
                Problem(
                    "model", f"{_described(logits)}.", "return finite scores of shape (n, classes), 2 classes or more."
                )
            ],
        )
    if bool(logits.ge(0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise InvalidInput(
            "The model's outputs are probabilities, not logits.",
            [Problem("model", "Each row is positive and adds up to 1.", "remove the softmax at its end.")],
        )
    return int(logits.shape[1])


def _described(logits: object) -> str:
    return f"Values of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"A {type(logits).__name__}"
