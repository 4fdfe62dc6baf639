"""The words of docs/training-together.md around its tables; every number in them comes from the plan or the records."""
import study_plan

BEFORE = """# Training together: what each strategy pays

Written by `tools/study`; the tables, plots and verdicts are made from its records alone (`tools/study --page`). {strategies} ways of
training one model on {replicas} replicas, two models, three settings, seeds {seeds}. A seed fixes the initial weights and the order of
the samples for all strategies, so that differences to synchronous all-reduce are taken pair by pair.

{runs} runs, {dates}, {machines}. {notes}

**How to read it.** *Final loss* is the loss on held-out samples after the last step (mean ± standard deviation over the seeds), *against
synchronous* the mean and deviation of the pairs' differences; in bold where it is more than {limit:g}% (asynchronous strategies: 5%). *Samples/s* leaves out
the first tenth of the steps, and samples of replicas whose gradients were dropped. *To loss* is the median time until the mean training loss of the last tenth of the steps has come down to
what synchronous all-reduce has after {at:.0%} of its samples: the column that speed and loss both go into. *MB sent* is what all
ranks sent in a run, with headers and control messages, counted at the network interfaces of the third setting; the same messages are needed in the other two,
though ranks of one host hand some of them over in memory. Every strategy sees equally many samples. Lines in the plots are medians over seeds of the running mean of the
training loss, bands reach from the least to the greatest; the axes are logarithmic. Local steps and servers report
the loss that replicas saw, each with the parameters that it had then. Times are those of steps; evaluations and start are left out.

**What two cores mean.** {replicas} replicas ({most} ranks with servers) share them. Replicas therefore *sleep* for the greater part of their time: in the first two settings
`parallel.injected_delay` gives each a stated pace, {paces} for its share of a batch, and in the second one replica has {slower} times that. Sleeping replicas
do not compete for cores, so that {replicas} of them go on at once, as on {replicas} machines. What remains of competition hits strategies
that compute most: servers, whose ranks update on the same two cores, and compression. Times are those of models small enough for this; only
ratios within a setting mean anything, and they are upper bounds of what a real cluster's larger computing part leaves. In the third setting nobody sleeps, as there the network is the slow part.

Models: {models}."""

SETTINGS = {
    "even": "{replicas} replicas of one pace on one host, whose ranks share memory: each sleeps {paces} for its share of a batch. This is where all-reduce is at home: nothing is slow, so no "
            "other strategy has anything to win but what it saves of the sum.",
    "slow": "As before, but one replica sleeps {slow_paces}. A synchronous step takes as long as this one; the other "
            "three could do {most_ratio:.2f}× its samples a second if they did not wait.",
    "network": "Every rank is a host of its own (`tools/hosts`), with links of {mbit} Mbit/s each way (`tc … tbf`), and nobody sleeps. A gradient takes much longer to send than to compute.",
}

AFTER = """## Where a strategy does not pay, and why

- **All-reduce in bf16** halves the bytes, and its shorter messages fill the slow links better than float32's do, which is all it can win. On one host ranks add each other's gradients where they lie, so there is nothing to
  halve, and converting and sending cost what shared memory did not. Its losses tell what chance does to a pair: it differs from float32 by rounding only,
  and yet its pairs differ by {noise}. On the MLP, whose learning rate is tuned to the edge, less than that is no difference.
- **Delayed gradients** run a step's sum behind the next step, so they win at most the shorter of the two: something with even replicas,
  nothing against a slow one or a network that is the whole step. The price is high: an update that is a whole step old
  bears only half the learning rate, and neither model makes up for that in so few steps.
- **Balance** divides a batch by measured speed. The mean is that of the same batch, so the losses are those of synchronous training; it has nothing to
  do where replicas are alike, and cannot make a network faster. It needs speeds that stay what they were measured to be.
- **Local steps** divide messages by the steps between two means. They do not help against a slow replica: each round waits for it. Between means
  every replica trains alone with a {replicas}th of the batch. **DiLoCo** was made for hundreds of steps between means and long runs; in the few rounds here its outer momentum
  costs more than it brings (the tuning took the smallest that it was offered).
- **Compression** trades arithmetic and noise for bytes: with shared memory or a slow replica there is nothing to win. `top_k` sends an index with each
  value, and lists are not summed on the way, so its bytes grow with the replicas. `random_k` is summed on the way, but takes blindly: an
  element waits ten steps on average, with a loss to match; choosing costs time as well. `sign` keeps one magnitude a tensor, has no feedback, and gives
  the gradient 0 a sign too, so weights of pixels that are always black walk at full speed: bad on the MLP, harmless on the GPT. With AdamW it is refused (AdamW divides by each element's own size,
  which a vote does not have), which is why all strategies here use SGD. `int8` sends a quarter, so about four times is all it can win. PowerSGD
  has no such weakness here; its matrix products grow with the rank.
- **Servers, bsp** do what all-reduce does, to the bit, but all gradients enter and all parameters leave through {servers} links instead of {replicas}, one after the other: on a slow network they
  are the slowest. **Backup 1** leaves the slowest replica out of each step. Against a replica that is always slow this is nearly as fast as asynchrony and
  as exact as bsp, but that replica's work is thrown away, always; where all are alike, a quarter of the work is.
- **ssp** lets replicas run `staleness` apart and no further. Behind a replica that is *always* slower all wait as in bsp after the first steps; it is made for
  replicas that are slow now and then.
- **async** waits for nobody, and its gradients are for parameters that others have moved since. Its messages are those of bsp, so it does not help against a slow network, and with even replicas it only
  has the staleness. **Tasks** count every sample of an epoch once; that costs no speed.

## Tuning

Each strategy had {budget} tries on each model, in the even setting with seed {tuning_seed}, which is none of the study's, and kept the one with the least
final loss, for all three settings: three learning rates with each of three momenta, of which DiLoCo keeps one and tries three outer steps
instead. Ratios and ranks of the compressors and the number of local steps were not tuned but chosen so that five times the speed is possible in the third setting. All strategies of a seed
begin alike: their first losses differ (relatively) by at most {starts} from all-reduce's, asynchronous ones left out, whose first replicas
to report are followed by others with newer parameters.
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
    return {**numbers(), "limit": 2.0, "at": 0.6, "strategies": len({record["strategy"] for record in records}), "runs": len(records),
            "seeds": ", ".join(str(seed) for seed in sorted({record["seed"] for record in records})),
            "dates": counted(record["date"] for record in sorted(records, key=lambda record: record["date"])),
            "machines": counted(record["machine"] for record in records), "models": "; ".join(models),
            "most": max(record["ranks"] for record in records)}


def optimizer(model):
    return {"sgd": "SGD with momentum", "adamw": "AdamW"}[model.optimizer["type"]]
