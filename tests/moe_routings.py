"""Which expert every pair of a token and a slot goes to, of many kinds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Routing:
    """Which expert each of tokens x top_k pairs goes to.

    kind: balanced; skewed (the r-th expert's share falls as r^-1.2); one (all pairs to one expert); stairs (expert e
    gets e of experts * (experts - 1) / 2 pairs); gaps (even experts get nothing); mapped (skewed over twice as many
    experts, of which every other is another device's, and one slot in eight is empty); nobody (all slots are empty).
    Tokens from `used` on have empty slots only.
    """

    kind: str
    tokens: int
    top_k: int
    experts: int
    used: int | None = None

    def __str__(self) -> str:
        used = "" if self.used is None else f"_of_which_{self.used}"
        return f"{self.kind}-{self.tokens}{used}-top{self.top_k}-E{self.experts}"

    @property
    def expert_map(self) -> torch.Tensor:
        """int64: the index here of every expert of all devices, or -1."""
        if self.kind != "mapped":
            return torch.arange(self.experts)
        everywhere = torch.arange(2 * self.experts)
        return torch.where(everywhere % 2 == 1, everywhere // 2, -1)

    def pairs(self) -> torch.Tensor:
        """int64 [tokens * top_k]: the expert of all devices' that a pair goes to, or -1."""
        generator = torch.Generator().manual_seed(self.tokens * 1009 + self.top_k)
        shape, everywhere = (self.tokens, self.top_k), len(self.expert_map)
        ids = torch.arange(self.tokens * self.top_k).view(shape) % everywhere
        if self.kind == "one":
            ids.fill_(everywhere // 2)
        elif self.kind == "nobody":
            ids.fill_(-1)
        elif self.kind == "stairs":
            ids = torch.arange(everywhere).repeat_interleave(torch.arange(everywhere)).view(shape)
        elif self.kind != "balanced":
            share = (torch.arange(everywhere) + 1.0) ** -1.2
            if self.kind == "gaps":
                share[::2] = 0
            distinct = self.top_k <= int(share.count_nonzero())
            ids = torch.multinomial(share.expand(self.tokens, -1), self.top_k, not distinct, generator=generator)
        if self.kind == "mapped":
            ids[torch.rand(shape, generator=generator) < 1 / 8] = -1
        if self.used is not None:
            ids[self.used :] = -1
        return ids.view(-1)

    def local(self) -> torch.Tensor:
        """int64 [tokens * top_k]: the expert here of every pair, or -1."""
        pairs = self.pairs()
        return torch.where(pairs >= 0, self.expert_map[pairs], -1)


def _routings() -> Iterator[Routing]:
    for tokens, top_k, experts in [(1, 1, 1), (16, 4, 8), (300, 8, 8), (64, 1, 128), (1000, 1, 1), (0, 4, 8)]:
        yield Routing("balanced", tokens, top_k, experts)
    for tokens, top_k, experts in [(3, 6, 8), (64, 4, 8), (1000, 4, 8), (1, 8, 128), (16, 8, 128), (1000, 8, 128)]:
        yield Routing("skewed", tokens, top_k, experts)
    for tokens, experts in [(16, 8), (64, 128), (300, 8), (1000, 8)]:
        yield Routing("one", tokens, 1, experts)
    for tokens, top_k, experts in [(3, 1, 8), (64, 4, 8), (300, 6, 128)]:
        yield Routing("gaps", tokens, top_k, experts)
    for tokens, top_k, experts in [(1, 4, 8), (16, 6, 8), (300, 4, 8), (1000, 8, 128)]:
        yield Routing("mapped", tokens, top_k, experts)
    yield Routing("nobody", 16, 4, 8)


ROUTINGS = list(_routings())
