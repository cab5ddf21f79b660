"""Small seeded networks that the tests differentiate, and the oracle they are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

from attribution.gradients import Site
from attribution.members import View
from attribution.models import MODELS


class ImageZoo(nn.Module):
    """Every kind of layer that takes images or vectors, and every trap known for hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.in_place = nn.ReLU(inplace=True)  # right after a convolution
        self.same = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(1, 2), bias=False)
        self.batch = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12, bias=False)
        self.groups = nn.GroupNorm(3, 12)
        self.twice = nn.Conv2d(12, 12, 1)  # called twice in one forward
        self.valid = nn.Conv2d(12, 12, 2, padding="valid")
        self.around = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular")
        self.bare = nn.BatchNorm2d(12, affine=False)
        self.scale = nn.Parameter(torch.ones(12, 1, 1))  # owned by no layer
        self.channels = nn.BatchNorm1d(12)
        self.tokens = nn.LayerNorm((5, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)  # out_proj never fires
        self.narrow = nn.LayerNorm(12, bias=False)
        self.flat = nn.BatchNorm1d(12)
        self.tied = nn.Linear(12, 12)
        self.knot = nn.Linear(12, 12)
        self.knot.weight = self.tied.weight
        self.liar = Liar(12, 12)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(12, 12, bias=False))
        self.unused = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_place(self.first(x))
        x = self.in_place(self.batch(self.same(x)))
        x = self.groups(self.depthwise(self.grouped(x)))
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.bare(self.around(self.valid(x))) * self.scale
        x = self.channels(x.flatten(2)).mT  # (B, 10, 12)
        x = self.tokens(x[:, :5])
        x = self.narrow(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.flat(x.mean(1))
        x = torch.tanh(self.tied(x)) + self.knot(x)
        return self.head(self.normed(self.liar(x)))


class Liar(nn.Linear):
    """A subclass whose forward does more than its base says."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(super().forward(x)) * 2


class TokenZoo(nn.Module):
    """Embedding with a padding token, linear layers on (B, T, I), layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=0)
        self.kinds = nn.Embedding(3, 6)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 8)
        self.drop = nn.Dropout(0.2)
        self.back = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.words(x) + self.kinds(x % 3))
        return self.head((h + self.back(self.drop(torch.relu(self.mix(h))))).mean(1))


@dataclass(frozen=True)
class Case:
    """A network, what it eats, and what hooks alone cannot do in it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    fallback: tuple[str, ...] = ()  # prefixes of parameters that vmap differentiates
    left_out: tuple[str, ...] = ()
    tokens: int = 0  # the input is token numbers below this

    def examples(self, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """x, keys and targets."""
        draw = torch.Generator().manual_seed(5)
        if self.tokens:
            x = torch.randint(self.tokens, (count, *self.shape), generator=draw)
        else:
            x = torch.randn(count, *self.shape, generator=draw).to(dtype)
        return x, torch.arange(count) * 7919 + 13, torch.arange(count) % 4

    def network(self, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(3)
        return shaken(self.make()).to(dtype).eval()


def shaken(network: nn.Module) -> nn.Module:
    """Running statistics, affine parameters and zero-initialised weights are made nontrivial."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() < 2 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2,
        num_classes=4,
    )  # fmt: skip


CASES = {
    "mlp": Case(lambda: MODELS["mlp"](1, 8, 4, 0.1), (1, 8, 8)),
    "cnn": Case(lambda: MODELS["cnn"](3, 12, 4, 0.2), (3, 12, 12)),
    "resnet9": Case(lambda: MODELS["resnet9"](3, 16, 4, 1 / 16), (3, 16, 16)),
    "vit": Case(vit, (3, 32, 32), fallback=("cls_token", "pos_embed")),
    "mobilenet": Case(
        lambda: torchvision.models.mobilenet_v2(weights=None, width_mult=0.1, num_classes=4),
        (3, 32, 32),
    ),
    "images": Case(
        ImageZoo,
        (3, 12, 12),
        fallback=("around.", "scale", "attention.", "tied.", "knot.", "liar.", "normed."),
        left_out=("unused.weight", "unused.bias"),
    ),
    "tokens": Case(TokenZoo, (7,), tokens=11),
}


def backward_loop(view: View, x: Tensor, key: Tensor, target: Tensor) -> dict[str, Tensor]:
    """One backward call an example: the margin's gradient of each parameter, (B, *shape)."""
    named = dict(view.network.named_parameters())
    rows: dict[str, list[Tensor]] = {n: [] for n in named}
    for b in range(len(x)):
        z = view.logits(x[b : b + 1], key[b : b + 1])[0]
        others = [z[c] for c in range(len(z)) if c != target[b]]
        f = z[target[b]] - torch.stack(others).logsumexp(0)
        grads = torch.autograd.grad(f, list(named.values()), allow_unused=True)
        for (name, parameter), grad in zip(named.items(), grads, strict=True):
            rows[name].append(torch.zeros_like(parameter) if grad is None else grad)
    return {n: torch.stack(r) for n, r in rows.items()}


def as_matrix(site: Site, exact: Mapping[str, Tensor]) -> Tensor:
    """The exact gradient as `Site` describes it: (B, rows, columns), or (B, rows) if dense."""
    grads = [exact[name] for name in site.parameters]
    if site.kind == "embedding":
        return grads[0].mT
    if not site.factorised:
        return torch.cat([g.flatten(1) for g in grads], 1)
    return torch.cat([g.reshape(len(g), site.rows, -1) for g in grads], 2)


def identity(site: Site, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The projection that changes nothing."""
    sides = (site.columns, site.rows) if site.factorised else (site.rows,)
    return tuple(torch.eye(side, dtype=dtype) for side in sides)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference in units of the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
