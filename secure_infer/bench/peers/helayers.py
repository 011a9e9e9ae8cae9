"""HElayers, a closed library: to compare with only, where the user has accepted its non-commercial licence."""

from __future__ import annotations

import os

from secure_infer.bench.peers.foreign import Foreign

ACCEPTED = "SECURE_INFER_ACCEPT_HELAYERS_LICENSE"


class HElayers(Foreign):
    """Imported from ONNX, with packing and parameters by its own optimizer for one image a request."""

    name = "helayers"
    packages = "pyhelayers onnx 'numpy<2'"
    adapter = "helayers_adapter.py"

    def _interpreter(self) -> str:
        if os.environ.get(ACCEPTED) != "yes":
            raise self._absent(f"Its licence forbids commercial use; {ACCEPTED}=yes says that you have accepted it.")
        return super()._interpreter()
