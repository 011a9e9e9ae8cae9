"""One party under SPU: `python -m secure_infer.backends.mpc_spu.party`; see `parties.process`."""

from __future__ import annotations

import functools
import os
import queue
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from secure_infer.backends.mpc_spu.function import OUTPUT, compiled
from secure_infer.backends.mpc_spu.plan import ABY3, Plan, words_of
from secure_infer.backends.mpc_spu.relay import Trunk
from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel, as_bytes
from secure_infer.backends.parties.party import Answer, Party
from secure_infer.backends.parties.streams import KEY_BYTES, Stream, fresh_key
from secure_infer.errors import Problem, ProtocolError
from secure_infer.graph.graph import INPUT
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire.frame import Frame

_KEPT = 16  # executables for batches of different sizes
_RETRY_MS = 100
Words = npt.NDArray[Any]


class SpuParty(Party):
    """A party of two or three, with SPU's protocols.

    Args:
        rank: Its number.
        peers: The channels to the other parties, by number.
        threads: That SPU may use.
        seconds: That it waits for another party.
    """

    def __init__(self, rank: int, peers: Mapping[int, Channel], threads: int, seconds: float) -> None:
        self._outcomes: queue.SimpleQueue[Integers | ProtocolError] = queue.SimpleQueue()
        with tempfile.TemporaryDirectory(prefix="spu-") as name:
            sockets = [Path(name, str(party)) for party in range(len(peers) + 1)]
            trunks = {
                party: Trunk(channel, sockets[rank], sockets[party], self._outcomes.put)
                for party, channel in peers.items()
            }
            super().__init__(rank, trunks, None)
            self._link = _linked(rank, sockets, seconds)
        self._previous, self._next = ((rank + step) % len(sockets) for step in (-1, 1))
        self._threads = threads
        self._plan: Plan | None = None

    def load(self, command: Frame) -> Answer:
        """Take in a plan and this party's words of all secrets; all parties must be given the same plan."""
        plan = Plan.from_bytes(command.parts[0])
        self._agree(command.parts[0])
        self._runtime = _runtime(self._link, plan, self._threads)
        for name, words in words_of(plan, self._rank, command.parts[1]).items():
            self._runtime.set_var(name, _share(plan, words, plan.secrets[name]))
        self._executable = functools.lru_cache(_KEPT)(functools.partial(compiled, plan))
        mine = fresh_key()
        self._peers[self._next].send(mine)
        self._masks = Stream(mine), Stream(bytes(self._peers[self._previous].receive(KEY_BYTES)))
        self._plan = plan
        return self.loaded(), []

    def _primitives(self) -> Mapping[str, float]:
        return {}

    def _model(self) -> tuple[str, Shape]:
        if self._plan is None:
            raise ProtocolError("No model is loaded.")
        return self._plan.model, self._plan.input_shape

    def _evaluate(self, share: Integers) -> Integers:
        """Run in a thread: SPU would look at nothing else until its time limit, even if another party is gone."""
        threading.Thread(target=self._work, args=(share,), daemon=True).start()
        outcome = self._outcomes.get()
        if isinstance(outcome, ProtocolError):
            raise outcome
        return outcome

    def _work(self, share: Integers) -> None:
        try:
            self._outcomes.put(self._run(share))
        except ProtocolError as error:
            self._outcomes.put(error)
        except Exception as error:
            what = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
            problem = Problem("SPU", f"{type(error).__name__}: {what}", "start the servers again, and ask again.")
            self._outcomes.put(ProtocolError("SPU failed.", [problem]))

    def _run(self, share: Integers) -> Integers:
        plan = cast(Plan, self._plan)
        words = [share.astype(plan.word)]
        if plan.scheme == ABY3:
            self._peers[self._previous].send(as_bytes(words[0]))
            words.append(np.frombuffer(self._peers[self._next].receive(words[0].nbytes), plan.word))
        self._runtime.set_var(INPUT, _share(plan, words, share.shape))
        self._runtime.run(self._executable(len(share)))
        result = _first_words(plan, self._runtime.get_var(OUTPUT)).reshape(len(share), *plan.shapes[plan.output])
        # Masks that add up to zero: the client learns the result from the replies, and nothing else.
        mine, theirs = (stream.elements(result.shape, plan.word) for stream in self._masks)
        return np.asarray(result + mine - theirs).astype(np.int64)


def _linked(rank: int, sockets: Sequence[Path], seconds: float) -> Any:
    """SPU's connections between all parties, through sockets that stand for them."""
    from spu import libspu

    quiet = libspu.logging.LogOptions()  # or it would write all that it sends into a file
    quiet.log_level, quiet.enable_console_logger = libspu.logging.LogLevel.ERROR, False
    quiet.system_log_path = quiet.trace_log_path = os.devnull
    libspu.logging.setup_logging(quiet)
    description = libspu.link.Desc()
    for party, path in enumerate(sockets):
        description.add_party(f"party {party}", f"unix:{path}")
    description.recv_timeout_ms = int(1000 * seconds)
    description.connect_retry_interval_ms = _RETRY_MS
    description.connect_retry_times = int(1000 * seconds / _RETRY_MS) + 1
    try:
        return libspu.link.create_brpc(description, rank)
    except RuntimeError as error:
        problem = Problem("parties", "They did not answer in time.", "start the servers again.")
        raise ProtocolError("SPU can't reach its other parties.", [problem]) from error


def _runtime(link: Any, plan: Plan, threads: int) -> Any:
    from spu import Runtime, libspu

    kind, field = getattr(libspu.ProtocolKind, plan.scheme.upper()), getattr(libspu.FieldType, f"FM{plan.ring}")
    configuration = libspu.RuntimeConfig(protocol=kind, field=field)
    configuration.max_concurrency = threads
    return Runtime(link, configuration)


def _share(plan: Plan, words: Sequence[Words], shape: Shape) -> Any:
    """A party's arithmetic share as SPU takes it: under ABY3 its own word beside the next party's."""
    from spu import libspu

    content = np.stack([part.reshape(-1) for part in words], axis=1).tobytes()
    meta, chunk, share = libspu.ValueMeta(), libspu.ValueChunk(), libspu.Share()
    meta.data_type = getattr(libspu.DataType, f"DT_I{plan.ring}")
    meta.visibility, meta.shape = libspu.Visibility.VIS_SECRET, list(shape)
    meta.storage_type = f"{plan.scheme}.AShr<FM{plan.ring}>"
    chunk.total_bytes, chunk.content = len(content), content
    share.meta, share.share_chunks = meta.SerializeToString(), [chunk.SerializeToString()]
    return share


def _first_words(plan: Plan, share: Any) -> Words:
    """A party's own words of an arithmetic share: all parties' add up to the value."""
    from spu import libspu

    meta = libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    if meta.storage_type != f"{plan.scheme}.AShr<FM{plan.ring}>":
        raise ProtocolError(f"SPU's result is a {meta.storage_type}, which can't be added.")
    content = bytearray()
    for data in share.share_chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        content += chunk.content
    words = np.frombuffer(content, plan.word)
    return words[::2] if plan.scheme == ABY3 else words


def main() -> None:
    """Serve one role until standard input ends."""
    os.environ["JAX_PLATFORMS"] = "cpu"

    def sit(
        rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
    ) -> Party:
        return SpuParty(rank, peers, threads, settings["seconds"])

    def deal(*ignored: object) -> NoReturn:
        raise ProtocolError("mpc-spu has no dealer.")

    process.main(sit, deal)


if __name__ == "__main__":
    main()
