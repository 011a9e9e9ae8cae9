"""What each client has spent, and what each request may cost: once, whatever happens in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secure_infer.errors import SecureInferError
from secure_infer.serve.accounts import Account


@dataclass(frozen=True)
class Admission:
    """What becomes of a request.

    Attributes:
        kind: `new` is to be run and settled; `replay` was answered already, here is its reply; `running` is being run,
            for another connection with the same request id: ask again after `retry_after` seconds (409).
        reply: The stored reply of a replay.
    """

    kind: Literal["new", "replay", "running"]
    client: str
    model: str
    key_name: str
    request_id: str
    received: int = 0
    attempt: int = 1
    reply: bytes = b""
    retry_after: float = 1.0


class Budgets:
    """Admission and settlement of requests, each in one transaction, audit record included."""

    def admit(
        self, account: Account, model: str, key_name: str, request_id: str, digest: str, received: int = 0
    ) -> Admission:
        """Admit a request and charge its client for it, once for a request id.

        Args:
            account: Who asks.
            model: Name of the model.
            key_name: SHA-256 of the evaluation keys; empty where there are none.
            request_id: 32 lower-case hexadecimal digits.
            digest: SHA-256 of the message, hexadecimal.
            received: Bytes of the message, for the audit log.

        Raises:
            LimitExceeded: The client's budget is spent (429); `retry_after` is when its window ends.
            InvalidInput: Not a request id; one that was used for another message; or one whose reply is no longer
                kept (422).
        """
        raise NotImplementedError

    def settle(self, admission: Admission, outcome: bytes | SecureInferError, cpu_s: float = 0.0) -> None:
        """Keep the reply of a `new` request for its retries, or note its failure; charge its CPU; write the audit record.

        A LimitExceeded (no worker had room, nothing was run) gives the charge back. Any other error leaves it, and the
        same request id may be run again without a second charge. Once settled, a request stays as it is.
        """
        raise NotImplementedError
