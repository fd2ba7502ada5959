"""A prefill forward for Llama-like layers over a flat line of tokens, with the model's own weights.

The same for every batching method, so that methods differ in the tokens they compute and in nothing else. It computes
what the model's own code computes (verification compares the two), with less traffic:

- no [rows, width] shape, no mask: attention runs by segment, everything else by token;
- queries, keys and values come from one product, gate and up projection from another;
- residuals are added by the product that computes them, activations are computed in place;
- tokens pass in tiles through buffers that are taken once, so that activations take bounded memory;
- keys and values are written once, where the batch's cache wants them, and are never held twice;
- the last layer's output is computed at each prompt's last position alone: nothing reads it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from src.prefill.attention import Segments, attend, by_segments
from src.prefill.cache import new_cache

# Tokens of a tile. They bound the memory that activations take. Fewer than about 1,000 cost a CPU's products speed
# (256 of them: 8 % of llama-110m's prefill).
TILE = {"cpu": 2048, "cuda": 65_536}


@dataclass
class _Product:
    """One or more linear layers that read the same input, as one product where their weights are plain matrices."""

    modules: list[nn.Module]
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(cls, *modules: nn.Module) -> _Product:
        """Join layers; their weights become views of the joint one, so that nothing is held twice."""
        plain = all(type(module) is nn.Linear for module in modules)
        if not plain:
            return cls(list(modules), None, None)
        weights: list[torch.Tensor] = [module.weight.data for module in modules]  # type: ignore[misc]
        biases = [module.bias for module in modules]
        joint = weights[0] if len(weights) == 1 else torch.cat(weights)
        for module, rows in zip(modules, joint.split([len(weight) for weight in weights]), strict=True):
            module.weight.data = rows  # type: ignore[union-attr]
        bias = None if biases[0] is None else torch.cat([each.data for each in biases])  # type: ignore[misc]
        return cls(list(modules), joint, bias)  # type: ignore[arg-type]

    def into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``out`` [n, sum of outputs] = the layers of ``x`` [n, inputs], side by side."""
        if self.weight is None:
            torch.cat([module(x) for module in self.modules], dim=-1, out=out)
        elif self.bias is None:
            torch.mm(x, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """``residual`` += the layer of ``x``, within the product itself where it can be."""
        if self.weight is None or self.bias is not None:
            residual += self.modules[0](x)
        else:
            residual.addmm_(x, self.weight.t())


@dataclass
class _Layer:
    qkv: _Product
    output: _Product
    gate_up: _Product
    down: _Product
    attention_norm: Any
    mlp_norm: Any
    query_norm: Any
    key_norm: Any


class FusedForward:
    """The forward of one model. Made once per model; joins weights in place, which the model goes on using.

    Args:
        model: of a family in ``models.FAMILIES``: rotary positions, RMS norms, gated SiLU.
    """

    @classmethod
    def of(cls, model: PreTrainedModel) -> FusedForward:
        """The forward of ``model``, made at the first call and kept with it."""
        if not hasattr(model, "_fused_forward"):
            object.__setattr__(model, "_fused_forward", cls(model))  # not a submodule: it holds the model's own layers
        return model._fused_forward  # type: ignore[no-any-return, return-value]

    def __init__(self, model: PreTrainedModel) -> None:
        config, decoder = model.config, model.get_decoder()
        self.model, self._embed, self._rotary, self._norm = (
            model,
            decoder.embed_tokens,
            decoder.rotary_emb,
            decoder.norm,
        )
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self._hidden, self._intermediate = config.hidden_size, config.intermediate_size
        self._scale = self.head_dim**-0.5
        self._layers = []
        for layer in decoder.layers:
            own, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    _Product.of(own.q_proj, own.k_proj, own.v_proj),
                    _Product.of(own.o_proj),
                    _Product.of(mlp.gate_proj, mlp.up_proj),
                    _Product.of(mlp.down_proj),
                    layer.input_layernorm,
                    layer.post_attention_layernorm,
                    getattr(own, "q_norm", None),
                    getattr(own, "k_norm", None),
                )
            )
        self._tile = TILE.get(model.device.type, TILE["cuda"])

    @property
    def num_layers(self) -> int:
        """Layers, each of which hands keys and values out."""
        return len(self._layers)

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, segments: Segments, last: torch.Tensor, keep: Any
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
        tokens, dtype = token_ids.numel(), self._embed.weight.dtype
        x = functional.embedding(token_ids.view(-1), self._embed.weight)
        cos, sin = (part[0, :, None, : self.head_dim // 2] for part in self._rotary(x[None], positions.view(1, -1)))
        width = self.heads + 2 * self.kv_heads
        # A spare row behind the line takes what right pads of attention groups write.
        qkv = torch.zeros(tokens + 1, width, self.head_dim, dtype=dtype, device=x.device)
        attended = torch.zeros(tokens + 1, self.heads * self.head_dim, dtype=dtype, device=x.device)
        flat, q_width = qkv.view(tokens + 1, -1), self.heads * self.head_dim
        tiles = [slice(at, min(at + self._tile, tokens)) for at in range(0, tokens, self._tile)]
        buffer = x.new_empty(min(self._tile, max(tokens, len(last))), 2 * self._intermediate)
        for number, layer in enumerate(self._layers):
            for tile in tiles:
                layer.qkv.into(_rms(layer.attention_norm, x[tile]), flat[tile])
                if layer.query_norm is not None:
                    qkv[tile, : self.heads] = _rms(layer.query_norm, qkv[tile, : self.heads])
                    qkv[tile, self.heads : -self.kv_heads] = _rms(
                        layer.key_norm, qkv[tile, self.heads : -self.kv_heads]
                    )
                _rotate(qkv[tile, : -self.kv_heads], cos[tile], sin[tile])
            keep(number, flat[:tokens, q_width:])
            attend(qkv, self.heads, self.kv_heads, self._scale, segments, attended)
            if number == len(self._layers) - 1:
                x, attended = x[last], attended[last]
                tiles = [slice(at, min(at + self._tile, len(last))) for at in range(0, len(last), self._tile)]
            for tile in tiles:
                rest = x[tile]
                layer.output.add_to(rest, attended[tile])
                gate_up = buffer[: len(rest)]
                layer.gate_up.into(_rms(layer.mlp_norm, rest), gate_up)
                gate, up = gate_up.split(self._intermediate, dim=-1)
                layer.down.add_to(rest, functional.silu(gate, inplace=True).mul_(up))
        return _rms(self._norm, x)


def _rms(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary positions in place: qk [n, heads, head_dim]; cos, sin [n, 1, head_dim / 2]."""
    first, second = qk.chunk(2, dim=-1)
    turned = second * cos
    turned.addcmul_(first, sin)
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.copy_(turned)


class OwnForward:
    """The model's own forward, as transformers has it, with attention by segment in place of masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.model = model
        self.kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.num_layers = config.num_hidden_layers

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, segments: Segments, last: torch.Tensor, keep: Any
    ) -> torch.Tensor:
        """As ``FusedForward``; keys and values are kept once all layers are through, each freed as it is copied."""
        cache = new_cache()
        with by_segments(self.model):
            hidden = self.model.get_decoder()(
                input_ids=token_ids, position_ids=positions, past_key_values=cache, use_cache=True, segments=segments
            ).last_hidden_state
        layer: Any
        for number, layer in enumerate(cache.layers):
            kv = torch.cat([layer.keys, layer.values], dim=1)  # [rows, 2 * kv_heads, width, head_dim]
            layer.keys = layer.values = None
            keep(number, kv.transpose(1, 2).flatten(0, 1).flatten(1))
        return hidden.flatten(0, 1)[last]
