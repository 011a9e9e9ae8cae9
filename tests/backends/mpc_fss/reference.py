"""Distributed comparison for one function and one point at a time, in plain integers: slow, and written on its own."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

LOW = (1 << 128) - 1 - 3


class Slow:
    """Evaluates one key as the definition says: walk down from the root, then pick a word of the last block."""

    def __init__(self, key: bytes, bits: int, payload: int, word: int) -> None:
        self.encryptor = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
        self.bits, self.payload, self.word = bits, payload, word
        self.cut, value = 1, payload * word
        while value << self.cut <= 2 * (128 + value) and self.cut < bits:
            self.cut += 1

    def block(self, seed: int, tweak: int) -> int:
        """AES(K, s ^ j) ^ s ^ j, where a block is a little-endian number and j is added to its upper half."""
        given = seed ^ (tweak << 64)
        made = self.encryptor.update(given.to_bytes(16, "little"))
        return int.from_bytes(made, "little") ^ given

    def words(self, seed: int, tweak: int, count: int) -> list[int]:
        blocks = [self.block(seed, tweak + 8 * i) for i in range(-(-count * self.word // 128))]
        text = b"".join(block.to_bytes(16, "little") for block in blocks)
        size = self.word // 8
        return [int.from_bytes(text[size * i : size * (i + 1)], "little") for i in range(count)]

    def value(
        self,
        party: int,
        root: int,
        seeds: list[int],
        values: list[list[int]],
        leaves: list[list[int]],
        x: int,
    ) -> list[int]:
        """A party's share of f(x); corrections are given level by level."""
        seed, control = root, party
        total = [0] * self.payload
        for level in range(self.bits - self.cut):
            right = (x >> (self.bits - 1 - level)) & 1
            below, numbers = self.block(seed, right), self.words(seed, 2 + right, self.payload)
            flag = below & 1
            seed = below & LOW
            for i in range(self.payload):
                total[i] += numbers[i] + (values[level][i] if control else 0)
            if control:
                seed ^= seeds[level] & LOW
                flag ^= (seeds[level] >> right) & 1
            control = flag
        leaf, shared = x % (1 << self.cut), max(1, 128 // (self.payload * self.word))
        shared = min(shared, 1 << self.cut)
        blocks = -(-self.payload * self.word // 128)
        numbers = self.words(seed, 4 + 8 * (leaf // shared) * blocks, shared * self.payload)
        for i in range(self.payload):
            total[i] += numbers[leaf % shared * self.payload + i] + (leaves[leaf][i] if control else 0)
        return [(-t if party else t) % (1 << self.word) for t in total]
