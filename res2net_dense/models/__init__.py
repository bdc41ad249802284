"""The networks that solve the tasks. They take plain keyword arguments and keep the contract of
`res2net_dense.types`.
"""
