"""The words of docs/training-together.md around its tables; every number in them comes from the plan or the records."""
import collections
import os

import study_plan

BEFORE = """# Training together: what each strategy pays

Written by `tools/study`; the tables, plots and verdicts are made from its records alone (`tools/study --page`). {strategies} ways of
training one model on {replicas} replicas, two models, three settings, seeds {seeds}. A seed fixes the initial weights and the order of
the samples for all strategies, so that differences to synchronous all-reduce are taken pair by pair.

{runs} runs, {dates}, {machines}.

**How to read it.** *Final loss* is the loss on held-out samples after the last step (mean ± standard deviation over the seeds), *against
synchronous* the mean and deviation of the pairs' differences; in bold where it is more than {limit:g}% (asynchronous strategies: 5%). *Samples/s* leaves out
the first tenth of the steps, and samples of replicas whose gradients were dropped. *To loss* is the median time until the mean training loss of the last tenth of the steps has come down to
what synchronous all-reduce has after {at:.0%} of its samples: the column that speed and loss both go into. *MB sent* is what all
ranks sent in a run, with headers and control messages, counted at the network interfaces of the third setting; the same messages are needed in the other two,
though ranks of one host hand some of them over in memory. Every strategy sees equally many samples. Lines in the plots are medians over seeds of the running mean of the
training loss, bands reach from the least to the greatest; the axes are logarithmic. Local steps and servers report
the loss that replicas saw, each with the parameters that it had then.

**What two cores mean.** {replicas} replicas ({most} ranks with servers) share them. Replicas therefore *sleep* for the greater part of their time: in the first two settings
`parallel.injected_delay` gives each a stated pace, {paces} for its share of a batch, and in the second one replica has {slower} times that. Sleeping replicas
do not compete for cores, so that {replicas} of them go on at once, as on {replicas} machines. What remains of competition hits strategies
that compute most: servers, whose ranks update on the same two cores, and compression. Times are those of models small enough for this; only
ratios within a setting mean anything, and they are upper bounds of what a real cluster's larger computing part leaves. In the third setting nobody sleeps, as there the network is the slow part.

Models: {models}."""

SETTINGS = {
    "even": "{replicas} replicas of one pace ({paces} of sleep for their share of a batch), on one host, whose ranks share memory. This is where all-reduce is at home: nothing is slow, so no "
            "other strategy has anything to win but what it saves of the sum.",
    "slow": "As before, but one replica sleeps {slow_paces}. A synchronous step takes as long as this one; the other "
            "three could do {most_ratio:.2f}× its samples a second if they did not wait.",
    "network": "Every rank is a host of its own (`tools/hosts`), with links of {mbit} Mbit/s each way (`tc … tbf`), and nobody sleeps. A gradient takes much longer to send than to compute.",
}

AFTER = """## Where a strategy does not pay, and why

- **All-reduce in bf16** halves the bytes and no more; on one host, where ranks add each other's gradients in shared memory, there is nothing to halve, and the
  conversion and the messages cost what shared memory did not.
- **Delayed gradients** hide the sum behind the next step's computing. They win at most the shorter of the two: nothing where the sum is
  free (one host), nothing much where it is all there is (the slow network); and each update is one step old.
- **Balance** cuts batches by measured speed. It changes nothing where replicas are alike, and cannot make a network faster.
- **Local steps** divide messages by the number of steps between two means. They do not help against a slow replica: each round waits for it as
  each step did. Between means, replicas drift apart, and their mean is of a model trained with a replica's small batch.
- **Compression** trades arithmetic and noise for bytes. With a fast network there is nothing to win; `top_k` sends an index beside each value and
  its lists are not summed on the way, so its bytes grow with the replicas; `random_k` is summed on the way but takes blindly, and waits long for each element
  of its feedback; `sign` has no feedback and one magnitude a tensor, and needs SGD (with AdamW it is refused: AdamW divides by each element's own
  size, which a vote does not have); `int8` sends a quarter, so it cannot be five times as fast; with an optimizer that is not linear in the gradients, as AdamW, error feedback
  has lost its argument, as what comes late is divided by another second moment.
- **Servers, bsp** do what all-reduce does, bit for bit, through {servers} links instead of {replicas}: all gradients go in and all parameters come out there, so on a
  slow network they are the slowest of all. **backup 1** leaves the slowest replica out of each step: its samples are lost for good, and what remains is a batch of three quarters; where no replica
  is slow, it throws work away.
- **ssp** lets replicas run apart by `staleness` and no more: against a replica that is *always* slower it only helps for the first steps, then all wait for
  it again; it is made for replicas that are slow now and then.
- **async** never waits, and every gradient is for parameters that others have moved meanwhile: less momentum or a smaller learning rate has to make up for it.
  Its messages are those of bsp, so it does not help against a slow network. **Tasks** add the books that count every sample once; they cost no
  speed, and matter at the end of an epoch, when nobody is left waiting for the slow replica's last lease.

## Tuning

Each strategy had {budget} tries on each model, in the even setting with seed {tuning_seed}, which is none of the study's, and kept the one with the least
final loss, for all three settings: three learning rates with each of three momenta, of which DiLoCo keeps one and tries three outer steps instead. Ratios and ranks of the
compressors and the number of local steps were not tuned but chosen for the third setting's five times. The first losses of a seed differ between strategies by at most
({starts}; relative), as they begin alike.
"""


def numbers():
    slow = study_plan.SLOWER
    n = study_plan.REPLICAS
    return {"replicas": n, "paces": paces(1), "slow_paces": paces(slow), "slower": slow,
            "most_ratio": (n - 1 + 1 / slow) / (n / slow), "mbit": study_plan.MBIT, "servers": study_plan.SERVERS,
            "tuning_seed": study_plan.TUNING_SEED, "budget": len(study_plan.MOMENTA) * len(study_plan.OUTER)}


def paces(times):
    """ "2 ms (MLP on MNIST) or 3 ms (…)" """
    return " or ".join(f"{times * model.pace:g} ms ({model.title})" for model in study_plan.MODELS.values())


def counted(words):
    """ "a; b", each once, in order of appearance """
    return "; ".join(dict.fromkeys(words))


def facts(records):
    models = [f"{model.title} (batches of {model.batch}, {model.steps} steps, {optimizer(model)})" for model in study_plan.MODELS.values()]
    return {**numbers(), "limit": 2.0, "at": 0.8, "strategies": len({record["strategy"] for record in records}), "runs": len(records),
            "seeds": ", ".join(str(seed) for seed in sorted({record["seed"] for record in records})),
            "dates": counted(record["date"] for record in sorted(records, key=lambda record: record["date"])),
            "machines": counted(record["machine"] for record in records), "models": "; ".join(models),
            "most": max(record["ranks"] for record in records)}


def optimizer(model):
    return {"sgd": "SGD with momentum", "adamw": "AdamW"}[model.optimizer["type"]]
