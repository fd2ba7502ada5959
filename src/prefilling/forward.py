"""A prefill forward for Llama-like layers over a flat line of tokens, with the model's own weights.

The same for every batching method, so that methods differ in the tokens they compute and in nothing else. It computes
what the model's own code computes (verification compares the two), with less traffic:

- no [rows, width] shape, no mask: attention runs by segment, everything else by token;
- queries, keys and values come from one product; on CPUs weights are laid out for oneDNN beforehand;
- the MLP takes tokens in tiles, so that its activations take bounded memory;
- keys and values are written once, where the batch's cache wants them, and are never held twice;
- the last layer's output is computed at each prompt's last position alone: nothing reads it elsewhere.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from . import onednn, passes
from .attention.spans import Attention
from .attention.within import within
from .cache import new_cache
from .freshness import State, hooks_of, state_of
from .shape import heads_of, windows_of

# Tokens of a tile. Fewer than about 1,000 cost a CPU's products speed (256 of them: 8 % of llama-110m's prefill).
TILE = {"cpu": 2048, "cuda": 65_536}


@dataclass
class _Linear:
    """One or more linear layers that read the same input, their outputs side by side.

    Attributes:
        weight: [outputs, inputs], joined; None where the layers are quantized, and called as they are.
        packed: the same weight laid out for oneDNN, on a CPU whose type it supports: 5 to 14 % faster products than
            with plain weights (float32, AVX2; more where it has matrix units), for a second copy in memory.
    """

    modules: list[nn.Module]
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    packed: torch.Tensor | None

    @classmethod
    def of(cls, *modules: nn.Module) -> _Linear:
        """Join layers. Where the joined weight serves, theirs become views of it, so that nothing is held twice.

        Layers that do more than multiply (quantized ones, an adapter's, those with hooks) are called as they are.
        """
        if not all(type(module) is nn.Linear and not hooks_of(module) for module in modules):
            return cls(list(modules), None, None, None)
        layers = [module for module in modules if isinstance(module, nn.Linear)]
        weight = layers[0].weight.data if len(layers) == 1 else torch.cat([layer.weight.data for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        if (packed := onednn.lay_out(weight)) is not None:
            return cls(list(modules), None, bias, packed)
        for layer, rows in zip(layers, weight.split([len(layer.weight) for layer in layers]), strict=True):
            layer.weight.data = rows
        return cls(list(modules), weight, bias, None)

    def __call__(self, x: torch.Tensor, silu: bool = False) -> torch.Tensor:
        """[n, outputs] of ``x`` [n, inputs]; with ``silu``, through that activation."""
        if self.packed is not None:
            return onednn.linear(x, self.packed, self.bias, silu)
        if self.weight is None:
            outputs = [module(x) for module in self.modules]
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        else:
            y = functional.linear(x, self.weight, self.bias)
        return functional.silu(y, inplace=True) if silu else y


def logits_of(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """What the output layer makes of ``hidden`` [k, hidden].

    For the few rows of a batch oneDNN takes a half to a third of the time of torch's product in float32 on a CPU. The
    weight is read where it is, since nothing tells of every change to it.
    """
    if type(head) is nn.Linear and "forward" not in vars(head) and not hooks_of(head):
        weight, bias = head.weight, head.bias
        if weight.dtype == hidden.dtype == torch.float32 and onednn.serves(hidden):
            return onednn.linear(hidden, weight, bias)
    found: torch.Tensor = head(hidden)
    return found


def layers_of(model: PreTrainedModel) -> list[Any]:
    """The layers that the model's own forward computes: fewer than it has, or than it was made with, where pruned."""
    return list(model.get_decoder().layers[: model.config.num_hidden_layers])


@dataclass
class _Layer:
    qkv: _Linear
    output: _Linear
    gate: _Linear
    up: _Linear
    down: _Linear
    attention_norm: Any
    mlp_norm: Any
    query_norm: Any
    key_norm: Any


class FusedForward:
    """The forward of one model. Made once per model; joins weights in place, which the model goes on using.

    Args:
        model: of a family in ``supported.FUSED_FAMILIES``: rotary positions, RMS norms, gated SiLU.
    """

    @classmethod
    def of(cls, model: PreTrainedModel, compiled: bool = False) -> FusedForward:
        """The forward of ``model``, made at the first call, kept with it, and made anew where its weights changed.

        Args:
            compiled: with its elementwise passes compiled.
        """
        made = _MADE.get(model)
        if made is None or made[0] != state_of(model):
            forward = cls(model)
            _MADE[model] = made = state_of(model), forward
        if not compiled:
            return made[1]
        found = copy.copy(made[1])  # with the same weights
        found._passes = passes.compiled()
        return found

    def __init__(self, model: PreTrainedModel) -> None:
        config, decoder = model.config, model.get_decoder()
        self._embed, self._rotary, self._norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.heads = config.num_attention_heads
        self.kv_heads, self.head_dim = heads_of(config)
        self._scale = self.head_dim**-0.5
        self._window = windows_of(config)[0]  # of all layers: the fused forward serves no mixed ones
        self._passes = passes.fastest(model.device, model.dtype)
        self._layers = []
        for layer in layers_of(model):
            own, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    qkv=_Linear.of(own.q_proj, own.k_proj, own.v_proj),
                    output=_Linear.of(own.o_proj),
                    gate=_Linear.of(mlp.gate_proj),
                    up=_Linear.of(mlp.up_proj),
                    down=_Linear.of(mlp.down_proj),
                    attention_norm=layer.input_layernorm,
                    mlp_norm=layer.post_attention_layernorm,
                    query_norm=getattr(own, "q_norm", None),
                    key_norm=getattr(own, "k_norm", None),
                )
            )
        linear = [
            each for layer in self._layers for each in (layer.qkv, layer.output, layer.gate, layer.up, layer.down)
        ]
        self.graph_forward: Any = None  # where ``graphs.py`` keeps the graphs of this forward
        # Layers with hooks or adapters are called as they are and must see the line's rows only.
        self._all_packed = all(each.packed is not None for each in linear)
        self._weights = sum(weight.numel() for weight in decoder.layers.parameters())
        self._tile = TILE.get(model.device.type, TILE["cuda"])

    def computed_tokens(self, tokens: int) -> int:
        """Token positions computed for a line of ``tokens``; rows that oneDNN is given beside them are not counted."""
        return tokens

    @property
    def elementwise(self) -> str:
        """What norms and rotary positions run on."""
        return self._passes.name

    @property
    def num_layers(self) -> int:
        """Layers, each of which hands keys and values out."""
        return len(self._layers)

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, segments: Attention, last: torch.Tensor, keep: Any
    ) -> torch.Tensor:
        """Run a flat line of tokens through the model.

        Args:
            token_ids, positions: int64 [rows, width]; the rows are laid end to end.
            segments: the spans that attend within themselves.
            last: int64 [k], the flat place of each prompt's last token.
            keep: called as ``keep(layer, kv)`` with keys and values side by side, [tokens, 2 * kv_heads * head_dim],
                which it must copy.

        Returns:
            [k, hidden], normed, the input of the model's output layer at each prompt's last token.
        """
        tokens, heads, kv_heads = token_ids.numel(), self.heads, self.kv_heads
        lines = tokens + segments.spare_rows
        more = (onednn.rows_of(lines, self._weights) if self._all_packed else lines) - tokens
        x = functional.embedding(functional.pad(token_ids.view(-1), (0, more)), self._embed.weight)
        x[tokens:] = 0  # whatever that token's embedding is: a weight of 0 would not stop a NaN
        line = functional.pad(positions.view(1, -1), (0, more))
        cos, sin = (part[0, :, None, : self.head_dim // 2] for part in self._rotary(x[None], line))
        attended = x.new_zeros(len(x), heads * self.head_dim)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(self._rms(layer.attention_norm, x)).view(len(x), heads + 2 * kv_heads, self.head_dim)
            if layer.query_norm is not None:
                qkv[:, :heads] = self._rms(layer.query_norm, qkv[:, :heads])
                qkv[:, heads:-kv_heads] = self._rms(layer.key_norm, qkv[:, heads:-kv_heads])
            self._passes.rotate(qkv[:, :-kv_heads], cos, sin)
            keep(number, qkv[:tokens, heads:].flatten(1))
            attended = segments.attend(qkv, heads, kv_heads, self._scale, attended, self._window)
            del qkv  # free it before the MLP needs memory
            if number == len(self._layers) - 1:
                x, attended = x[last], attended[last]
            for start in range(0, len(x), self._tile):
                tile = x[start : start + self._tile]
                y = layer.output(attended[start : start + self._tile])
                normed = self._passes.add_rms(tile, y, layer.mlp_norm.weight, layer.mlp_norm.variance_epsilon)
                tile += layer.down(self._inner(layer, normed))
        return self._rms(self._norm, x)

    def _rms(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        return self._passes.rms(x, norm.weight, norm.variance_epsilon)

    def _inner(self, layer: _Layer, normed: torch.Tensor) -> torch.Tensor:
        """What the MLP's last layer reads."""
        if layer.gate.packed is not None:
            return layer.gate(normed, silu=True).mul_(layer.up(normed))
        return self._passes.gated(layer.gate(normed), layer.up(normed))


# Kept outside of the models, because weights laid out for oneDNN cannot be copied with a model (continuous batching).
_MADE: weakref.WeakKeyDictionary[PreTrainedModel, tuple[State, FusedForward]] = weakref.WeakKeyDictionary()


class OwnForward:
    """The model's own forward, as transformers has it, with attention by segment in place of masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.model = model
        self.kv_heads, self.head_dim = heads_of(config)
        self.num_layers = len(layers_of(model))

    def computed_tokens(self, tokens: int) -> int:
        """Token positions that pass through the model for a line of so many."""
        return tokens

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, segments: Attention, last: torch.Tensor, keep: Any
    ) -> torch.Tensor:
        """As ``FusedForward``; keys and values are kept once all layers are through, each freed as it is copied."""
        cache = new_cache()
        with within(self.model):
            hidden = self.model.get_decoder()(
                input_ids=token_ids, position_ids=positions, past_key_values=cache, use_cache=True, segments=segments,
                return_dict=True,
            ).last_hidden_state  # fmt: skip
        layer: Any
        for number, layer in enumerate(cache.layers):
            kv = torch.cat([layer.keys, layer.values], dim=1)  # [rows, 2 * kv_heads, width, head_dim]
            layer.keys = layer.values = None
            keep(number, kv.transpose(1, 2).flatten(0, 1).flatten(1))
        return hidden.flatten(0, 1)[last.to(hidden.device)]
