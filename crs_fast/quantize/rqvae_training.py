"""Fits an RQ-VAE. If the rows are spread over processes, every step takes the batch that a single
process would take, and each process computes those of its rows that it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from crs_fast.ops.codebook import residual_codes, residual_lookup
from crs_fast.quantize.ema import ema_update_
from crs_fast.quantize.kmeans import kmeans, kmeans_plus_plus, lloyd
from crs_fast.quantize.rqvae_network import RQVAENetwork
from crs_fast.quantize.sources import ArraySource

_MIN_STEPS = 500
_KMEANS_ITERATIONS = 20
_KMEANS_ROWS = 1 << 16


class Training:
    """The state of one fit: optimizer, random generator, losses, and which codes were used since
    unused ones were last replaced."""

    def __init__(self, model: RQVAENetwork, source: ArraySource) -> None:
        config = model.config
        self.model, self.source, self.config = model, source, config
        self.generator = torch.Generator("cpu").manual_seed(config.seed)
        self.used = torch.zeros(
            config.levels, config.codes, device=source.device, dtype=torch.float32
        )
        batches = math.ceil(source.total / config.batch_size)
        self.steps = (config.epochs or math.ceil(_MIN_STEPS / batches)) * batches
        self.warm = int(self.steps * config.warmup)
        self.optimizer = self._adamw(model)
        self.losses: list[float] = []

    def run(self, progress: bool) -> None:
        from tqdm.auto import tqdm

        config, model = self.config, self.model
        self._normalise()
        model.train()
        bar = tqdm(self._batches(self.steps), "RQ-VAE", self.steps, disable=not progress)
        for step, batch in enumerate(bar):
            if step == self.warm:
                self.seed_codebooks()
            self.losses.append(self.step(batch, quantize=step >= self.warm))
            # In the last fifth of the steps no code is replaced, so that training can settle.
            reset = config.reset_every and step > self.warm and step < 0.8 * self.steps
            if reset and (step - self.warm) % config.reset_every == 0:
                self.revive_dead()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{self.losses[-1]:.4f}")
            if self._stalled(step):
                break
        if len(self.losses) <= self.warm:
            self.seed_codebooks()
        self.settle()
        self.refit_decoder(max(1, self.steps // 5))

    def _normalise(self) -> None:
        total = torch.zeros(2, self.source.dim, dtype=torch.float64, device=self.source.device)
        for x in self.source.batches(_KMEANS_ROWS):
            total[0] += x.double().sum(0)
        mean = self.source.sum(total)[0] / self.source.total
        for x in self.source.batches(_KMEANS_ROWS):
            total[1] += (x.double() - mean).square().sum(0)
        variance = float(self.source.sum(total)[1].mean() / self.source.total)
        self.model.mean.copy_(mean)
        self.model.scale.fill_(math.sqrt(variance) if variance > 0 else 1.0)

    def _adamw(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW, without weight decay for codewords and biases: they are positions in space."""
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        weights = [p for name, p in named if name.endswith("weight")]
        others = [p for name, p in named if not name.endswith("weight")]
        decayed = {"params": weights, "weight_decay": self.config.weight_decay}
        return torch.optim.AdamW(
            [decayed, {"params": others, "weight_decay": 0.0}], lr=self.config.lr, fused=True
        )

    def _batches(self, steps: int) -> Iterator[torch.Tensor]:
        """Yield the row numbers of `steps` batches, each epoch in a new random order. Each batch
        also moves the learning rate along its cosine."""
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, steps, 0.01 * self.config.lr
        )
        order = torch.empty(0, dtype=torch.int64, device="cpu")
        for _ in range(steps):
            if not len(order):
                order = torch.randperm(self.source.total, generator=self.generator, device="cpu")
            yield order[: self.config.batch_size]
            order = order[self.config.batch_size :]
            schedule.step()

    def step(self, batch: torch.Tensor, quantize: bool) -> float:
        """Take one step on the rows with the numbers `batch`, int64 [n]; returns their mean loss,
        over all processes."""
        rows = self.source.take(self.source.local(batch)[1])
        counts, sums = torch.zeros_like(self.used), None
        total = torch.zeros((), device=self.source.device, dtype=torch.float32)
        if len(rows):
            if quantize:
                out = self.model(rows)
                total, sums = out.loss, out.sums
                for level, codes in enumerate(out.codes.T):
                    counts[level] = torch.bincount(codes, minlength=self.config.codes)
            else:
                target = self.model._normalised(rows)
                total = F.mse_loss(self.model.decoder(self.model.encoder(target)), target)
        loss = self._descend(total * (len(rows) / len(batch)))
        if quantize:
            counts = self.source.sum(counts)
            self.used += counts
            if self.config.codebook_update == "ema":
                sums = torch.zeros_like(self.model.codebooks) if sums is None else sums.float()
                model = self.model
                ema_update_(
                    model.codebooks, model.ema_weights, model.ema_totals, counts,
                    self.source.sum(sums), self.config.decay,
                )  # fmt: skip
        return loss

    def _descend(self, loss: torch.Tensor) -> float:
        """Take one optimizer step on the sum of all processes' losses, and return this sum."""
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
        if self.source.sharded:
            self._sum_gradients()
        self.optimizer.step()
        return float(self.source.sum(loss.detach()))

    def _sum_gradients(self) -> None:
        """Sum gradients over processes. A parameter without a gradient takes part with zeros, so
        that all processes send the same shapes."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = self.source.sum(torch.cat([p.grad.reshape(-1) for p in parameters]))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def _stalled(self, step: int) -> bool:
        span = self.config.patience
        if not span or step + 1 - self.warm < 2 * span or (step + 1 - self.warm) % span:
            return False
        return sum(self.losses[-span:]) >= sum(self.losses[-2 * span : -span])

    @torch.no_grad()
    def seed_codebooks(self) -> None:
        """Start every level's codebook from the k-means of the residuals that reach it."""
        rows = self.source.sample(_KMEANS_ROWS, self.generator)
        rest = self.model.encoder(self.model._normalised(rows))
        for level in range(self.config.levels):
            start = kmeans_plus_plus(rest, self.config.codes, self.generator)
            centres, rest = kmeans(rest, start, _KMEANS_ITERATIONS)
            self._set(level, torch.arange(self.config.codes, device="cpu"), centres)

    @torch.no_grad()
    def revive_dead(self) -> None:
        """Set codewords unused since the last call to random residuals of their level."""
        if not bool(self.used.all()):
            size = min(self.source.total, self.config.batch_size)
            picks = torch.randperm(self.source.total, generator=self.generator, device="cpu")[:size]
            z = self.model.encoder(self.model._normalised(self.source.rows(picks)))
            rests = self.model._rests(z, residual_codes(z, self.model.codebooks))  # [L, n, D']
            for level, counts in enumerate(self.used):
                dead = (counts == 0).nonzero().squeeze(-1)
                picks = torch.randint(size, (len(dead),), generator=self.generator, device="cpu")
                self._set(level, dead, rests[level, picks.to(rests.device)])
        self.used.zero_()

    def _set(self, level: int, codes: torch.Tensor, codewords: torch.Tensor) -> None:
        """Set these codes of a level to `codewords`. Their moving averages start there too, with
        the weight of one row."""
        codewords = self.source.same(codewords)
        codes = codes.to(codewords.device)
        self.model.codebooks[level, codes] = codewords
        if self.config.codebook_update == "ema":
            self.model.ema_weights[level, codes] = 1.0
            self.model.ema_totals[level, codes] = codewords

    @torch.no_grad()
    def settle(self) -> None:
        """Run Lloyd's algorithm on the finished latents, so that each codeword is the mean of the
        residuals that it codes."""
        for tensor in self.model.state_dict().values():
            tensor.copy_(self.source.same(tensor))
        latents = [self.model.embed(x) for x in self.source.batches(_KMEANS_ROWS)]
        rest = torch.cat(latents)
        for level in range(self.config.levels):
            source = ArraySource(rest, self.source.sharded)
            start = self.model.codebooks[level].detach()
            centres = lloyd(source, start, _KMEANS_ITERATIONS)
            self.model.codebooks[level] = centres
            rest = residual_lookup(rest, centres[None])[1]
        if self.config.codebook_update == "ema":
            self.model.ema_totals.copy_(self.model.codebooks * self.model.ema_weights[..., None])

    def refit_decoder(self, steps: int) -> None:
        """Train the decoder alone for `steps` steps, since `settle` moved the codewords."""
        model, source = self.model, self.source
        self.optimizer = self._adamw(model.decoder)
        with torch.no_grad():
            levels = torch.arange(self.config.levels, device="cpu")
            quantized = torch.cat(
                [
                    model.codebooks[levels, model.encode(x)].sum(1)
                    for x in source.batches(_KMEANS_ROWS)
                ]
            )  # [n, D'], this process's rows
        for batch in self._batches(steps):
            local = source.local(batch)[1]
            loss = torch.zeros((), device=source.device, dtype=torch.float32)
            if len(local):
                target = model._normalised(source.take(local))
                out = model.decoder(quantized[local.to(source.device)])
                loss = F.mse_loss(out, target) * (len(local) / len(batch))
            self._descend(loss)
