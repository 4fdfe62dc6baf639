"""What tools/study runs: models, settings, strategies, and what each strategy may be tuned over. Values only."""
import copy
import dataclasses
import hashlib
import json

REPLICAS = 4
SERVERS = 2
SEEDS = [1, 2, 3, 4, 5]
TUNING_SEED = 1000  # none of SEEDS
SLOWER = 4
MBIT = 100


@dataclasses.dataclass(frozen=True)
class Setting:
    key: str
    title: str
    paces: tuple = ()  # multiples of the model's pace, one a replica; empty: nobody sleeps
    mbit: int = 0      # 0: one host; else each rank is a host of its own, with links of so many Mbit/s
    log_every: int = 1  # steps; what is logged crosses the network between steps, while no time is counted and links rest


SETTINGS = {one.key: one for one in (
    Setting("even", "Even", (1,) * REPLICAS),
    Setting("slow", f"One replica {SLOWER}× slower", (1,) * (REPLICAS - 1) + (SLOWER,)),
    Setting("network", f"A {MBIT} Mbit/s network", (), MBIT, 10))}


@dataclasses.dataclass(frozen=True)
class Model:
    key: str
    title: str
    model: dict
    batch: int
    steps: int
    pace: float  # milliseconds that a replica's share of a batch sleeps in the settings "even" and "slow"
    optimizer: dict
    rates: tuple  # learning rates to tune over, of which each momentum m takes the part 1 - m
    training: dict


SCHEDULE = {"type": "cosine", "warmup_steps": 10, "final_ratio": 0.05}
SGD = {"type": "sgd", "momentum": 0.9, "schedule": SCHEDULE}
MODELS = {one.key: one for one in (
    Model("mlp", "MLP on MNIST",
          {"type": "mlp", "input_size": 784, "hidden_sizes": [32], "output_size": 10, "activation": "gelu"},
          64, 360, 2.0, SGD, (0.5, 1.0, 2.0), {"gradient_clip": 1.0}),
    Model("gpt", "GPT on Tiny Shakespeare",
          {"type": "gpt", "vocab_size": 65, "context_length": 16, "hidden_size": 32, "num_layers": 2, "num_heads": 4},
          64, 250, 3.0, SGD, (0.5, 1.0, 2.0),
          {"sequence_length": 16, "gradient_clip": 1.0}))}


# Staleness, held-back gradients and momentum all make an update depend on old gradients, so less momentum is tried too.
MOMENTA = (0.9, 0.5, 0.0)
# DiLoCo's outer learning rate and momentum, tried instead with the first of MOMENTA.
OUTER = ((0.7, 0.9), (0.4, 0.9), (0.7, 0.5))


@dataclasses.dataclass(frozen=True)
class Strategy:
    key: str
    title: str
    group: str
    parallel: dict
    outer: bool = False  # tuned over OUTER

    def ranks(self):
        return REPLICAS + self.parallel.get("servers", 0)

    def counted(self):
        """The share of the samples that make it into an update."""
        return 1 - self.parallel.get("backup", 0) / REPLICAS

    def candidates(self, model):
        """What it is tuned over, equally many for all: {dotted key: value} each."""
        momenta = MOMENTA[:1] if self.outer else MOMENTA
        inner = [{"optimizer.momentum": momentum, "optimizer.learning_rate": round(rate * (1 - momentum), 6)}
                 for momentum in momenta for rate in model.rates]
        if not self.outer:
            return inner
        return [{**one, "parallel.local.outer_learning_rate": rate, "parallel.local.outer_momentum": momentum}
                for one in inner for rate, momentum in OUTER]


def compressed(**keys):
    return {"compression": keys}


def server(**keys):
    return {"exchange": "server", "servers": SERVERS, **keys}


LOCAL_STEPS = 8

REFERENCE = "all_reduce"
GROUPS = ["All-reduce and local steps", "Compressed gradients", "Parameter servers"]
STRATEGIES = {one.key: one for one in (
    Strategy("all_reduce", "all-reduce, mean", GROUPS[0], {}),
    Strategy("bfloat16", "all-reduce, bf16 on the wire", GROUPS[0], {"all_reduce": {"wire": "bfloat16"}}),
    Strategy("delayed", "delayed gradients", GROUPS[0], {"delayed_gradients": True}),
    Strategy("balance", "balance auto", GROUPS[0], {"balance": "auto", "balance_every": 10}),
    Strategy("local_sgd", f"local SGD, {LOCAL_STEPS} steps", GROUPS[0],
             {"exchange": "local", "local": {"steps": LOCAL_STEPS, "outer_learning_rate": 1.0, "outer_momentum": 0.0,
                                             "nesterov": False}}),
    Strategy("diloco", f"DiLoCo, {LOCAL_STEPS} steps", GROUPS[0],
             {"exchange": "local", "local": {"steps": LOCAL_STEPS, "nesterov": True}}, outer=True),
    Strategy("top_k", "top-k, 4%", GROUPS[1], compressed(type="top_k", ratio=0.04, min_elements=512)),
    Strategy("random_k", "random-k, 10%", GROUPS[1], compressed(type="random_k", ratio=0.1, min_elements=512)),
    Strategy("sign", "sign, majority vote", GROUPS[1], compressed(type="sign", min_elements=512)),
    Strategy("power_sgd", "PowerSGD, rank 4", GROUPS[1], compressed(type="power_sgd", rank=4, min_elements=512)),
    Strategy("int8", "int8", GROUPS[1], compressed(type="int8", min_elements=512)),
    Strategy("bsp", "servers, bsp", GROUPS[2], server(consistency="bsp")),
    Strategy("backup", "servers, bsp, backup 1", GROUPS[2], server(consistency="bsp", backup=1)),
    Strategy("ssp", "servers, ssp, staleness 2", GROUPS[2], server(consistency="ssp", staleness=2)),
    Strategy("async", "servers, async", GROUPS[2], server(consistency="async")),
    Strategy("async_tasks", "servers, async, tasks", GROUPS[2],
             server(consistency="async", tasks=True, task_batches=4)))}


def data_of(model, data):
    if model.key == "mlp":
        return {"type": "idx", "images": str(data / "mnist/t10k-images-idx3-ubyte.gz"),
                "labels": str(data / "mnist/t10k-labels-idx1-ubyte.gz"), "validation_fraction": 0.1}
    return {"type": "text", "path": str(data / "tinyshakespeare.txt"), "tokenizer": "char", "validation_fraction": 0.02}


def put(config, dotted, value):
    *path, last = dotted.split(".")
    for word in path:
        config = config.setdefault(word, {})
    config[last] = value


def config_of(model, strategy, setting, seed, steps, candidate, data):
    config = {
        "model": model.model, "data": data_of(model, data),
        "training": {"steps": steps, "batch_size": model.batch, "micro_batches": 4, "seed": seed, "hang_timeout": 30,
                     **model.training},
        "optimizer": copy.deepcopy(model.optimizer),
        "parallel": {"data": REPLICAS, "pipeline": 1, "tensor": 1, **copy.deepcopy(strategy.parallel)},
        "logging": {"every_steps": setting.log_every},
    }
    if setting.paces:
        sample = model.pace / (model.batch / REPLICAS)
        config["parallel"]["injected_delay"] = [sample * pace for pace in setting.paces]
    for dotted, value in candidate.items():
        put(config, dotted, value)
    return config


def digest(config, setting):
    """Of all that a result depends on, except the machine: a result is used again only where this is the same."""
    facts = {key: value for key, value in config.items() if key not in ("data", "logging")}
    network = [setting.mbit, setting.log_every] if setting.mbit else 0
    return hashlib.sha256(json.dumps([facts, network], sort_keys=True).encode()).hexdigest()[:16]


def show(candidate):
    """ "learning_rate 0.1, momentum 0.9" """
    return ", ".join(f"{dotted.rpartition('.')[2]} {value}" for dotted, value in candidate.items())
