"""The T5 network under the name of upstream's scanned variant; one implementation serves both."""

from t5x.examples.t5.network import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    T5Config,
    Transformer,
)

__all__ = ["Decoder", "DecoderLayer", "Encoder", "EncoderLayer", "T5Config", "Transformer"]
