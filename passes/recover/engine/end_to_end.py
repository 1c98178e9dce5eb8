"""The whole model at once, towards what the teacher gives in the end."""

from __future__ import annotations

from graphpress.passes.recover.engine.job import Job
from graphpress.passes.recover.engine.student import Pair


def run(job: Job) -> tuple[float, float]:
    """Train all parameters together; the best on the held-back samples stay. The loss there before and after."""
    wanted = [*job.outputs, *job.loss.features]
    student, teacher = job.student(wanted), job.taught(wanted)
    names = [n for n in job.names if n in student.parameters]
    job.left |= {n: "no output depends on it" for n in job.names if n not in student.parameters}
    pair = Pair(student, teacher, job.outputs)
    trainer = job.trainer(student, names, see=pair, batches=job.samples, held=job.held, name="the model")
    outcome = job.train(trainer, student)
    return outcome.before, outcome.after
