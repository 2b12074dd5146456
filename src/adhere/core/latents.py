"""Constraints on latents z, made from constraints on the pictures x = decode(z).

With r = -grad C(x) at x = decode(z), the negative gradient with respect to z is taken in one of two ways:

    e = (d decode / dz)^T r                              by autograd through the decoder (backward=True)
    e = [encode(x + delta r) - encode(x)] / delta        by a finite difference of the encoder (backward=False)

The second, VAE-Newton, differentiates nothing, since the encoder approximately inverts the decoder. Neither goes
through the denoising network. A linear constraint y = A x + noise is nonlinear in z; near z, its operator is

    A' v = A [decode(z + delta v) - decode(z)] / delta,      A'^T u = e for r = A^T u.

Source: Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models* (2025).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core._linalg import repeat_samples
from adhere.core.constraints import Constraint, Linear, Linearization
from adhere.core.derivatives import finite_difference_step, forward_difference, vjp
from adhere.core.operators import LinearOperator, _at_least


@runtime_checkable
class Autoencoder(Protocol):
    """A deterministic autoencoder between pictures (B, 3, H, W) in [-1, 1] and latents of about unit variance."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its computations, which decides the step of finite differences. Results have the input dtype."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of pictures: the mean of the encoder's distribution, scaled for the denoiser."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return the pictures of latents."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownLatents(Linear):
    """The latents of the known part of a picture, under a `Mask`; they are re-encoded during the run.

    The attention and the group norms of an encoder see the whole picture, so the latents of the known part depend on
    the other part. Next to a smooth fill, the latents of half an emoji are off by 0.4 of their standard deviation, and
    the other half becomes pale. At each log-SNR of `reencode_at`, y therefore becomes
    encode(picture where known, decode(x0) elsewhere).

    Attributes:
        autoencoder: encodes and decodes.
        picture: (B or 1, 3, H, W) in [-1, 1].
        known: (1, 1, H, W), 1 = known pixel, 0 = unknown.
        reencode_at: log-SNRs in nats, increasing.
    """

    autoencoder: Autoencoder
    picture: Tensor
    known: Tensor
    reencode_at: tuple[float, ...]

    def update(self, x0: Tensor, log_snr: float) -> "KnownLatents":
        remaining = tuple(level for level in self.reencode_at if level > log_snr)
        if remaining == self.reencode_at:
            return self
        z = self.autoencoder.encode(torch.where(self.known == 1, self.picture, self.autoencoder.decode(x0)))
        return replace(self, y=self.operator(z), reencode_at=remaining)

    def stack(self, others: Sequence[Constraint], repeats: int) -> Linear | None:
        stacked = super().stack(others, repeats)
        if stacked is None or not others:
            return stacked
        parts = [self, *(other for other in others if isinstance(other, KnownLatents))]
        if any(part.reencode_at != self.reencode_at or part.autoencoder != self.autoencoder for part in parts):
            return None
        picture = repeat_samples([part.picture for part in parts], repeats)
        return replace(stacked, picture=picture, known=repeat_samples([part.known for part in parts], repeats))


@dataclass(frozen=True)
class DecodedConstraint(Constraint):
    """The constraint `inner` on the picture decode(z); residual norms are those of `inner`.

    Attributes:
        inner: a constraint on pictures (B, 3, H, W) in [-1, 1].
        autoencoder: encodes and decodes.
        backward: whether gradients are taken by autograd through the decoder instead of by differences of the encoder:
            exact, but slower, and it holds the decoder's activations in memory.
        noise_floor: the smallest noise of the linearization, in units of the inner measurement. No decoder meets a
            picture exactly (Stable Diffusion's error is about 0.05), and forcing it to gives unnatural latents.
    """

    inner: Constraint
    autoencoder: Autoencoder
    backward: bool = False
    noise_floor: float = 0.01

    def neg_grad(self, z: Tensor) -> Tensor:
        x, transposed = _decode_with_transpose(self.autoencoder, z, self.backward)
        return transposed(self.inner.neg_grad(x))

    def residual_norm(self, z: Tensor) -> Float[Tensor, " b"]:
        return self.inner.residual_norm(self.autoencoder.decode(z))

    def stack(self, others: Sequence[Constraint], repeats: int) -> "DecodedConstraint | None":
        decoded = [other for other in others if isinstance(other, DecodedConstraint)]
        inner = self.inner.stack([other.inner for other in decoded], repeats)
        same = all(replace(other, inner=self.inner) == self for other in decoded) and len(decoded) == len(others)
        return replace(self, inner=inner) if same and inner is not None else None

    @property
    def is_linearizable(self) -> bool:
        return self.inner.is_linearizable

    @property
    def is_nonlinear(self) -> bool:
        return self.inner.is_nonlinear

    @property
    def needs_decoding(self) -> bool:
        return True

    def linearize(self, z: Tensor) -> Linearization:
        """Return the linear constraint at z.

        This takes one decoding, and one encoding unless `backward`; so does each product with its operator.
        """
        x, transposed = _decode_with_transpose(self.autoencoder, z, self.backward)
        linear = self.inner.linearize(x)
        operator = _DecodedOperator(linear.operator, self.autoencoder, z, x, transposed)
        noise = _at_least(linear.noise, self.noise_floor)
        return Linearization(operator, linear.residual(x), noise, origin=z, max_step_rms=linear.max_step_rms)


@dataclass(frozen=True)
class _DecodedOperator(LinearOperator):
    """A' = A (d decode / dz) at z, by differences of the decoder, with the transpose of `_decode_with_transpose`."""

    inner: LinearOperator
    autoencoder: Autoencoder
    z: Tensor
    decoded: Tensor  # decode(z)
    transposed: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        h = finite_difference_step(self.autoencoder.dtype)
        return self.inner(forward_difference(self.autoencoder.decode, self.z, self.decoded, x, h))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.transposed(self.inner.adjoint(y))


def _decode_with_transpose(
    autoencoder: Autoencoder, z: Tensor, backward: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return decode(z), and r -> (d decode / dz)^T r by autograd, or its replacement by the encoder's difference."""
    if backward:
        return vjp(autoencoder.decode, z, retain_graph=True)
    x = autoencoder.decode(z)
    encoded = autoencoder.encode(x)
    h = finite_difference_step(autoencoder.dtype)
    return x, lambda r: forward_difference(autoencoder.encode, x, encoded, r, h)
