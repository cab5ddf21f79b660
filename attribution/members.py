"""A member as a view of a network: the network itself, or the network under one dropout mask.

Masks are a counter-based hash of (mask, example, site, unit). No random stream is involved, so an
example meets the same mask in every batch, order, shard and split, and an upload can be explained
by the members of an index built long ago. It is known by its pixels, so one that is in a data set
that comes with the program meets the masks that it met there; a person's own files are known by
content and path, so a picture of theirs that is brought again meets others. Each example has a mask
of its own (as in dattri's dropout ensembles) unless it is `shared`; the paper (arXiv 2405.17293,
section 3.2) leaves open which it means.

Axes: B a batch of examples, C classes, U units of a site.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .records import UserError

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
DROPOUTS = (nn.Dropout, *WHOLE_CHANNELS)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)

# Tensors, because each call would have to make one of a number.
FACTORS = torch.tensor([0x7FEB352D, -2073254261], dtype=torch.int32).unbind()
SHIFTS = {s: torch.tensor(s, dtype=torch.int32) for s in (15, 16)}
LOW = {s: torch.tensor((1 << 32 - s) - 1, dtype=torch.int32) for s in SHIFTS}


def example_keys(ids: Sequence[str]) -> np.ndarray:
    """One int64 for each example id: what the masks know of an example."""
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), np.int64)


@dataclass(frozen=True, eq=False)
class View:
    """A network seen through a dropout mask, or (``mask=None``) as it is.

    ``places`` names the modules whose output the mask multiplies; see `mask_sites`.
    """

    network: nn.Module
    places: tuple[str, ...] = ()
    mask: int | None = None
    p: float = 0.0
    shared: bool = False  # one mask for all examples

    def logits(
        self,
        x_B: Tensor,
        key_B: Tensor,
        values: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, C) of examples with keys `key_B` (int64).

        `values` stand in for parameters, `masks` (of `masks_of`) for masks made on the way.
        """
        with self._masked(lambda site, module, out: masks[site] if masks is not None
                          else self._mask(site, module, key_B, out)):  # fmt: skip
            if values is None:
                return self.network(x_B)
            return torch.func.functional_call(self.network, dict(values), (x_B,))

    def masks_of(self, x_B: Tensor, key_B: Tensor) -> dict[str, Tensor]:
        """The masks of a batch by site, each with the batch as its first axis."""
        made: dict[str, Tensor] = {}

        def record(site: str, module: nn.Module, out: Tensor) -> Tensor:
            made[site] = self._mask(site, module, key_B, out)
            return made[site]

        with self._masked(record), torch.no_grad():
            self.network(x_B)
        return made

    @contextmanager
    def _masked(self, mask: Callable[[str, nn.Module, Tensor], Tensor]) -> Iterator[None]:
        """Multiply the output of every site by ``mask(site, module, output)``."""
        calls: dict[str, int] = {}

        def hook(name: str) -> Callable[..., Tensor]:
            def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                calls[name] = calls.get(name, -1) + 1  # a module called twice is two sites
                return out * mask(f"{name}#{calls[name]}", module, out)

            return after

        layers = dict(self.network.named_modules())
        masked = self.places if self.mask is not None else ()
        handles = [layers[name].register_forward_hook(hook(name)) for name in masked]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mask(self, site: str, module: nn.Module, key_B: Tensor, out: Tensor) -> Tensor:
        if out.shape[0] != key_B.shape[0]:
            raise UserError(
                found=f"an output of shape {tuple(out.shape)} at dropout site {site!r} "
                f"for a batch of {key_B.shape[0]}",
                wanted="examples along the first axis",
                next_step="use --strategy naive for this network",
            )
        shape = tuple(out.shape[1:])
        if isinstance(module, WHOLE_CHANNELS):
            shape = (shape[0], *(1 for _ in shape[1:]))
        if self.shared:
            key_B = torch.zeros_like(key_B)
        made_BU = dropout_mask(key_B, site, self.mask or 0, math.prod(shape), self.p)
        return made_BU.view(-1, *shape).to(out.dtype)


def dropout_mask(key_B: Tensor, site: str, mask: int, units: int, p: float) -> Tensor:
    """What `mask` multiplies the units of `site` by, float32 (B, U): 0 with probability p.

    The others get 1/(1-p). Hashing is in wrapping 32-bit arithmetic (xor-shift-multiply, a
    bijection that spreads every input bit), 16 bits of it for a unit, and goes through a few rows
    at a time, which stay in the processor's cache. No tensor of bools is made: torch neither
    writes nor reads one with vector instructions.
    """
    salt = int.from_bytes(hashlib.blake2b(f"{mask}/{site}".encode(), digest_size=8).digest())
    row_B = _mixed64(key_B ^ (salt - 2**63)).to(torch.int32)
    _shift_in(
        row_B, 16, torch.empty_like(row_B)
    )  # a ^ b shifted in is that of a and of b: once each
    pair_U = _pairs((units + 1) // 2, key_B.device)
    out_BU = torch.empty(len(key_B), units, device=key_B.device)
    step = max(1, 2**16 // len(pair_U))
    for row_b, out_bU in zip(row_B.split(step), out_BU.split(step), strict=True):
        h = row_b[:, None] ^ pair_U
        _multiply(h, torch.empty_like(h))
        keep = h.view(torch.int16).ge_(round(p * 2**16) - 2**15)
        out_bU.copy_(keep[:, :units]).mul_(1 / (1 - p))
    return out_BU


@lru_cache(maxsize=64)
def _pairs(count: int, device: torch.device) -> Tensor:
    """The hashed number of each pair of units, int32 (count,), its first step of mixing done."""
    pair_U = torch.arange(count, dtype=torch.int32, device=device)
    room = torch.empty_like(pair_U)
    _shift_in(pair_U, 16, room)
    _multiply(pair_U, room)
    _shift_in(pair_U, 16, room)
    return pair_U


def _multiply(h: Tensor, room: Tensor) -> None:
    """In place, what follows the first shift of the mixing of int32."""
    _shift_in(h.mul_(FACTORS[0]), 15, room)
    _shift_in(h.mul_(FACTORS[1]), 16, room)


def _shift_in(h: Tensor, shift: int, room: Tensor) -> None:
    """In place, h ^ (h >> shift)."""
    # The shift of signed integers copies the sign, which would leave high halves positive.
    torch.bitwise_right_shift(h, SHIFTS[shift], out=room).bitwise_and_(LOW[shift])
    h.bitwise_xor_(room)


def _mixed64(h: Tensor) -> Tensor:
    """Mixed in the same way, its low 32 bits the best."""
    for _ in range(2):
        h = (h ^ ((h >> 32) & 0xFFFFFFFF)) * 0x1B03738712FAD5C9
    return h ^ ((h >> 32) & 0xFFFFFFFF)


def mask_sites(network: nn.Module, x_B: Tensor) -> tuple[str, ...]:
    """Names of the modules whose output a dropout mask multiplies.

    The network's own dropout modules that fire on `x_B`, whatever their rate. A network without
    any gets masks injected after its activation modules, and where it has none of those either,
    after every layer with parameters but the last one to fire.

    Raises `UserError` where none of these fires.
    """
    fired: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: fired.append(name)

    watched = {n: m for n, m in network.named_modules() if n and not list(m.children())}
    handles = [m.register_forward_hook(note(n)) for n, m in watched.items()]
    training = {m: m.training for m in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(x_B[:2])
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    order = list(dict.fromkeys(fired))
    with_parameters = [n for n in order if list(watched[n].parameters())][:-1]
    for names in (
        [n for n in order if isinstance(watched[n], DROPOUTS)],
        [n for n in order if isinstance(watched[n], ACTIVATIONS)],
        with_parameters,
    ):
        if names:
            return tuple(names)
    raise UserError(
        found="a network without dropout, activation modules or a second layer",
        wanted="a place where a dropout mask changes something",
        next_step="use --strategy naive",
    )
