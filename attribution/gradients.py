"""Projected per-example gradients of the margin, by hooks, never materialised.

A layer's weight gradient of one example is a sum over positions t of outer products of the output
gradient g_t and the layer's input a_t. Its projection by G on the left and A on the right is

    phi = sum_t (G' g_t) (A' a_t)'

so the input is projected in the forward pass, the output gradient in the backward pass, and the
weight gradient is never formed (LoGra, arXiv 2405.13954, section 3; for convolutions the input is
projected by a convolution). Where there are many positions and few gradient directions, it is
cheaper to project the gradient alone and the sum over positions afterwards (`_gradient_first`).
Only gradients of activations are ever computed, which is why a member costs less than a plain
forward and backward pass.

Axes: N examples, B a batch of them, C classes, T positions, I inputs, O outputs, K features.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .members import View

Projection = tuple[Tensor, ...]
"""A factorised site's: A of shape (I, ka) and G of (O, kg). A dense one's: a single (d, k)."""

# Subclasses known to compute what their base class does; others must match exactly.
HONEST = {"timm.layers.norm.LayerNorm": nn.LayerNorm}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FALLBACK_LIMIT = 2**20  # entries of one parameter that the fallback still takes


@dataclass(frozen=True)
class Site:
    """A layer, or a single parameter, whose gradient is projected on its own.

    The gradient of a factorised site is a matrix of `rows` (outputs) by `columns` (inputs, with
    one more for the bias); of a dense one it is a vector of `rows` entries, weight before bias.
    """

    name: str
    kind: str  # linear, conv, embedding (factorised); grouped, norm, parameter (dense)
    rows: int
    columns: int
    parameters: tuple[str, ...]

    @property
    def factorised(self) -> bool:
        return self.kind in ("linear", "conv", "embedding")


def margin(logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """Log-odds of the target class, log p/(1-p): the f of TRAK (arXiv 2303.14186, section 3.3).

    A difference of log-sum-exps, because log(1 - p) is -inf in float32 once p rounds to 1, and
    confident examples are the common case.
    """
    logits_BC, column_B1 = at_least_single(logits_BC), target_B[:, None]
    others_BC = logits_BC.scatter(1, column_B1, -torch.inf)
    return logits_BC.gather(1, column_B1)[:, 0] - others_BC.logsumexp(1)


def at_least_single(t: Tensor) -> Tensor:
    """Float32 of lower precisions, others as they are."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def sites(network: nn.Module) -> tuple[Site, ...]:
    """Every place of `network` where a gradient is taken, in the order of its modules.

    Parameters that want no gradient are left alone, as removing data cannot move them: of a network
    with an adapter, all but the adapter (where every parameter is frozen, none is left alone).
    Layers are matched by exact type, because subclasses lie (one may hide an activation or a
    padding inside). Parameters of all other layers, and those that several layers share, become
    sites of kind "parameter", which the fallback differentiates one example at a time under vmap.
    """
    owners: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    wanted = {id(p) for p in attributed(network)}
    found, taken = [], set()
    for name, module in network.named_modules():
        every = dict(module.named_parameters(prefix=name, recurse=False))
        own = {label: p for label, p in every.items() if id(p) in wanted}
        if not own:
            continue
        plain = len(own) == len(every) and all(len(owners[id(p)]) == 1 for p in own.values())
        site = _layer_site(name, module, tuple(own)) if plain else None
        if site:
            found.append(site)
            continue
        for label, parameter in own.items():
            if id(parameter) not in taken:
                taken.add(id(parameter))
                found.append(Site(label, "parameter", parameter.numel(), 1, (label,)))
    return tuple(found)


def attributed(network: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients count: those that want one, or all where none does."""
    every = list(network.parameters())
    return [p for p in every if p.requires_grad] or every


def _layer_site(name: str, module: nn.Module, parameters: tuple[str, ...]) -> Site | None:
    if {p.rpartition(".")[2] for p in parameters} - {"weight", "bias"}:
        return None  # pruned, weight-normalised or extended: not what its type says
    bias = int(getattr(module, "bias", None) is not None)
    match module:
        case nn.Linear() if type(module) is nn.Linear:
            shape = ("linear", module.out_features, module.in_features + bias)
        case nn.Conv2d() if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            if module.groups == 1:
                patch = module.in_channels * math.prod(module.kernel_size)
                shape = ("conv", module.out_channels, patch + bias)
            else:
                shape = ("grouped", module.weight.numel() + bias * module.out_channels, 1)
        case nn.Embedding() if type(module) is nn.Embedding:
            if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
                return None
            shape = ("embedding", module.embedding_dim, module.num_embeddings)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.LayerNorm() | nn.GroupNorm():
            full_name = f"{type(module).__module__}.{type(module).__qualname__}"
            kind = HONEST.get(full_name, type(module))
            plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
            if kind not in plain or getattr(module, "running_mean", 0) is None:
                return None
            shape = ("norm", sum(p.numel() for p in module.parameters()), 1)
        case _:
            return None
    return Site(name, *shape, parameters)


Keep = Callable[[Site, nn.Module, Tensor], Tensor]
"""What to remember of a layer's input; one that is returned as it came is not copied."""
Take = Callable[[Site, nn.Module, Tensor, Tensor], None]


class Prefix:
    """What several masks of one network share on one batch: all that runs before the first of them.

    The first pass keeps what each innermost module returns until a module that is masked is called.
    In later passes these modules return the same tensors, with their graph and with what `observe`
    kept of their inputs, instead of computing them again; functions between modules run once more.
    A module with hooks of its own, and one whose result was changed in place, is computed anew.
    """

    def __init__(self, view: View) -> None:
        self.network, self.leaves = view.network, list[Tensor]()
        self.open = True  # nothing masked was called yet
        self._masked = [view.network.get_submodule(n) for n in view.places]
        self._calls: dict[nn.Module, list[tuple[Tensor, int]]] = {
            m: []
            for m in view.network.modules()
            if not (list(m.children()) or m._forward_hooks or m._forward_pre_hooks)
            and m not in self._masked
        }

    def __contains__(self, out: Tensor) -> bool:
        return any(out is kept for calls in self._calls.values() for kept, _ in calls)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keeps what modules return or, in later passes, makes them return it."""
        with ExitStack() as stack:
            if self.open:
                hooks = [m.register_forward_pre_hook(self._close) for m in self._masked]
                hooks += [m.register_forward_hook(self._note) for m in self._calls]
                for hook in hooks:
                    stack.callback(hook.remove)
            else:
                for module, calls in self._calls.items():
                    if calls:
                        stack.enter_context(_replayed(module, calls))
            yield
            self.open = False

    def _close(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.open = False

    def _note(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if self.open and isinstance(out, Tensor):
            self._calls[module].append((out, out._version))


@contextmanager
def _replayed(module: nn.Module, calls: Sequence[tuple[Tensor, int]]) -> Iterator[None]:
    """Makes a module return what it did in its first calls, unless that was changed in place."""
    left, forward, own = iter(calls), module.forward, "forward" in vars(module)

    def again(*args: Tensor, **options: Tensor) -> Tensor:
        out, version = next(left, (None, 0))
        return forward(*args, **options) if out is None or out._version != version else out

    vars(module)["forward"] = again
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own:
            vars(module)["forward"] = forward


def observe(
    view: View,
    x_B: Tensor,
    key_B: Tensor,
    target_B: Tensor,
    places: Sequence[Site],
    keep: Keep,
    take: Take,
    prefix: Prefix | None = None,
) -> Tensor:
    """One forward and one activation-only backward pass of the summed margin.

    For each call of a layer in `places`, ``keep(site, layer, input)`` is called in the forward
    pass and what it returns goes to ``take(site, layer, kept, output_gradient)`` in the backward
    pass. Returns the logits (B, C).

    `key_B` names the examples to the view's mask. The network runs in evaluation mode, with its
    parameters frozen, and is left as it was found. Of calls with one `prefix`, for masks of one
    network on one batch with the same `keep` and `take`, only the first computes and keeps what no
    mask changes.
    """
    layers = dict(view.network.named_modules())
    leaves: list[Tensor] = []
    known = prefix is not None and not prefix.open

    def hook(site: Site) -> Callable[..., Tensor]:
        def after(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if prefix and known and out in prefix:
                return out
            a = args[0].detach()
            kept = keep(site, layer, a)
            if out.requires_grad:
                out = _affine(layer, args[0], out)
            else:  # nothing before it is differentiated: the graph starts here
                if not torch.is_grad_enabled():  # the network itself switched gradients off here
                    return out
                leaf = out.detach().requires_grad_()
                (prefix.leaves if prefix and prefix.open else leaves).append(leaf)
                out = leaf.clone()  # a leaf must not be changed in place by the next layer
            out.register_hook(lambda g: take(site, layer, kept, g))
            return out

        return after

    with ExitStack() as stack:
        for site in places:
            if site.kind != "parameter":
                handle = layers[site.name].register_forward_hook(hook(site))
                stack.callback(handle.remove)
        if prefix:
            stack.enter_context(prefix.shared())
        with frozen(view.network), torch.enable_grad():
            logits_BC = view.logits(x_B, key_B)
            if starts := [*leaves, *(prefix.leaves if prefix else ())]:
                f = margin(logits_BC, target_B).sum()
                torch.autograd.grad(f, starts, retain_graph=prefix is not None, allow_unused=True)
    return logits_BC.detach()


class _Scaled(torch.autograd.Function):
    """The result of an affine map of `a` by channels, whose gradient is `scale` times its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, made: Sequence[Tensor], scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return made[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return g * ctx.saved_tensors[0], None, None


def _statistics(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean, and one over the standard deviation, that a batch norm has learned for a channel."""
    assert layer.running_mean is not None and layer.running_var is not None  # else it is no site
    return layer.running_mean, torch.rsqrt(layer.running_var + layer.eps)


def _affine(layer: nn.Module, a: Tensor, out: Tensor) -> Tensor:
    """`out`, with a cheaper way back to `a` where the layer is a batch norm in evaluation mode.

    Torch's own also sums over all examples, in two more passes, for parameters that are frozen.
    """
    if not isinstance(layer, BATCH_NORMS):
        return out
    scale = _statistics(layer)[1]
    scale = scale if layer.weight is None else scale * layer.weight
    return _Scaled.apply(a, [out], scale.view(-1, *[1] * (a.dim() - 2)))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients; both are put back at the end."""
    training = {m: m.training for m in network.modules()}
    wanted = {p: p.requires_grad for p in network.parameters()}
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def featurize(
    view: View,
    x_B: Tensor,
    key_B: Tensor,
    target_B: Tensor,
    projections: Mapping[Site, Projection],
) -> tuple[Tensor, Tensor]:
    """Projected margin gradients of each example, and the logits they came with.

    Returns phi (B, K), the sites side by side in the order of `projections` (an output-major
    matrix for a factorised site), and logits (B, C). Examples must not mix inside the network,
    which holds in evaluation mode.
    """
    return featurize_views([view], x_B, key_B, target_B, projections)[0]


def featurize_views(
    views: Sequence[View],
    x_B: Tensor,
    key_B: Tensor,
    target_B: Tensor,
    projections: Mapping[Site, Projection],
) -> list[tuple[Tensor, Tensor]]:
    """As `featurize`, for several masks of one network: what none changes is computed once."""
    pairs = []
    for found, logits_BC in site_features(views, x_B, key_B, target_B, projections):
        missing = [s.name for s in projections if s not in found]
        assert not missing, f"sites that never fired: {missing}"  # `checked_sites` leaves none
        pairs.append((torch.cat([found[s] for s in projections], dim=1), logits_BC))
    return pairs


def site_features(
    views: Sequence[View],
    x_B: Tensor,
    key_B: Tensor,
    target_B: Tensor,
    projections: Mapping[Site, Projection],
) -> Iterator[tuple[dict[Site, Tensor], Tensor]]:
    """As `featurize_views`, one after another, but one entry for each site that fired."""
    found: dict[Site, Tensor] = {}

    def keep(site: Site, layer: nn.Module, a: Tensor) -> Tensor:
        if not site.factorised:
            return dense_input(layer, a)
        A_Ik, G_Ok = projections[site]
        if _gradient_first(layer, a, A_Ik.shape[1], G_Ok.shape[1]):
            return a
        return _project_input(layer, a, A_Ik)

    def take(site: Site, layer: nn.Module, kept: Tensor, g: Tensor) -> None:
        if not site.factorised:
            direction = projections[site][0]
            phi = dense_gradient(layer, kept, g).to(direction.dtype) @ direction
        else:
            A_Ik, G_Ok = projections[site]
            g_BkT = _project_gradient(layer, g, G_Ok)
            if isinstance(layer, nn.Conv2d) and kept.dim() == 4:
                phi = _convolved(layer, kept, g_BkT.unflatten(2, g.shape[2:]), A_Ik)
            else:
                phi = torch.bmm(g_BkT, kept).flatten(1)
        found[site] = found[site] + phi if site in found else phi

    alone = [s for s in projections if s.kind == "parameter"]
    prefix = Prefix(views[0]) if len(views) > 1 else None
    for view in views:
        found.clear()
        logits_BC = observe(view, x_B, key_B, target_B, tuple(projections), keep, take, prefix)
        for site, grad_Bd in parameter_gradients(view, x_B, key_B, target_B, alone).items():
            found[site] = grad_Bd @ projections[site][0]
        yield dict(found), logits_BC


def parameter_gradients(
    view: View, x_B: Tensor, key_B: Tensor, target_B: Tensor, alone: Sequence[Site]
) -> dict[Site, Tensor]:
    """The fallback: gradients of single parameters by vmap(grad), each (B, d).

    It keeps d numbers an example, so `checked_sites` leaves out parameters with more than
    `FALLBACK_LIMIT` entries.
    """
    if not alone:
        return {}
    values = {s.name: view.network.get_parameter(s.name).detach() for s in alone}

    def f(values: dict[str, Tensor], x: Tensor, target: Tensor, masks: dict[str, Tensor]) -> Tensor:
        ones = {site: mask[None] for site, mask in masks.items()}
        return margin(view.logits(x[None], key_B[:1], values, ones), target[None])[0]

    per_example = torch.func.vmap(torch.func.grad(f), (None, 0, 0, 0), chunk_size=32)
    # The fused attention kernel has no batching rule: vmap would loop over it, with a warning.
    with frozen(view.network), sdpa_kernel(SDPBackend.MATH):
        grads = per_example(values, x_B, target_B, view.masks_of(x_B, key_B))
    return {s: grads[s.name].flatten(1) for s in alone}


def gradient_rows(layer: nn.Module, g: Tensor) -> Tensor:
    """Output gradients as the matrix view sees them, (B, T, O)."""
    if isinstance(layer, nn.Conv2d):
        return g.flatten(2).mT
    return g.reshape(g.shape[0], -1, g.shape[-1])


def _project_gradient(layer: nn.Module, g: Tensor, G_Ok: Tensor) -> Tensor:
    """G' g for each position, (B, kg, T)."""
    if isinstance(layer, nn.Conv2d):
        return G_Ok.mT @ g.flatten(2)  # as a 1 x 1 convolution with so few outputs it is slower
    return (gradient_rows(layer, g) @ G_Ok).mT


def _gradient_first(layer: nn.Module, a: Tensor, ka: int, kg: int) -> bool:
    """Whether projecting a convolution's input costs more than doing without.

    In multiplications a channel and offset of the kernel: ka for each output position, against kg
    for each input position and ka * kg once.
    """
    if not isinstance(layer, nn.Conv2d):
        return False
    positions = a.shape[2] * a.shape[3]
    return kg * (positions + ka) * math.prod(layer.stride) < ka * positions


def _convolved(layer: nn.Conv2d, a: Tensor, g_Bk: Tensor, A_Ik: Tensor) -> Tensor:
    """Features (B, kg * ka) of a convolution from its whole input and its projected gradient.

    Each input position s meets the output gradient at (s - offset) / stride, for each offset of the
    kernel: the few channels of the projected gradient are spread by the stride and shifted, and the
    input is read once.
    """
    batch, kg = g_Bk.shape[:2]
    spread = g_Bk
    if layer.stride != (1, 1):
        down, across = layer.stride
        sizes = [(n - 1) * s + 1 for n, s in zip(g_Bk.shape[2:], layer.stride, strict=True)]
        spread = g_Bk.new_zeros(batch, kg, *sizes)
        spread[:, :, ::down, ::across] = g_Bk
    around: list[int] = []  # the last axis first
    for axis, reach, (low, _) in zip((2, 3), _reach(layer), _padding(layer), strict=True):
        around = [reach - low, a.shape[axis] + low - spread.shape[axis], *around]
    shifted = F.pad(spread, around)
    for axis, dilation in zip((2, 3), layer.dilation, strict=True):
        shifted = shifted.unfold(axis, a.shape[axis], dilation)  # a view of each offset
    patch = layer.weight[0].numel()
    # The offsets come backwards, as in every transposed convolution.
    A_oIk = A_Ik[:patch].unflatten(0, (a.shape[1], -1)).flip(1).transpose(0, 1)
    sums_BkoI = torch.bmm(shifted.reshape(batch, -1, a[0, 0].numel()), a.flatten(2).mT)
    phi = sums_BkoI.reshape(batch * kg, -1) @ A_oIk.reshape(patch, -1)
    phi = phi.view(batch, kg, -1)
    if layer.bias is not None:
        phi = phi + g_Bk.sum((2, 3))[..., None] * A_Ik[patch]
    return phi.flatten(1)


def _project_input(layer: nn.Module, a: Tensor, A_Ik: Tensor) -> Tensor:
    """A' a for each position, with the bias as one more input that is always 1: (B, T, ka)."""
    match layer:
        case nn.Linear():
            weight, bias = A_Ik[: layer.in_features], A_Ik[layer.in_features :]
            out = a.reshape(a.shape[0], -1, a.shape[-1]) @ weight
            return out + bias if layer.bias is not None else out
        case nn.Conv2d():
            patch = layer.weight[0].numel()
            kernel = A_Ik[:patch].mT.reshape(-1, *layer.weight.shape[1:])
            one = A_Ik[patch] if layer.bias is not None else None
            out = F.conv2d(a, kernel, one, layer.stride, layer.padding, layer.dilation)
            return out.flatten(2).mT
        case nn.Embedding():
            out = A_Ik[a.reshape(a.shape[0], -1)]
            if layer.padding_idx is not None:
                out = out * (a != layer.padding_idx).reshape(*out.shape[:2], 1)
            return out
    raise AssertionError(f"no factorised form for {type(layer).__name__}")


def input_rows(layer: nn.Module, a: Tensor) -> Tensor:
    """The layer's input as the matrix view sees it, (B, T, I): patches, and 1 for the bias."""
    if isinstance(layer, nn.Embedding):
        return F.one_hot(a.reshape(a.shape[0], -1), layer.num_embeddings).to(layer.weight.dtype)
    if isinstance(layer, nn.Conv2d):
        rows = _patches(layer, a).mT
    else:
        rows = a.reshape(a.shape[0], -1, a.shape[-1])
    ones = rows.new_ones(*rows.shape[:2], 1)
    return torch.cat([rows, ones], 2) if layer.bias is not None else rows


def _patches(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """Patches that a convolution sees, (B, in_channels * kernel, T)."""
    (top, bottom), (left, right) = _padding(layer)
    padded = F.pad(a, (left, right, top, bottom))
    return F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)


def _padding(layer: nn.Conv2d) -> list[tuple[int, int]]:
    """Zeros around the input of a convolution: (top, bottom), (left, right)."""
    match layer.padding:
        case "same":
            return [(r // 2, r - r // 2) for r in _reach(layer)]
        case (high, wide):
            return [(int(high), int(high)), (int(wide), int(wide))]
    return [(0, 0), (0, 0)]  # "valid"


def _reach(layer: nn.Conv2d) -> list[int]:
    """From the first to the last offset of the kernel, down and across."""
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]


def dense_input(layer: nn.Module, a: Tensor) -> Tensor:
    """What the gradient of a dense site needs of the layer's input.

    For a norm over each example it is normalised here; for a batch norm, whose statistics are
    fixed, it is the sums that are (`dense_gradient`).
    """
    match layer:
        case nn.GroupNorm():
            return F.group_norm(a, layer.num_groups, eps=layer.eps)
        case nn.LayerNorm():
            return F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return a


def dense_gradient(layer: nn.Module, kept: Tensor, g: Tensor) -> Tensor:
    """Exact gradient of a grouped convolution or of a norm's affine part, (B, d)."""
    if isinstance(layer, nn.Conv2d):
        batch, groups = g.shape[0], layer.groups
        patches = _patches(layer, kept).reshape(batch, groups, -1, g.shape[2] * g.shape[3])
        weight = torch.matmul(g.reshape(batch, groups, -1, patches.shape[-1]), patches.mT)
        parts = [weight.flatten(1), g.sum((2, 3))]
    elif isinstance(layer, nn.LayerNorm):
        parts = [v.reshape(len(g), -1, layer.weight.numel()).sum(1) for v in (g * kept, g)]
    else:
        wide = torch.promote_types(g.dtype, torch.float32)  # the mean is subtracted from the sums
        parts = [
            v.flatten(2).sum(2, dtype=wide) if v.dim() > 2 else v.to(wide) for v in (g * kept, g)
        ]
    if isinstance(layer, BATCH_NORMS):
        mean, scale = _statistics(layer)
        parts[0] = (parts[0] - mean * parts[1]) * scale
    return torch.cat(parts if layer.bias is not None else parts[:1], 1)


def loop_gradients(
    view: View, x_B: Tensor, key_B: Tensor, target_B: Tensor, places: Sequence[Site]
) -> dict[Site, Tensor]:
    """The oracle: one backward call an example, exact gradients as `featurize` lays them out.

    Factorised sites give (B, rows * columns), with the bias as the last column; dense ones (B, d).
    """
    names = [n for s in places for n in s.parameters]
    values = [view.network.get_parameter(n) for n in names]
    rows: dict[Site, list[Tensor]] = {s: [] for s in places}
    with frozen(view.network), torch.enable_grad():
        for value in values:
            value.requires_grad_()
        for one in range(len(x_B)):
            b = slice(one, one + 1)
            f = margin(view.logits(x_B[b], key_B[b]), target_B[b])
            grads = tuple(torch.zeros_like(v) for v in values)
            if f.requires_grad:  # else none of them is used
                grads = torch.autograd.grad(f.sum(), values, materialize_grads=True)
            found = dict(zip(names, grads, strict=True))
            for site in places:
                rows[site].append(_laid_out(site, [found[n] for n in site.parameters]))
    return {s: torch.stack(r) for s, r in rows.items()}


def _laid_out(site: Site, grads: Sequence[Tensor]) -> Tensor:
    if site.kind == "embedding":
        return grads[0].mT.flatten()
    if site.factorised:
        return torch.cat([g.reshape(site.rows, -1) for g in grads], 1).flatten()
    return torch.cat([g.flatten() for g in grads])
