"""Embedded model server: the REST API and the flags of TensorFlow Serving, where neither it nor Docker is.

From the command line to the graph:

`__main__`   flags, log, port, life of the process
`app`        HTTP: paths, limits, codes
`decode`     JSON of a request -> arrays
`encode`     arrays -> JSON of an answer
`versions`   which version is served, loading, swapping, unloading
`model`      one version: SavedModel, warm-up, running a signature
`status`     errors and their HTTP codes
"""
