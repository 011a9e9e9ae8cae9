"""The client for `await`: many requests of one program on their way at once; crypto runs in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from secure_infer.backends.base import Keys
from secure_infer.client import ClientSide, Prediction, Stopwatch, addresses
from secure_infer.errors import Problem, UsageError
from secure_infer.wire.access import Access
from secure_infer.wire.http import AsyncHttp
from secure_infer.wire.talk import Progress


class AsyncClient(ClientSide):
    """Encrypted prediction with one model on a server; made by `await AsyncClient.connect(...)`.

    Its verbs are those of `Client`, and mean the same. Tasks may share it, and do not wait for one another's replies.
    """

    def __init__(self, transport: AsyncHttp, data: bytes, key_cache: str | Path | None = None) -> None:
        super().__init__(data, key_cache)
        self._transport, self._uploading = transport, asyncio.Lock()

    @classmethod
    async def connect(
        cls,
        address: str | Sequence[str],
        *,
        key_cache: str | Path | None = None,
        model: str = "",
        progress: Progress | None = None,
        **access: Any,
    ) -> AsyncClient:
        """A client of a model on a server; arguments and errors are those of `Client.connect`."""
        urls = addresses(address)
        if not urls:
            raise UsageError(
                "This client needs a server.",
                [Problem(str(address), "It is no URL.", "give https://host:port; a path is for `Client`.")],
            )
        transport = await AsyncHttp.open(urls, model, Access.of(access), progress)
        try:
            data = await transport.client_half()
            return await asyncio.to_thread(cls, transport, data, key_cache)
        except BaseException:
            await transport.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the servers."""
        await self._transport.close()

    async def predict(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The network's outputs for a batch of reals `x`, shape `(n, *input shape)`, computed on ciphertexts."""
        return (await self.infer(x)).outputs

    async def infer(self, x: npt.ArrayLike) -> Prediction:
        """Like `predict`, with time by phase and traffic; raises what `Client.infer` raises."""
        units = self.interface.quantize(x)
        keys, watch = await self.keys(), Stopwatch()
        messages = await asyncio.to_thread(self._encrypt, units, keys, watch)
        answer = await self._transport.infer(messages, self._key_name)
        return await asyncio.to_thread(self._decrypt, messages, answer, keys, watch, len(units))

    async def keys(self) -> Keys:
        """This client's keys: made (or read from the cache) and uploaded on first use."""
        async with self._uploading:
            if self._keys is None:
                keys = await asyncio.to_thread(self._made)
                with self.stopwatch.phase("upload"):
                    self._key_name = await self._transport.upload(keys.evaluation)
                self._keys = keys
            return self._keys
