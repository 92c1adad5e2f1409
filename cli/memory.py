"""Memory of a process that runs for long: what is there at its start stays."""

import gc


def settle_memory() -> None:
    """Let the garbage collector look at what a flow makes, and seldom: by default it took 40 % of its CPU time.

    Models, modules and the flow itself stay; messages hardly ever hold references in circles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
