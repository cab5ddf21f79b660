"""A member as a view of a network: the network itself, or the network under one dropout mask.

Masks are a counter-based hash of (mask, example, site, unit). No random stream is involved, so an
example meets the same mask in every batch, order, shard and split, and an upload can be explained
by the members of an index built long ago. Each example has a mask of its own (as in dattri's
dropout ensembles); the paper (arXiv 2405.17293, section 3.2) leaves open which it means.

Axes: B a batch of examples, C classes, U units of a site.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .records import UserError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)


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

    def logits(
        self, x_B: Tensor, key_B: Tensor, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits (B, C) of examples with keys `key_B` (int64), `values` in place of parameters."""
        calls: dict[str, int] = {}

        def hook(name: str) -> Callable[..., Tensor]:
            def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                calls[name] = calls.get(name, -1) + 1  # a module called twice is two sites
                return out * self._mask(f"{name}#{calls[name]}", module, key_B, out)

            return after

        layers = dict(self.network.named_modules())
        masked = self.places if self.mask is not None else ()
        handles = [layers[name].register_forward_hook(hook(name)) for name in masked]
        try:
            if values is None:
                return self.network(x_B)
            return torch.func.functional_call(self.network, dict(values), (x_B,))
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
        whole_channels = isinstance(module, (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))
        shape = (*out.shape[1:2], *(1 for _ in out.shape[2:])) if whole_channels else out.shape[1:]
        keep_BU = keep_units(
            key_B,
            site,
            self.mask or 0,
            shape.numel() if isinstance(shape, torch.Size) else int(np.prod(shape)),
            self.p,
        )
        return keep_BU.to(out.dtype).div_(1 - self.p).view(out.shape[0], *shape)


def keep_units(key_B: Tensor, site: str, mask: int, units: int, p: float) -> Tensor:
    """Which units of `site` survive `mask`, bool (B, U); each is dropped with probability p."""
    salt = int.from_bytes(hashlib.blake2b(f"{mask}/{site}".encode(), digest_size=8).digest())
    row_B = _mix64(key_B ^ (salt - 2**63)).to(torch.int32)
    unit_U = _mix32(torch.arange(units, dtype=torch.int32, device=key_B.device))
    # Wrapping 32-bit arithmetic in place: on a convolution's output this is the whole cost.
    h_BU = _mix32(row_B[:, None] ^ unit_U)
    return h_BU >= int(p * 2**32) - 2**31


def _mix32(h: Tensor) -> Tensor:
    """A bijection of int32 that spreads every input bit (xor-shift-multiply, two rounds)."""
    h = (h ^ ((h >> 16) & 0xFFFF)).mul_(0x7FEB352D)
    h = h.bitwise_xor_((h >> 15) & 0x1FFFF).mul_(-2073254261)
    return h.bitwise_xor_((h >> 16) & 0xFFFF)


def _mix64(h: Tensor) -> Tensor:
    """The same for int64, its low 32 bits the best mixed."""
    h = (h ^ ((h >> 32) & 0xFFFFFFFF)) * 0x1B03738712FAD5C9
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
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(x_B[:2])
    finally:
        network.train(training)
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
