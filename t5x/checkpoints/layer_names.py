"""Names of the parameters of layers, in either layout: the one place that knows them.

    encoder/layers_0/mlp/wi/kernel    a layer of its own
    encoder/encoder/mlp/wi/kernel     all layers of a stack in one array

Both may stand behind a head, as `target/` or `state/param_states/`.
"""

import re

UNROLLED = re.compile(
    r"(?P<head>.*/)?(?P<stack>encoder|decoder)/layers_(?P<index>\d+)/(?P<rest>.+)"
)
SCANNED = re.compile(r"(?P<head>.*/)?(?P<stack>encoder|decoder)/(?P=stack)/(?P<rest>.+)")
# Of T5X's scalable_t5, whose layers each have relative positions of their own.
BIAS_OF_A_LAYER = re.compile(r"(.*/)?(encoder|decoder)/(\2|layers_\d+)/relpos_bias/.+")


def scanned_name(name: str) -> str:
    """The name of the array that holds a layer's parameter with those of all layers.

    Names of parameters outside layers are returned as they are.
    """
    match = UNROLLED.fullmatch(name)
    if match is None:
        return name
    return f"{match['head'] or ''}{match['stack']}/{match['stack']}/{match['rest']}"


def layer_name(stack: str, index: int) -> str:
    """What the parameters of one layer of a stack stand behind."""
    return f"{stack}/layers_{index}"
