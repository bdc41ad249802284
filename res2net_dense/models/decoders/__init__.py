"""The decoders written here, one file each; those of segmentation are smp's.

To add one for saliency: a class with the arguments and the `forward` of `poolnet.PoolNetDecoder`, a row in
`models.saliency.DECODERS`, and its name in `arch` of `config/saliency.py`.
"""
