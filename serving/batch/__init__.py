"""Scores a folder of tiles without a server, on one machine or many. `python -m serving.batch --help`.

The modules, from the bottom up:

    storage     folders on this machine or in an object store
    results     the folder that is written: what is done, and that it is done once
    model       a version of the exported model, wherever it lies
    scorer      what one worker does, without Ray
    job         the workers, on Ray Data
    cli         the command line
"""
