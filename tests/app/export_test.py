#!/usr/bin/env python3
"""An export's bytes are a function of the weights alone: not of the moment, nor of the layout that saved them.

A GPT is trained in one layout and goes on in others with a learning rate of zero, so that only the layout of its checkpoint
changes. usage: export_test.py --trainer build/trainer
"""
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

STEPS = 10
SAVED_BY = runs.layout(pipeline=2, tensor=2)
OTHERS = [runs.layout(), runs.layout(pipeline=4), runs.layout(tensor=3), runs.layout(data=2, pipeline=2, schedule="gpipe")]
USAGE = 2


def hugging_face(arguments, checkpoint, out, *flags):
    """{file: bytes}, or the exit code where it is not 0."""
    command = [arguments.trainer, "export", "--checkpoint", checkpoint, "--format", "hf", "--out", out, *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    return done.returncode or {path.name: path.read_bytes() for path in out.iterdir()}


def check_config(files, tied, hidden, layers, heads, vocabulary, positions):
    """The keys that GPT2Config reads, in the words of its documentation."""
    found = json.loads(files["config.json"])
    expected = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocabulary, "n_positions": positions,
        "n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": 4 * hidden, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": tied,
        "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "bos_token_id": None, "eos_token_id": None,
    }
    wrong = {key: found.get(key, "missing") for key, value in expected.items() if found.get(key, "missing") != value}
    if wrong:
        raise runs.Failed(f"config.json has {wrong}")
    if sorted(files) != ["config.json", "generation_config.json", "model.safetensors"]:
        raise runs.Failed(f"the folder holds {sorted(files)}")
    weights = runs.read_safetensors(files["model.safetensors"])
    if ("lm_head.weight" in weights) == tied or len(weights) != 4 + 12 * layers + (not tied):
        raise runs.Failed(f"{'tied' if tied else 'untied'} weights are {sorted(weights)}")


def work(arguments, folder):
    runs.write_words(folder / "words.txt", 20_000, 1)
    for tied in (True, False):
        directory = folder / f"tied-{tied}"
        config = runs.gpt_config(36, 2, 3, 261, 16, 8, 2, STEPS)
        config["model"].update(tie_embeddings=tied, dropout=0.1)
        config["data"] = {"type": "text", "path": str(folder / "words.txt"), "tokenizer": "byte"}
        config["checkpoint"] = {"directory": str(directory)}

        def train(parallel, *flags):
            path = runs.write_config(folder / "config.json", config, parallel)
            runs.train(arguments.trainer, runs.ranks_of(parallel), ["--config", path, "--threads", 1, *flags],
                       folder / "run.log", 100)

        train(SAVED_BY)
        first = hugging_face(arguments, directory, folder / f"first-{tied}")
        if isinstance(first, int):
            raise runs.Failed(f"export left with {first}")
        check_config(first, tied, 36, 2, 3, 261, 16)
        plain = runs.export(arguments.trainer, directory, folder / "plain")
        if hugging_face(arguments, directory, folder / f"first-{tied}") != USAGE:
            raise runs.Failed("an export over another one needs --overwrite")
        if hugging_face(arguments, directory, folder / f"first-{tied}", "--overwrite") != first:
            raise runs.Failed("a second export has other bytes")
        for n, parallel in enumerate(OTHERS, 1):
            train(parallel, "--resume", "--set", "optimizer.learning_rate=0", "--set", f"training.steps={STEPS + n}")
            if not (directory / f"step-{STEPS + n:08}").is_dir():
                raise runs.Failed(f"{runs.show_layout(parallel)} saved no step {STEPS + n}")
            if hugging_face(arguments, directory, folder / f"again-{tied}-{n}") != first:
                raise runs.Failed(f"saved by {runs.show_layout(parallel)}, the same weights are exported as other bytes")
            if runs.export(arguments.trainer, directory, folder / "plain") != plain:
                raise runs.Failed(f"saved by {runs.show_layout(parallel)}, model.safetensors has other bytes")
        print(f"{'tied' if tied else 'untied'}: {len(OTHERS) + 1} layouts, the same bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(runs.main("export", work, runs.parser(__doc__.splitlines()[0]).parse_args()))
