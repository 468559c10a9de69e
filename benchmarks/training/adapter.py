"""The judge's reader in PyTorch, for training: rag/support_graph.py builds the same from what this saves."""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from knowledge_base.embedders import DEFAULT_MODEL, resolve_model
from rag.support_graph import HEADS, LAYERS, LINEAR, NORMS, WIDTH
from rag.support_reader import KINDS, SCALE

_RANK = 16
_HEAD = WIDTH // HEADS
# Multiplied twice as fast as float32 where the machine knows it; the sums inside are float32 all the same.
_FAST = torch.bfloat16


class Linear(nn.Module):
    """A frozen matrix with a low-rank change to it; the bias is trained."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", weight.to(_FAST), persistent=False)
        self.bias = nn.Parameter(bias.clone())
        self.a = nn.Parameter(torch.randn(_RANK, weight.shape[1]) / math.sqrt(weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], _RANK))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.a.to(_FAST)), (self.b * SCALE).to(_FAST))
        return F.linear(x, self.frozen, self.bias.to(_FAST)) + change


class Norm(nn.Module):
    """A layer norm in the fast format."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weight.to(_FAST), self.bias.to(_FAST), 1e-12)


class Layer(nn.Module):
    """One layer of BERT."""

    def __init__(self, base: dict[str, Tensor], part: str) -> None:
        super().__init__()

        def of(name: str) -> tuple[Tensor, Tensor]:
            return base[f"{part}.{name}.weight"], base[f"{part}.{name}.bias"]

        self.linear = nn.ModuleList(Linear(*of(name)) for name in LINEAR)
        self.norms = nn.ModuleList(Norm(*of(name)) for name in NORMS)


class Reader(nn.Module):
    """Claims look at their contexts and at each other, contexts at themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        base = load_file(str(resolve_model(DEFAULT_MODEL) / "model.safetensors"))
        for name in ("word", "position"):
            table = base[f"embeddings.{name}_embeddings.weight"].to(_FAST)
            self.register_buffer(name, table, persistent=False)
        self.norm = Norm(base["embeddings.LayerNorm.weight"], base["embeddings.LayerNorm.bias"])
        # Contexts begin as BERT's first segment, claims as its second.
        segments = base["embeddings.token_type_embeddings.weight"][[1] * (KINDS - 3) + [0] * 3]
        self.kinds = nn.Parameter(segments + 0.01 * torch.randn(KINDS, WIDTH))
        self.layers = nn.ModuleList(Layer(base, f"encoder.layer.{i}") for i in range(LAYERS))
        self.token, self.claim = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)
        self.mix = nn.Parameter(torch.tensor([0.5, 0.0]))
        nn.init.zeros_(self.claim.weight)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.constant_(self.token.bias, -2.0)
        nn.init.constant_(self.claim.bias, -1.0)

    def forward(
        self, read: Tensor, lengths: Tensor, which: Tensor, claims: Tensor, places: Tensor, known: Tensor
    ) -> Tensor:
        """Vectors of the claims' tokens.

        Args:
            read: Contexts, (contexts, C, 2): number and kind of each token.
            lengths: Which tokens of `read` there are, (contexts, C).
            which: For each run of claims, the number of its context, (runs,).
            claims: The runs, (runs, A, 2).
            places: Position of each of their tokens, (runs, A).
            known: Which tokens of `claims` there are, (runs, A).
        """
        contexts, runs = len(read), len(claims)
        inside, said = lengths.flatten().nonzero()[:, 0], known.flatten().nonzero()[:, 0]
        n = len(inside)
        # Only attention needs rectangles: all the rest runs over the tokens that there are.
        pad_read, pad_said = _numbers(lengths.numel(), inside), _numbers(known.numel(), said)
        seen = torch.cat([pad_read.view(contexts, -1)[which], n + pad_said.view(runs, -1)], 1).flatten()
        x = torch.cat([
            self._embed(read.view(-1, 2)[inside], torch.arange(read.shape[1]).repeat(contexts)[inside]),
            self._embed(claims.view(-1, 2)[said], places.flatten()[said]),
        ])  # fmt: skip
        alone, beside = _mask(lengths), _mask(torch.cat([lengths[which], known], 1))
        for number, layer in enumerate(self.layers):
            query, key, value, out, up, down = layer.linear
            first, second = layer.norms
            k, v = key(x), value(x)
            last = number == LAYERS - 1  # what the contexts become after the last layer is read by nobody
            q = query(x[n:] if last else x)
            mixed = _attend(
                _split(q if last else q[n:], pad_said, runs), _split(k, seen, runs), _split(v, seen, runs),
                beside, runs,
            ).index_select(0, said)  # fmt: skip
            if last:
                x = x[n:]
            else:
                q, k, v = (_split(t[:n], pad_read, contexts) for t in (q, k, v))
                mixed = torch.cat([_attend(q, k, v, alone, contexts).index_select(0, inside), mixed])
            x = first(x + out(mixed))
            x = second(x + down(F.gelu(up(x))))
        return x.index_select(0, pad_said).view(runs, -1, WIDTH).float()

    def judge(self, vectors: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Log-odds that tokens (runs, A), and claims (count,), are not supported; `numbers` as in Piece."""
        tokens = self.token(vectors)[..., 0]
        of_claim = numbers >= 0
        number, value, vector = numbers[of_claim], tokens[of_claim], vectors[of_claim]
        length = torch.zeros(count).index_add(0, number, torch.ones(len(number))).clamp(min=1)
        mean = torch.zeros(count, WIDTH).index_add(0, number, vector) / length[:, None]
        most = torch.full((count,), -30.0).scatter_reduce(0, number, value, "amax")
        average = torch.zeros(count).index_add(0, number, value) / length
        return tokens, self.claim(mean)[:, 0] + self.mix[0] * most + self.mix[1] * average

    def _embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        vectors = F.embedding(tokens[:, 0], self.word) + F.embedding(places, self.position)
        embedded: Tensor = self.norm(vectors + F.embedding(tokens[:, 1], self.kinds).to(_FAST))
        return embedded


def _numbers(size: int, present: Tensor) -> Tensor:
    """For each cell of a rectangle the number of its token; 0 where there is none."""
    numbers = torch.zeros(size, dtype=torch.long)
    numbers[present] = torch.arange(len(present))
    return numbers


def _mask(present: Tensor) -> Tensor:
    hidden = torch.zeros(present.shape, dtype=_FAST).masked_fill(~present, -1e4)
    return hidden[:, None, None, :].expand(-1, HEADS, 1, -1).reshape(-1, 1, present.shape[1])


def _split(x: Tensor, cells: Tensor, rows: int) -> Tensor:
    heads = x.index_select(0, cells).view(rows, -1, HEADS, _HEAD).transpose(1, 2)
    return heads.reshape(rows * HEADS, -1, _HEAD)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rows: int) -> Tensor:
    share = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(_HEAD)), -1)
    return torch.bmm(share, v).view(rows, HEADS, -1, _HEAD).transpose(1, 2).reshape(-1, WIDTH)
