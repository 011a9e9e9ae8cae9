"""The state of training between two epochs: an interrupted run goes on from it as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secure_infer import files
from secure_infer.errors import Problem, UsageError

_STATE = "state"


class Checkpoint:
    """A file that holds weights, optimizer, schedule and random state after the last whole epoch.

    Args:
        path: Written after each epoch, read where it exists.
        plan: Text that tells this training from others: one recipe's state means nothing to another.
    """

    def __init__(self, path: Path, plan: str) -> None:
        self._path, self._plan = path, plan

    def save(self, net: nn.Module, optimizer: Any, schedule: Any, progress: Mapping[str, Any]) -> None:
        """Write the state; `progress` is anything that JSON can hold.

        Raises:
            UsageError: The file can't be written.
        """
        state = optimizer.state_dict()
        tensors = {"random": torch.get_rng_state(), **_prefixed("net", net.state_dict())}
        for index, entries in state["state"].items():
            tensors |= _prefixed(f"optimizer.{index}", entries)
        times = {key: value for key, value in schedule.state_dict().items() if not callable(value)}
        plain = {"groups": state["param_groups"], "schedule": times, "progress": progress}
        document = {"plan": self._plan, _STATE: json.dumps(plain)}
        files.write(self._path, save({name: t.contiguous() for name, t in tensors.items()}, document))

    def restore(self, net: nn.Module, optimizer: Any, schedule: Any) -> dict[str, Any]:
        """Put everything back, in place; the progress that was saved, empty if the file is not there.

        Raises:
            UsageError: The file is no checkpoint, or that of another training.
        """
        if not self._path.exists():
            return {}
        plain, tensors = self._read()
        entries: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensors[name]
        net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
        optimizer.load_state_dict({"state": entries, "param_groups": plain["groups"]})
        schedule.load_state_dict(plain["schedule"])
        torch.set_rng_state(tensors["random"])
        progress: dict[str, Any] = plain["progress"]
        return progress

    def remove(self) -> None:
        """Delete the file, since training is over."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self._path, framework="pt") as opened:
                document = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise self._unusable(f"It can't be read: {error}.") from error
        if document.get("plan") != self._plan:
            raise self._unusable("It belongs to another recipe.")
        return json.loads(document[_STATE]), tensors

    def _unusable(self, what: str) -> UsageError:
        return UsageError(
            "Training can't go on from this checkpoint.",
            [Problem(str(self._path), what, "delete the file, or name another one.")],
        )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
