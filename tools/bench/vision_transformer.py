"""A small vision transformer, trained where it is needed: on scikit-learn's digits, in under a minute."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH, HIDDEN, DEPTH, HEADS, PATCH = 48, 192, 4, 4, 2
FOLDS = 3


def trained(fold: int = 0, epochs: int = 40, seed: int = 0) -> tuple[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(module that takes [N, 8, 8] pictures and gives [N, 10] logits, (training pictures, test pictures, test labels)).

    One third of the digits, the ``fold``-th, is for the test.
    """
    import torch

    train_x, train_y, test_x, test_y = _data(fold, seed)
    torch.manual_seed(seed)
    module = _module()
    x, y = torch.from_numpy(train_x), torch.from_numpy(train_y)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(x) // 100))
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for i in range(len(x) // 100):
            rows = order[100 * i : 100 * (i + 1)]
            noisy = x[rows] + 0.2 * torch.randn_like(x[rows])
            loss = torch.nn.functional.cross_entropy(module(noisy), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval(), (train_x, test_x, test_y)


def _data(fold: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    pictures = (found.images[order] / 8 - 1).astype(np.float32)
    labels = found.target[order].astype(np.int64)
    test = np.arange(len(order)) * FOLDS // len(order) == fold
    return pictures[~test], labels[~test], pictures[test], labels[test]


def _module() -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, _ = x.shape
            parts = self.qkv(self.norm1(x)).reshape(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
            x = x + self.out(y.transpose(1, 2).reshape(n, t, WIDTH))
            return x + self.mlp(self.norm2(x))

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(PATCH * PATCH, WIDTH)
            self.place = nn.Parameter(0.02 * torch.randn(64 // PATCH**2, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            side = 8 // PATCH
            patches = x.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, side * side, PATCH * PATCH)
            return self.head(self.norm(self.blocks(self.embed(patches) + self.place)).mean(1))

    return VisionTransformer()
