"""Folds repeated channels of a frozen network into the kernels of the convolutions that read them.

The network shows its backbone one grey image as three equal channels. A convolution of equal channels is
one of a single channel with the sum of their kernels: a third of the work, and no copies.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = ["fold_repeated_channels"]


def fold_repeated_channels(graph: tf.compat.v1.GraphDef) -> int:
    """Lets convolutions read the one image instead of a concatenation of its copies.

    Args:
        graph: of a network whose weights are constants, channels last; is changed in place.

    Returns:
        How many convolutions were changed. One that also reads something else keeps what it reads.
    """
    nodes = {node.name: node for node in graph.node}
    folded = 0
    for concat in [node for node in graph.node if _repeats(node, nodes)]:
        copies = len(concat.input) - 1
        for conv, pads in _convolutions(concat, graph):
            kernel = tf.make_ndarray(_constant(conv.input[1], nodes).attr["value"].tensor)
            height, width, channels, filters = kernel.shape
            parts = kernel.reshape(height, width, copies, channels // copies, filters)
            constant = graph.node.add(name=f"{conv.name}/folded_kernel", op="Const")
            constant.attr["dtype"].CopyFrom(conv.attr["T"])
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(parts.sum(axis=2)))
            conv.input[1] = constant.name
            (pads[0] if pads else conv).input[0] = concat.input[0]
            folded += 1
    return folded


def _repeats(node: tf.compat.v1.NodeDef, nodes: dict[str, tf.compat.v1.NodeDef]) -> bool:
    """Whether a node stacks copies of one tensor along the channels."""
    if node.op != "ConcatV2" or len(set(node.input[:-1])) != 1 or len(node.input) < 3:
        return False
    return int(tf.make_ndarray(_constant(node.input[-1], nodes).attr["value"].tensor)) in (-1, 3)


def _convolutions(
    source: tf.compat.v1.NodeDef, graph: tf.compat.v1.GraphDef
) -> list[tuple[tf.compat.v1.NodeDef, list[tf.compat.v1.NodeDef]]]:
    """Convolutions that read a node, at once or through a padding that nothing else reads."""
    found: list[tuple[tf.compat.v1.NodeDef, list[tf.compat.v1.NodeDef]]] = []
    for reader in [node for node in graph.node if source.name in node.input]:
        if reader.op == "Conv2D" and reader.input[0] == source.name:
            found.append((reader, []))
        elif reader.op == "Pad":
            inner = [node for node in graph.node if reader.name in node.input]
            if len(inner) == 1 and inner[0].op == "Conv2D":
                found.append((inner[0], [reader]))
    return found


def _constant(name: str, nodes: dict[str, tf.compat.v1.NodeDef]) -> tf.compat.v1.NodeDef:
    node = nodes[name]
    while node.op == "Identity":
        node = nodes[node.input[0]]
    return node
