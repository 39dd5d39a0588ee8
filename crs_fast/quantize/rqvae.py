"""RQ-VAE, the quantizer: its network together with its fit."""

from __future__ import annotations

from crs_fast.quantize.rqvae_network import RQVAEConfig, RQVAENetwork, RQVAEOutput
from crs_fast.quantize.rqvae_training import Training
from crs_fast.quantize.sources import ArraySource, Source

__all__ = ["RQVAE", "RQVAEConfig", "RQVAEOutput"]


class RQVAE(RQVAENetwork):
    """Residual-quantized variational autoencoder for semantic IDs.

        z = encoder(x);  q = sum of the nearest codewords of z, level by level
        loss = |x - decoder(z + sg(q - z))|^2 + sum_l |sg(r_l) - c_l|^2 + beta |r_l - sg(c_l)|^2
        # with codebook_update="ema" the c_l are moving averages and |sg(r_l) - c_l|^2 is left out

    Use it as `RQVAE(levels=4, codes=64).fit(x).encode(x)`. `embed` returns the latents; the other
    methods are those of `ResidualQuantizer`. Source: Rajput et al. 2023 (TIGER, arXiv 2305.05065),
    section 3.1.
    """

    def _fit(self, source: Source, progress: bool) -> None:
        if not isinstance(source, ArraySource):
            raise ValueError("RQVAE.fit: x must be an array or a memory map (got batches)")
        Training(self, source).run(progress)
