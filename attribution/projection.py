"""Where gradients are projected to: the data's own basis, or random directions.

A factorised site is projected on both sides, G' W A with A of shape (I, ka) and G of (O, kg); a
dense one by one matrix. Axes as in `attribution.gradients`.
"""

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gradients import (
    FALLBACK_LIMIT,
    Projection,
    Site,
    dense_gradient,
    dense_input,
    frozen,
    gradient_rows,
    input_rows,
    loop_gradients,
    observe,
    parameter_gradients,
    site_features,
    sites,
)
from .members import View


def project(site: Site, grad_Bd: Tensor, projection: Projection) -> Tensor:
    """The dense form of the projection: exact gradients (B, d) to features (B, k)."""
    if not site.factorised:
        return grad_Bd @ projection[0]
    matrix = grad_Bd.reshape(-1, site.rows, site.columns)
    return (projection[1].mT @ matrix @ projection[0]).flatten(1)


def random_projections(
    places: Sequence[Site], ka: int, kg: int, seed: int, like: Tensor
) -> dict[Site, Projection]:
    """Gaussian directions, scaled to keep inner products on average; dense sites get ka.

    A function of (site, ka, kg, seed), in the dtype and on the device of `like`.
    """

    def gaussian(site: Site, role: str, rows: int, columns: int) -> Tensor:
        name = f"{seed}/{site.name}/{role}"
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        scale = columns**-0.5
        return (torch.randn(rows, columns, generator=generator) * scale).to(like)

    return {
        s: (
            gaussian(s, "input", s.columns, min(ka, s.columns)),
            gaussian(s, "gradient", s.rows, min(kg, s.rows)),
        )
        if s.factorised
        else (gaussian(s, "dense", s.rows, min(ka, s.rows)),)
        for s in places
    }


def own_projections(
    view: View,
    x_N: Tensor,
    key_N: Tensor,
    target_N: Tensor,
    places: Sequence[Site],
    ka: int,
    kg: int,
    seed: int,
    rows: int = 4096,
    batch: int = 128,
) -> dict[Site, Projection]:
    """The data's own basis, found on the examples given.

    For each layer the leading eigenvectors of the second moments of its input and of its output
    gradient (the factors of K-FAC, arXiv 1503.05671, as LoGra projects, arXiv 2405.13954); a
    dense site's from its exact gradients. About `rows` positions a layer are enough for the
    leading directions; they are taken evenly from all examples and positions.
    """
    inputs: dict[Site, list[Tensor]] = {s: [] for s in places}
    grads: dict[Site, list[Tensor]] = {s: [] for s in places}
    each = max(1, rows // len(x_N))

    def keep(site: Site, layer: nn.Module, a: Tensor) -> Tensor:
        if not site.factorised:
            return dense_input(layer, a)
        for few in a.split(8):  # unfolded, the patches of a batch may be gigabytes
            a_BTI = input_rows(layer, few)
            step = max(1, a_BTI.shape[1] // each)
            inputs[site].append(a_BTI[:, step // 2 :: step].flatten(0, 1).clone())
        return a[:0]

    def take(site: Site, layer: nn.Module, kept: Tensor, g: Tensor) -> None:
        if not site.factorised:
            grads[site].append(dense_gradient(layer, kept, g))
            return
        g_BTO = gradient_rows(layer, g)
        step = max(1, g_BTO.shape[1] // each)
        grads[site].append(g_BTO[:, step // 2 :: step].flatten(0, 1).clone())

    alone = [s for s in places if s.kind == "parameter"]
    for b in range(0, len(x_N), batch):
        part = slice(b, b + batch)
        examples = (x_N[part], key_N[part], target_N[part])
        observe(view, *examples, places, keep, take)
        for site, grad_Bd in parameter_gradients(view, *examples, alone).items():
            grads[site].append(grad_Bd)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # svd_lowrank draws from the global stream
        return {
            s: (_leading(inputs[s], ka), _leading(grads[s], kg))
            if s.factorised
            else (_leading(grads[s], ka),)
            for s in places
        }


def _leading(rows: Sequence[Tensor], k: int) -> Tensor:
    """The k leading right singular vectors of the rows, (d, k), by subspace iteration."""
    X = torch.cat(list(rows))
    k = min(k, *X.shape)
    _, _, V = torch.svd_lowrank(X, q=min(k + 8, *X.shape), niter=4)
    return V[:, :k].contiguous()


def checked_sites(
    view: View, x_B: Tensor, key_B: Tensor, target_B: Tensor
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """The sites that can be trusted, and the names of the parameters left out.

    On a few examples, in float64 where the network bears it, every site's projected gradient is
    compared with one backward call an example. A layer that does not agree (it never fired, or
    something wraps it) is differentiated parameter by parameter instead; a parameter that has no
    gradient, or more entries than `FALLBACK_LIMIT`, is left out.
    """
    with frozen(view.network), torch.no_grad():  # makes computed weights copyable
        view.network(x_B)
    double = View(copy.deepcopy(view.network).double(), view.places, view.mask, view.p)
    examples = (x_B.double() if x_B.is_floating_point() else x_B, key_B, target_B)
    try:
        with frozen(double.network), torch.no_grad():
            double.network(examples[0])
    except RuntimeError:  # it turns its input into single precision itself
        double = View(copy.deepcopy(view.network), view.places, view.mask, view.p)
        examples = (x_B, key_B, target_B)
    trusted, alone, left_out = [], [], []
    layers = sites(view.network)
    agreed = _agreeing(double, examples, [s for s in layers if s.kind != "parameter"])
    for site in layers:
        if site in agreed:
            trusted.append(site)
            continue
        for name in site.parameters:
            size = view.network.get_parameter(name).numel()
            alone.append(Site(name, "parameter", size, 1, (name,)))
    small = [s for s in alone if s.rows <= FALLBACK_LIMIT]
    try:
        agreed = _agreeing(double, examples, small)
    except RuntimeError:  # vmap cannot run this network (a recurrent one, say)
        agreed = set()
    left_out = [s.name for s in alone if s not in agreed]
    return (*trusted, *(s for s in alone if s in agreed)), tuple(left_out)


def _agreeing(
    view: View, examples: tuple[Tensor, Tensor, Tensor], places: Sequence[Site]
) -> set[Site]:
    if not places:
        return set()
    # One gradient direction: every convolution then keeps its whole input, the way with more traps.
    like = next(view.network.parameters())
    rtol, atol = (1e-6, 1e-9) if like.dtype == torch.float64 else (1e-2, 1e-4)
    projections = random_projections(places, 8, 1, seed=0, like=like)
    [(found, _)] = site_features([view], *examples, projections)
    exact = loop_gradients(view, *examples, places)
    agreed = set()
    for site in places:
        wanted = project(site, exact[site], projections[site])
        used = exact[site].any() or site.kind != "parameter"
        phi = found.get(site)
        if used and phi is not None and phi.shape == wanted.shape:  # else: no batch axis first
            if torch.allclose(phi, wanted, rtol, atol * max(1.0, float(wanted.abs().max()))):
                agreed.add(site)
    return agreed
