"""The seam of the defenses: from a network to a defended Target, and where a defense can act at all."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from secure_infer.attacks.base import Access, Bounds, Target
from secure_infer.errors import InvalidInput, Problem


class Place(enum.Enum):
    """Where a defense acts. Encryption blinds a server, so that one of these places is lost."""

    TRAINING = "training"
    """In the weights: acts whatever the server sees."""
    CLIENT_SIDE = "client_side"
    """Before encryption, at the client: guards an honest client's inputs; a client who attacks leaves it out."""
    SERVER_SIDE_COUNT = "server_side_count"
    """At the server, by what it sees of ciphertexts too: who asks, and how often."""
    SERVER_SIDE_PLAINTEXT = "server_side_plaintext"
    """At the server, by reading inputs or answers: impossible under encryption."""

    @property
    def survives_encryption(self) -> bool:
        """Whether it still acts when the server sees ciphertexts alone."""
        return self is not Place.SERVER_SIDE_PLAINTEXT


@dataclass(frozen=True, eq=False)
class Data:
    """What a defense may learn from: training data, never held-out images.

    Attributes:
        images: Within the bounds, `(n, *shape)`.
        labels: Their classes, int64, `(n,)`.
        bounds: Of the images.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        problems = []
        if images.ndim < 2 or not len(images) or not images.is_floating_point():
            what = f"{images.dtype} of shape {tuple(images.shape)}."
            problems.append(Problem("images", what, "give one or more, as a floating-point batch."))
        elif not (images.amin() >= self.bounds.low and images.amax() <= self.bounds.high):
            problems.append(Problem("images", "Values outside the bounds, or not numbers.", "scale the images."))
        if labels.shape != images.shape[:1] or labels.dtype.is_floating_point or (labels < 0).any():
            what = f"{labels.dtype} of shape {tuple(labels.shape)}."
            problems.append(Problem("labels", what, "give one class for each image."))
        if problems:
            raise InvalidInput("A defense can't learn from this.", problems)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.images.shape[1:])


class Defense(abc.ABC):
    """A way to guard a network; its settings are the fields of a frozen dataclass.

    Attributes:
        name: As the command line and the tables call it.
        places: Where it can act.
    """

    name: ClassVar[str]
    places: ClassVar[frozenset[Place]]

    @classmethod
    def places_left(cls) -> frozenset[Place]:
        """Where it can still act when the server sees ciphertexts alone; empty if encryption disables it."""
        return frozenset(place for place in cls.places if place.survives_encryption)

    @abc.abstractmethod
    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.WHITE_BOX, seed: int = 0) -> Target:
        """Defend a network; the network itself is left as it is.

        Args:
            net: From images `(n, *shape)` to logits `(n, classes)`.
            data: To learn from.
            access: What the defended model lets an adversary see. A white box shows the defense too.
            seed: Of all that is random.

        Returns:
            The defended model.
        """
