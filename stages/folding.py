"""Folds into the kernels of a frozen network what TensorFlow's own optimizer leaves beside them.

A network may show its backbone one grey image as three equal channels. A convolution of equal channels is
one of a single channel with the sum of their kernels: a third of the work, and no copies.

A convolution of each channel apart, whose results are scaled by constants, as by a batch normalization, is
one with scaled kernels; then offset and activation become part of it, as of other convolutions.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = ["fold_depthwise_scales", "fold_repeated_channels"]


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


def fold_depthwise_scales(graph: tf.compat.v1.GraphDef) -> int:
    """Scales the kernels of depthwise convolutions instead of what they give.

    Args:
        graph: of a network whose weights are constants, channels last; is changed in place.

    Returns:
        How many convolutions were changed. One whose result is also read unscaled stays as it is.
    """
    nodes = {node.name: node for node in graph.node}
    scaled: list[tuple[tf.compat.v1.NodeDef, tf.compat.v1.NodeDef, str]] = []
    for conv in [node for node in graph.node if node.op == "DepthwiseConv2dNative"]:
        readers = [node for node in graph.node if conv.name in node.input]
        if len(readers) == 1 and readers[0].op == "Mul":
            [scale] = [name for name in readers[0].input if name != conv.name] or [""]
            if scale and _is_constant(scale, nodes):
                scaled.append((conv, readers[0], scale))
    with tf.Graph().as_default():
        tf.graph_util.import_graph_def(graph, name="")
        with tf.compat.v1.Session() as session:
            values = session.run([f"{scale}:0" for *_, scale in scaled])
    folded = 0
    for (conv, multiplication, _), value in zip(scaled, values, strict=True):
        kernel = tf.make_ndarray(_constant(conv.input[1], nodes).attr["value"].tensor)
        if value.size != kernel.shape[2] * kernel.shape[3]:
            continue
        constant = graph.node.add(name=f"{conv.name}/scaled_kernel", op="Const")
        constant.attr["dtype"].CopyFrom(conv.attr["T"])
        constant.attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto(kernel * value.reshape(kernel.shape[2:]), kernel.dtype)
        )
        conv.input[1] = constant.name
        multiplication.op = "Identity"
        del multiplication.input[:]
        multiplication.input.append(conv.name)
        folded += 1
    return folded


def _is_constant(name: str, nodes: dict[str, tf.compat.v1.NodeDef]) -> bool:
    """Whether a value depends on constants alone."""
    node = nodes[name.split(":")[0].lstrip("^")]
    if node.op == "Const":
        return True
    return bool(node.input) and all(_is_constant(one, nodes) for one in node.input)


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
