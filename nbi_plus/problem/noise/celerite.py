r"""Cholesky factors of semiseparable matrices in linear time, for many matrices at once.

The matrix is :math:`K_{nm} = \sum_j U_{nj} V_{mj} \prod_{i=m+1}^n \phi_{ij}` below the diagonal and
:math:`a_n` on it. Its factor :math:`K = L D L^T` follows from a recursion over the points
(Foreman-Mackey et al. 2017, section 5.1), and the gradient from the same recursion backwards
(Foreman-Mackey 2018). All tensors have the points first and the matrices last, so that each step
works on whole rows: (N, ...) or (N, J, ...), where ... broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True)
class Semiseparable:
    """A batch of symmetric matrices of N rows and J terms.

    Attributes
    ----------
    diagonal : Tensor, shape (N, ...)
    u, v, phi : Tensor, shape (N, J, ...)
        ``phi[n]`` is the decay from point n - 1 to n; ``phi[0]`` has no meaning.
    floor : Tensor, shape (N, ...)
        What D cannot be smaller than: the white part of the diagonal, whatever rounding says.
    """

    diagonal: Tensor
    u: Tensor
    v: Tensor
    phi: Tensor
    floor: Tensor

    def whiten(self, r: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`z = L^{-1} r`, of r (N, ...), and :math:`D`; differentiable once."""
        return _Whiten.apply(self.diagonal, self.u, self.v, self.phi, self.floor, r)

    @torch.no_grad()
    def color(self, noise: Tensor) -> Tensor:
        r"""Return draws :math:`L D^{1/2} \epsilon` of standard normal noise (N, ...)."""
        state = _State.start(self.u)
        f, rows = torch.zeros_like(self.u[0] * noise[0]), []
        for a, u, v, phi, floor, e in zip(
            self.diagonal, self.u, self.v, self.phi, self.floor, noise, strict=True
        ):
            f = phi * f
            d, w, _ = state.step(a, u, v, phi, floor)
            z = d.sqrt() * e
            rows.append(z + (u * f).sum(0))
            f = f + w * z
        return torch.stack(rows)


class _State:
    """The matrix S of the recursion, shape (J, J, ...), which carries all that is past."""

    def __init__(self, s: Tensor) -> None:
        self.s = s

    @classmethod
    def start(cls, u: Tensor) -> _State:
        """Return the state before the first point."""
        return cls(torch.zeros_like(u[0].unsqueeze(0) * u[0].unsqueeze(1)))

    def step(
        self, a: Tensor, u: Tensor, v: Tensor, phi: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advance to the next point; return its D (...), W (J, ...) and S (J, J, ...)."""
        s = (self.s * phi.unsqueeze(0)).mul_(phi.unsqueeze(1))
        su = (s * u).sum(1)
        d = torch.maximum(a - (u * su).sum(0), floor)
        w = (v - su) / d
        self.s = torch.addcmul(s, w.unsqueeze(0) * d, w.unsqueeze(1))
        return d, w, s


class _Whiten(torch.autograd.Function):
    """One pass over the points for value and state, one back for the gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, a: Tensor, u: Tensor, v: Tensor, phi: Tensor, floor: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep = any(ctx.needs_input_grad)
        state, f, z = _State.start(u), torch.zeros_like(u[0] * r[0]), torch.zeros_like(r[0])
        w = torch.zeros_like(u[0])
        kept: list[tuple[Tensor, ...]] = []
        zs, ds = [], []
        for n in range(len(a)):
            f = torch.addcmul(f, w, z).mul_(phi[n])
            z = r[n] - (u[n] * f).sum(0)
            d, w, s = state.step(a[n], u[n], v[n], phi[n], floor[n])
            zs.append(z)
            ds.append(d)
            if keep:
                kept.append((f, w, s))
        z, d = torch.stack(zs), torch.stack(ds)
        if keep:
            ctx.save_for_backward(u, phi, z, d, *(torch.stack(p) for p in zip(*kept, strict=True)))
        return z, d

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, z_bar: Tensor, d_bar: Tensor) -> tuple[Tensor | None, ...]:
        u, phi, z, d, f, w, s = ctx.saved_tensors
        if not any(ctx.needs_input_grad[:5]):
            return None, None, None, None, None, _data_gradient(u, phi, w, z_bar)
        return _Reverse(u, phi, z, d, f, w, s).run(z_bar, d_bar)


def _data_gradient(u: Tensor, phi: Tensor, w: Tensor, z_bar: Tensor) -> Tensor:
    """Return the gradient of the data alone, for a matrix that is constant."""
    f_bar, rows = torch.zeros_like(u[0] * z_bar[0]), []
    for n in range(len(u) - 1, -1, -1):
        rows.append(z_bar[n] + (f_bar * w[n]).sum(0))
        f_bar = torch.addcmul(f_bar, u[n], rows[-1], value=-1.0).mul_(phi[n])
    return torch.stack(rows[::-1])


class _Reverse:
    """The recursion backwards; ``x_bar`` is the gradient with respect to x."""

    def __init__(self, u: Tensor, phi: Tensor, z: Tensor, d: Tensor, f: Tensor, w: Tensor,
                 s: Tensor) -> None:  # fmt: skip
        self.u, self.phi, self.z, self.d, self.f, self.w, self.s = u, phi, z, d, f, w, s

    def run(self, z_bar: Tensor, d_bar: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of diagonal, u, v, phi, floor (none) and data."""
        # adjoints of S and f behind the point n, that is, before the decay to n + 1
        s_bar, f_bar = torch.zeros_like(self.s[0]), torch.zeros_like(self.f[0])
        rows = []
        for n in range(len(self.d) - 1, -1, -1):
            *row, s_bar, f_bar = self._step(n, z_bar[n], d_bar[n], s_bar, f_bar)
            rows.append(row)
        a, u, v, phi, r = (torch.stack(part[::-1]) for part in zip(*rows, strict=True))
        return a, u, v, phi, None, r

    def _step(
        self, n: int, z_bar: Tensor, d_bar: Tensor, s_bar: Tensor, f_bar: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of a, u, v, phi and r of point n, and the adjoints before it."""
        u, phi, z, d, f, w, s = (
            x[n] for x in (self.u, self.phi, self.z, self.d, self.f, self.w, self.s)
        )
        z_bar = z_bar + (f_bar * w).sum(0)  # f' = f + w z
        pull = (s_bar * w).sum(1)  # S' = S + d w w^T
        w_bar = (f_bar * z).sum_to_size(w.shape) + 2 * d * pull
        d_bar = d_bar + (w * pull).sum(0)
        f_bar = torch.addcmul(f_bar, u, z_bar, value=-1.0)  # z = r - u f
        v_bar = w_bar / d  # w = (v - S u) / d
        a_bar = d_bar - (w * v_bar).sum(0)
        su_bar = v_bar + a_bar * u  # with the sign turned; d = a - u S u
        su = (s * u).sum(1)
        u_bar = -(f * z_bar).sum_to_size(u.shape) - a_bar * su - (s * su_bar).sum(1)
        half = su_bar.unsqueeze(0) * u.unsqueeze(1)
        s_bar = s_bar - 0.5 * (half + half.transpose(0, 1))
        phi_bar = ((f_bar * f).sum_to_size(u.shape) + 2 * (s_bar * s).sum(1)) / phi
        s_bar = s_bar * phi.unsqueeze(0) * phi.unsqueeze(1)
        return a_bar, u_bar, v_bar, phi_bar, z_bar, s_bar, f_bar * phi
