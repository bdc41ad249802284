"""The decoders written here, one file each; those of segmentation are smp's.

To add one for saliency: a class with the arguments and the `forward` of `poolnet.PoolNetDecoder`, a row in
`models.saliency.DECODERS`, and its name in `arch` of `config/saliency.py`. It returns the logits of the
deeper levels if `side` is true, and those of the borders if `edge` is.

The padding of a batch must not change its results. For convolutions, pools and norms that are modules, hooks
see to that (`models.padding`); functions that look at neighbours, such as resizing, go through
`extents.each` or `extents.upsampled`. The tests run over all decoders.
"""
