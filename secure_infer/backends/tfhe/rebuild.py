"""A compiled circuit for another version of concrete-python: the same look-ups, with the parameters it chooses."""

from __future__ import annotations

from dataclasses import replace

from concrete import fhe

from secure_infer.backends.base import Program
from secure_infer.backends.tfhe import keys as keyring
from secure_infer.backends.tfhe.assemble import costs, scheme
from secure_infer.backends.tfhe.roles import CLIENT, SERVER, compiled, description, discard_files
from secure_infer.wire import frame


def rebuild(program: Program) -> Program:
    """Both halves anew from the text of the circuit. The network stays the same; the keys do not.

    Raises:
        BundleError: A malformed half, or text that this version of concrete-python does not read.
    """
    old, client = frame.unpack(program.servers[0], SERVER), frame.unpack(program.client, CLIENT)
    settings = {**old.meta["settings"], "shared": False}
    server = compiled(old.parts[0], settings, None, simulated=False)
    specs = description(server.client_specs)
    half = frame.pack(SERVER, [old.parts[0], specs], {"settings": settings, "version": fhe.__version__})
    renewed = replace(
        program,
        servers=(half,),
        client=frame.pack(CLIENT, [specs], {**client.meta, "key_set": keyring.key_set(specs)}),
        guarantee=replace(program.guarantee, scheme=scheme()),
        parameters={**program.parameters, **costs(server)},
    )
    discard_files(server)
    return renewed
