"""This library beside JAXopt and beside JAX by hand, on problems of the sizes that people run.

    python -m benchmarks.peers                 # all problems, some minutes on a quiet machine
    python -m benchmarks.peers --only ridge    # one of them
    python -m benchmarks.peers --small         # toy sizes, to see that everything runs

`make test-peers` builds an environment that holds JAXopt; without it that row is missing, as are
those of higher, TorchOpt and hypertorch (the package `hypergrad`) without them and PyTorch.
PyTorch's rows have no compiling and no planned memory.
"""
