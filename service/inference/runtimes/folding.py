"""Folds batch norms into the convolutions before them: the same function with one operator less."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.networks.cascade import Cascade


def fold_norms(network: Cascade) -> Cascade:
    """Remove each norm that directly follows a convolution; ``network`` is in evaluation mode and changed in place.

    Modules are assumed to run in the order in which they were registered, as in every network here. DenseNet's norms
    that follow a sum or a concatenation are kept.
    """
    network.eval()
    for parent in list(network.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return network
