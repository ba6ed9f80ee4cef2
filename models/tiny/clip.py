"""The tiny CLIP pair: a convolutional image tower at 128 px and a causal text tower over the full CLIP vocabulary."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tokenizer import EOT

DIM = 512
IMAGE_SIZE = 128
CONTEXT_LENGTH = 77
_VOCABULARY = EOT + 1


class ConvBlock(nn.Module):
    """Residual depthwise 5x5 followed by a pointwise expansion."""

    def __init__(self, channels: int, expansion: int = 3) -> None:
        super().__init__()
        hidden = channels * expansion
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 5, 1, 2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),  # ten times cheaper than GELU on a CPU
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ImageTower(nn.Module):
    """images float32 [N, 3, 128, 128], RGB in 0..1 -> float32 [N, 512] of length 1."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 176), stem: int = 24, head: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_down(3, stem), *_down(stem, widths[0]), ConvBlock(widths[0])]
        for before, after in pairwise(widths):
            layers += [*_down(before, after), ConvBlock(after), ConvBlock(after)]
        self.body = nn.Sequential(*layers)
        cells = (IMAGE_SIZE // 2 ** (len(widths) + 1)) ** 2
        self.places = nn.Sequential(
            nn.Conv2d(widths[-1], head, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(head * cells, DIM)
        )
        self.mean = nn.Linear(widths[-1], DIM)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images * 2 - 1)
        embedding = self.places(features) + self.mean(features.mean((2, 3)))
        return F.normalize(embedding.float(), dim=-1)


class TextBlock(nn.Module):
    """Pre-norm causal attention and MLP, written out so that it exports as plain operators."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        count, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads) + mask).softmax(-1)
        attended = (weights @ value).transpose(1, 2).reshape(count, length, width)
        x = x + self.out(attended)
        return x + self.mlp(self.norm_mlp(x))


class TextTower(nn.Module):
    """tokens int64 [N, L <= 77] -> float32 [N, 512] of length 1, read at the EOT token.

    Attention is causal, so what follows EOT, padding of any length, never changes the result.
    """

    def __init__(self, width: int = 128, blocks: int = 2, heads: int = 4, rank: int = 16) -> None:
        super().__init__()
        # 49,408 words at full width would be 12 MB: they share a projection from a small space.
        self.words = nn.Embedding(_VOCABULARY, rank)
        nn.init.normal_(self.words.weight, 0, 0.1)
        self.widen = nn.Linear(rank, width)
        # Zero, not random: positions that no training text reaches then stay neutral.
        self.positions = nn.Parameter(torch.zeros(CONTEXT_LENGTH, width))
        self.blocks = nn.ModuleList([TextBlock(width, heads) for _ in range(blocks)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, DIM)
        causal = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), -1e4).triu(1)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.widen(self.words(tokens)) + self.positions[:length]
        for block in self.blocks:
            x = block(x, self.causal[:length, :length])
        end = tokens.argmax(-1)  # EOT has the highest id; without one this falls on SOT, the same for every text
        x = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        return F.normalize(self.out(self.norm(x)).float(), dim=-1)


def _down(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
