"""Constraints on latents z, made of constraints on the pictures x = decode(z) they stand for.

    direction:  e = -grad_z C(decode(z)) = (d decode / dz)^T r,       r = -grad C(x)       by autograd (backward=True)
                e = [encode(x + delta r) - encode(x)] / delta                              VAE-Newton (backward=False)

VAE-Newton takes the step through the encoder, which about inverts the decoder, so nothing is differentiated: Graikos,
Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models*, and their inexact Newton's J e for the
decoder. Neither way goes through the denoising network.

A linear constraint y = A x + noise becomes A decode(z), which near z is linear again, with the products

    A' v = A [decode(z + delta v) - decode(z)] / delta,      A'^T u = the direction above, with r = A^T u.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core.constraints import Constraint, Linear, Tangent, is_linearisable, linearise
from adhere.core.denoise import difference_step, forward_difference, pullback
from adhere.core.operators import Operator


@runtime_checkable
class Codec(Protocol):
    """An autoencoder between pictures (B, 3, H, W) in [-1, 1] and latents of about unit variance; deterministic."""

    @property
    def dtype(self) -> torch.dtype:
        """Its arithmetic, from which the finite-difference steps are chosen; tensors come and go in the caller's."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Pictures -> latents: the mean of the encoder's distribution, scaled as the denoiser expects them."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> pictures."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Recoded(Linear):
    """The codes of the known part of a picture, as latents under a `Mask`; coded anew while its rest takes shape.

    An encoder sees the whole picture, by its attention and its group norms, so the codes of what is known depend on
    what stands beside it: next to a smooth fill, those of half an emoji are off by 0.4 of their deviation, and the
    other half comes out pale. So at each log-SNR of `refresh`, which rise, y becomes
    encode(picture where known, decode(x0) elsewhere).

    picture (B or 1, 3, H, W), known (1, 1, H, W) of zeros and ones.
    """

    codec: Codec
    picture: Tensor
    known: Tensor
    refresh: tuple[float, ...]

    def renewed(self, x0: Tensor, log_snr: float) -> "Recoded":
        later = tuple(level for level in self.refresh if level > log_snr)
        if later == self.refresh:
            return self
        z = self.codec.encode(torch.where(self.known == 1, self.picture, self.codec.decode(x0)))
        return replace(self, y=self.operator(z), refresh=later)


@dataclass(frozen=True)
class Through:
    """`inner`, asked of decode(z). Errors are inner's own.

    backward: take directions by autograd through the decoder, rather than by differences of the encoder: exact, but
    slower, and it holds the decoder's activations. noise_floor: the least noise its linearisation assumes, in the units
    of inner's measurement: no decoder meets a picture exactly (Stable Diffusion's misses by about 0.05), and asking it
    to drives latents off their manifold.
    """

    inner: Constraint
    codec: Codec
    backward: bool = False
    noise_floor: float = 0.01

    def direction(self, z: Tensor) -> Tensor:
        x, transpose = transposed_decoder(self.codec, z, self.backward)
        return transpose(self.inner.direction(x))

    def error(self, z: Tensor) -> Float[Tensor, " b"]:
        return self.inner.error(self.codec.decode(z))

    @property
    def linearisable(self) -> bool:
        return is_linearisable(self.inner)

    def linearise(self, z: Tensor) -> "Tangent":
        """Costs a decoding, and an encoding unless `backward`; so does every product with its operator's A' or A'^T."""
        x, transpose = transposed_decoder(self.codec, z, self.backward)
        linear = linearise(self.inner, x, "a constraint linearised through a decoder")
        operator = DecodedOperator(linear.operator, self.codec, z, x, transpose)
        noise = max(linear.noise, self.noise_floor)
        return Tangent(operator, linear.residual(x), noise, origin=z, radius=linear.radius)


@dataclass(frozen=True)
class DecodedOperator:
    """A' = A d decode / dz at z, by differences of the decoder; its transpose as `transposed_decoder` gives it."""

    inner: Operator
    codec: Codec
    z: Tensor
    x: Tensor  # decode(z)
    transpose: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(forward_difference(self.codec.decode, self.z, self.x, x, difference_step(self.codec.dtype)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.transpose(self.inner.adjoint(y))


def transposed_decoder(codec: Codec, z: Tensor, backward: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """decode(z), and r -> (d decode / dz)^T r at z: by autograd, or in its place the encoder's difference along r."""
    if backward:
        return pullback(codec.decode, z, reuse=True)
    x = codec.decode(z)
    encoded = codec.encode(x)
    h = difference_step(codec.dtype)
    return x, lambda r: forward_difference(codec.encode, x, encoded, r, h)
