"""Dead letters to their topics: the way out of a flow for what did not work.

Guarantee: every dead letter is delivered to `<topic>.dlq` before the flow's next snapshot, or the flow stops; its job's
status becomes dead_lettered, and what was reserved for it is freed, but for what refused answers cost. A message that
is too large for its letter is left out of it: a letter that its topic refused would stop the flow at every restart.
State: none.
"""

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from operators.outcome import flow_step
from operators.produce import letter_records
from operators.runtime import Runtime
from operators.write import write
from schemas.dead_letter import DeadLetter


@operator
def dead_letter(step_id: str, *ups: KeyedStream[DeadLetter], runtime: Runtime) -> None:
    """Write the dead letters of all steps of a flow."""
    step = flow_step(step_id)
    records = op.flat_map_value(
        "records", op.merge("all", *ups), lambda letter: letter_records(letter, step=step, tracer=runtime.tracer)
    )
    write("write", records, runtime)
