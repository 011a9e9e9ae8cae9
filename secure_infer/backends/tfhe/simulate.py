"""The same circuit on plain integers with the noise of each look-up drawn by concrete."""

from __future__ import annotations

import numpy as np
from concrete.compiler import ClientProgram, ProgramInfo, Value

from secure_infer.backends.base import Program
from secure_infer.backends.tfhe.roles import CLIENT, Shapes, build
from secure_infer.backends.tfhe.signals import ignore_lost_pipes
from secure_infer.graph.types import Integers
from secure_infer.wire import frame


class Simulation:
    """A program that answers many batches; making it takes longer than an answer.

    Args:
        program: Of this backend.
    """

    def __init__(self, program: Program) -> None:
        self._shapes = Shapes(frame.unpack(program.client, CLIENT).meta)
        self._server, specs = build(program.servers[0], simulated=True)
        info = ProgramInfo.deserialize(specs)
        self._client = ClientProgram.create_simulated(info).get_client_circuit(info.function_list()[0])

    def __call__(self, x: Integers, seed: int = 0) -> Integers:
        """Outputs for a batch of inputs, shape `(n, *output shape)`; the library draws the noise, whatever the seed."""
        outputs = []
        for sample in self._shapes.check(x):
            (result,) = self._server.simulate([self._client.simulate_prepare_input(Value(sample), 0)])
            outputs.append(np.asarray(self._client.simulate_process_output(result, 0).to_py_val()))
        ignore_lost_pipes()
        return self._shapes.decode(outputs)
