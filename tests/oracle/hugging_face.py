#!/usr/bin/env python3
"""An exported GPT gives the same logits in Hugging Face's GPT2LMHeadModel as in the trainer, to 1e-4.

usage: hugging_face.py --trainer build/trainer
           trains a tied and an untied small GPT in two stages of two ranks, exports them, compares logits, and the text
           that both continue a prompt with
       hugging_face.py --exported DIR --tokens 1,2,3 --logits FILE
           compares an exported folder with what `trainer eval --checkpoint DIR --tokens 1,2,3 --logits FILE` wrote: one F32
           tensor "logits" [positions, vocabulary]
Exits 77 (skipped) where PyTorch or transformers is missing.
"""
import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

SKIPPED = 77
BOUND = 1e-4
TEXT = "the quick brown fox jumps over the lazy dog, "
PROMPT = "brown"
POSITIONS = 16
TOKENS = [84, 104, 101, 32, 0, 255, 260, 10, 10, 46, 7, 84]


def compare(exported, tokens, logits_file):
    """The largest difference of logits. Throws Failed for wrong shapes, missing weights and differences above BOUND."""
    import torch
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(1)
    model, report = GPT2LMHeadModel.from_pretrained(str(exported), output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            raise runs.Failed(f"{exported}: {kind} {report[kind]}")
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([tokens])).logits[0]
    ours = load_file(str(logits_file))["logits"]
    if ours.shape != theirs.shape:
        raise runs.Failed(f"{logits_file}: logits are {list(ours.shape)}, Hugging Face's {list(theirs.shape)}")
    largest = (ours - theirs).abs().max().item()
    if not largest <= BOUND:
        raise runs.Failed(f"{exported}: logits differ by {largest:.1e}, allowed are {BOUND:.0e}")
    if theirs.std().item() < 100 * BOUND:
        raise runs.Failed(f"{exported}: logits are all but equal ({theirs.std().item():.1e}), so agreement says nothing")
    return largest


def continue_text(exported, prompt, count):
    """The prompt and `count` most likely tokens after it, by Hugging Face's generate(); tokens are bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(exported)).eval()
    tokens = torch.tensor([list(prompt.encode())])
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False,
                         pad_token_id=0)
    return bytes(out[0].tolist()).decode()


def run(*command):
    """What the command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise runs.Failed(f"exit code {done.returncode}: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def train_and_compare(arguments, folder):
    (folder / "text.txt").write_text(TEXT * 400)
    tokens = ",".join(map(str, TOKENS))
    for tied in (True, False):
        name = "tied" if tied else "untied"
        # 261 tokens: more than bytes, and odd.
        config = runs.gpt_config(36, 2, 3, 261, POSITIONS, 8, 2, 200)
        config["model"]["tie_embeddings"] = tied
        config["optimizer"]["learning_rate"] = 0.01
        config["data"] = {"type": "text", "path": str(folder / "text.txt"), "tokenizer": "byte"}
        config["checkpoint"] = {"directory": str(folder / name)}
        parallel = runs.layout(pipeline=2, tensor=2)
        path = runs.write_config(folder / f"{name}.json", config, parallel)
        exported, logits = folder / f"{name}-hf", folder / f"{name}.safetensors"
        runs.train(arguments.trainer, runs.ranks_of(parallel), ["--config", path, "--threads", 1],
                   folder / f"{name}.log", 100)
        run(arguments.trainer, "export", "--checkpoint", folder / name, "--format", "hf", "--out", exported)
        run(arguments.trainer, "eval", "--checkpoint", folder / name, "--tokens", tokens, "--logits", logits)
        print(f"{name}: logits agree, largest difference {compare(exported, TOKENS, logits):.1e}")
        count = POSITIONS - len(PROMPT)
        ours = run(arguments.trainer, "generate", "--checkpoint", folder / name, "--prompt", PROMPT, "--tokens", count,
                   "--temperature", 0, "--threads", 1).removesuffix("\n")
        theirs = continue_text(exported, PROMPT, count)
        if ours != theirs:
            raise runs.Failed(f"{name}: the trainer continues {PROMPT!r} as {ours!r}, Hugging Face as {theirs!r}")
        print(f"{name}: both write {theirs!r}")
    return 0


def main():
    parser = runs.parser(__doc__.splitlines()[0])
    parser.add_argument("--exported", type=Path)
    parser.add_argument("--tokens", help="numbers separated by commas")
    parser.add_argument("--logits", type=Path)
    arguments = parser.parse_args()
    try:
        import safetensors, torch, transformers  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}; tools/setup --oracle makes an environment that has it")
        sys.exit(SKIPPED)
    if not arguments.exported:
        sys.exit(runs.main("hugging-face", train_and_compare, arguments))
    try:
        print(f"logits agree, largest difference {compare(arguments.exported, list(map(int, arguments.tokens.split(','))), arguments.logits):.1e}")
    except runs.Failed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
