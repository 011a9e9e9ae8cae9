"""Somebody's model as a graph: torch networks by symbolic trace, scikit-learn models by what they learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from secure_infer.graph import Graph

__all__ = ["is_tabular", "to_graph"]


def to_graph(
    net: Any, calibration: npt.ArrayLike, protocol: str, n_bits: int | Mapping[str, int] | None = None
) -> Graph:
    """Translate a torch network, a scikit-learn model or pipeline, or an XGBoost model to an integer graph.

    See `frontends.translate.to_graph` for networks and `frontends.tabular.to_graph` for the others: arguments, what the
    outputs mean, and errors are theirs.
    """
    if is_tabular(net):
        from secure_infer.frontends.tabular import to_graph as from_tabular

        return from_tabular(net, calibration, protocol, n_bits)
    from secure_infer.frontends.translate import to_graph as from_torch

    return from_torch(net, calibration, protocol, n_bits)


def is_tabular(model: Any) -> bool:
    """Whether a model comes from scikit-learn or XGBoost, or is a class derived from one that does."""
    return any(kind.__module__.split(".")[0] in ("sklearn", "xgboost") for kind in type(model).__mro__)
