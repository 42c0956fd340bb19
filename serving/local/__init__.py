"""Embedded model server: the REST API and the flags of TensorFlow Serving, where neither it nor Docker is.

From the command line to the graph:

`__main__`   log, port, life of the process
`flags`      command line
`config`     files that flags name
`connection` clients that send or take too slowly
`app`        HTTP: paths, limits, codes
`decode`     JSON of a request -> arrays
`encode`     arrays -> JSON of an answer
`models`     which models are served, labels, reload
`versions`   which versions of a model are served, loading, swapping, unloading
`model`      one version: SavedModel, warm-up, running a signature
`batching`   requests that share a run
`metrics`    for Prometheus
`status`     errors and their HTTP codes
"""
