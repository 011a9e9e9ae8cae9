"""Encrypted inference: one network, one API, three cryptosystems.

Importing this package loads no machine-learning and no crypto library; each public name loads what it needs on use.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secure_infer.client import Client
    from secure_infer.client_async import AsyncClient
    from secure_infer.compiler import Compiled, check, compile, load
    from secure_infer.nn.fix import fix
    from secure_infer.zoo import load_model

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "AsyncClient": "secure_infer.client_async",
    "Client": "secure_infer.client",
    "Compiled": "secure_infer.compiler",
    "check": "secure_infer.compiler",
    "compile": "secure_infer.compiler",
    "fix": "secure_infer.nn.fix",
    "load": "secure_infer.compiler",
    "load_model": "secure_infer.zoo",
}

__all__ = ["AsyncClient", "Client", "Compiled", "check", "compile", "fix", "load", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "brevitas", "tqdm"):
            raise
        from secure_infer.errors import missing_extra

        raise missing_extra(f"secure_infer.{name}", "train", error.name) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
