"""The same circuit on plain integers with the noise of each look-up drawn by concrete."""

from __future__ import annotations

import numpy as np
from concrete.compiler import ClientProgram, ProgramInfo, Value

from secure_infer.backends.base import Program
from secure_infer.backends.tfhe.roles import CLIENT, Shapes, build
from secure_infer.backends.tfhe.signals import ignore_lost_pipes
from secure_infer.graph.types import Integers
from secure_infer.wire import frame


def simulate(program: Program, x: Integers) -> Integers:
    """Outputs for a batch of inputs, shape `(n, *output shape)`."""
    shapes = Shapes(frame.unpack(program.client, CLIENT).meta)
    samples = shapes.check(x)
    server, specs = build(program.servers[0], simulated=True)
    info = ProgramInfo.deserialize(specs)
    client = ClientProgram.create_simulated(info).get_client_circuit(info.function_list()[0])
    outputs = []
    for sample in samples:
        (result,) = server.simulate([client.simulate_prepare_input(Value(sample), 0)])
        outputs.append(np.asarray(client.simulate_process_output(result, 0).to_py_val()))
    ignore_lost_pipes()
    return shapes.decode(outputs)
