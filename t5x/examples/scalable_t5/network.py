"""Upstream's t5x.examples.scalable_t5.network: `t5.network` by its options."""

from flax import struct

from t5x.examples.t5 import network
from t5x.examples.t5.network import Decoder, DecoderLayer, Encoder, EncoderLayer, Transformer

__all__ = ["Decoder", "DecoderLayer", "Encoder", "EncoderLayer", "T5Config", "Transformer"]


@struct.dataclass
class T5Config(network.T5Config):
    """`t5.network.T5Config` with upstream's defaults: scanned, a relative bias in every layer.

    Parameters have the names and shapes of upstream's scalable_t5 and umT5, so that checkpoints of
    those fit. T5 v1.1's share their bias: read them with `t5.network`.
    """

    scan_layers: bool | None = True
    relative_bias_per_layer: bool = True
    split_heads: bool = True
