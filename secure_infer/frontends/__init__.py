"""Somebody's network as a graph: torch networks by symbolic trace, with a handler for each layer."""

from secure_infer.frontends.context import Precision
from secure_infer.frontends.translate import to_graph

__all__ = ["Precision", "to_graph"]
